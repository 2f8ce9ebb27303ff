//! Programs with sockets of every kind are saved, ended, rebuilt, and find everything as they left it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod frame;

/// One test: see [`frame::carry`].
#[test]
fn sockets_come_back_as_they_were() {
    for name in [
        "queues",
        "names",
        "internet",
        "credentials",
        "ended",
        "waiting",
    ] {
        frame::carry("sockets", name);
    }
}
