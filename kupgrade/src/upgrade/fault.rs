//! Faults on purpose, for tests: `KUPGRADE_FAULT=sigterm:PHASE`, `sigkill:PHASE` and `manifest:HOW`.

use nix::sys::signal::{Signal, raise};
use persist_mem::manifest::Phase;

fn wanted(what: &str) -> Option<String> {
    let text = std::env::var("KUPGRADE_FAULT").ok()?;
    let (kind, how) = text.split_once(':')?;
    (kind == what).then(|| how.to_owned())
}

/// Sends a signal to ourselves in the phase that is named.
pub(super) fn signal_at(phase: Phase) {
    // SIGTERM waits: it is held back.
    for (name, signal) in [("sigterm", Signal::SIGTERM), ("sigkill", Signal::SIGKILL)] {
        if wanted(name).as_deref() == Some(phase.name()) {
            let _ = raise(signal);
        }
    }
}

/// How the manifest is to be spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoil {
    /// One bit of a record is another.
    BitFlip,
    /// Nothing is written where the command line points.
    Missing,
    /// It names a version nobody knows.
    Version,
}

pub(super) fn spoil() -> Option<Spoil> {
    match wanted("manifest")?.as_str() {
        "bit-flip" => Some(Spoil::BitFlip),
        "missing" => Some(Spoil::Missing),
        "version" => Some(Spoil::Version),
        _ => None,
    }
}
