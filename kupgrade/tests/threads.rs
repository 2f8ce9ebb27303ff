//! Programs whose threads and timers are in states of their own are saved, ended, rebuilt, and find
//! everything as they left it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod frame;

/// One test: see [`frame::carry`].
#[test]
fn threads_come_back_as_they_were() {
    for name in ["processor", "processors", "expired", "undumpable"] {
        frame::carry("threads", name);
    }
}
