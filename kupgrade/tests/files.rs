//! Programs with descriptors of every kind other than sockets are saved, ended, rebuilt, and find everything
//! as they left it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod frame;

/// One test: see [`frame::carry`].
#[test]
fn descriptors_come_back_as_they_were() {
    for name in [
        "paths",
        "pipes",
        "locks",
        "watching",
        "processes",
        "terminals",
        "timers",
        "cwd",
        "aio",
        "fanotify",
    ] {
        frame::carry("files", name);
    }
}
