//! Of a tree in which some processes cannot be rebuilt, `restore --partial` brings the others back: to them it is as
//! if those had been killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod frame;

/// One test: see [`frame::carry_partly`].
#[test]
fn who_cannot_be_rebuilt_is_killed_and_the_others_go_on() {
    for (name, lost) in [("file", 1), ("shared", 2), ("table", 2)] {
        frame::carry_partly("partial", name, lost);
    }
}
