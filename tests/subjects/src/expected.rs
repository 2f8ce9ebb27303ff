//! What is not carried yet. Whoever makes a subject pass takes its line out; a subject that
//! passes in spite of its line is an error of the tests, so that this list stays true.

use std::fmt;

/// What becomes of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is carried and finds nothing changed.
    Carried,
    /// It is refused before anything is stopped, with this in the message.
    Refused(&'static str),
    /// A defect that is known: it is carried, and something is wrong afterwards.
    #[allow(dead_code, reason = "none is known just now")]
    Wrong(&'static str),
}

/// What becomes of a subject on one kernel and across kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) here: Fate,
    pub(crate) across: Fate,
}

use Fate::{Carried, Refused, Wrong};

/// Subjects that are not carried in both ways.
const EXCEPTIONS: &[(&str, Expected)] = &[
    (
        "namespace-thread",
        both(Refused("a uts namespace of its own")),
    ),
    (
        "namespace-children",
        both(Refused("its children get a time namespace of their own")),
    ),
    ("ports", both(Refused("ports of devices"))),
    ("keys", both(Refused("keys in its process keyring"))),
    (
        "session-keys",
        both(Refused("keys in its session keyring (user a key)")),
    ),
    ("pending-every", both(Refused("every signal is queued"))),
    (
        "udp-turned-to-ipv4",
        both(Refused(
            "it was connected to a host of IPv6 before one of IPv4",
        )),
    ),
    (
        "udp-lite",
        Expected {
            here: Carried,
            // As of Linux 7.1 kernels do not have it.
            across: Refused("protocol 136"),
        },
    ),
    (
        // The kernel keeps what it has made of the program, and not the program.
        "packet-fanout-program",
        both(Refused("a fan-out group with a program")),
    ),
    (
        "netlink-done",
        both(Refused("netlink messages that were not read")),
    ),
    (
        "compat-sleep",
        both(Refused("waits for a time in a 32-bit call")),
    ),
    (
        "uring-lasting",
        both(Refused("requests of io_uring do not end")),
    ),
    (
        "traced-empty",
        both(Refused("it has unmapped all its code")),
    ),
    (
        "uring-provided-gone",
        both(Refused("not registered any more")),
    ),
];

/// What is expected of a subject.
pub(crate) fn of(name: &str) -> Expected {
    EXCEPTIONS
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(both(Carried), |(_, expected)| *expected)
}

/// The subjects with an exception.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    EXCEPTIONS.iter().map(|(name, _)| *name)
}

const fn both(fate: Fate) -> Expected {
    Expected {
        here: fate,
        across: fate,
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Carried => write!(out, "carried"),
            Refused(words) => write!(out, "refused: {words}"),
            Wrong(what) => write!(out, "wrong: {what}"),
        }
    }
}
