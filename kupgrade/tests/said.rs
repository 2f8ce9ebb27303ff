//! What the command says to nobody.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Stdio};

/// `kupgrade check | true`: its exit status is what it would be with somebody listening.
#[test]
fn a_closed_pipe_changes_no_exit_status() {
    let mut quiet = Command::new("sleep");
    quiet.arg("60").stdin(Stdio::null()).stdout(Stdio::null());
    let mut quiet = quiet.stderr(Stdio::null()).spawn().unwrap();
    let pid = quiet.id().to_string();
    let check = |out: Stdio, err: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kupgrade"));
        command.args(["check", "--json", "--pid", &pid]);
        command.stdout(out).stderr(err).status().unwrap().code()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let heard = check(Stdio::null(), Stdio::null());
    assert!(matches!(heard, Some(0 | 3)), "{heard:?}");
    assert_eq!(check(closed(), Stdio::null()), heard);
    quiet.kill().unwrap();
    quiet.wait().unwrap();
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_kupgrade"));
    wrong
        .args(["restore", "--dir", "/nowhere"])
        .stderr(closed());
    assert_eq!(wrong.status().unwrap().code(), Some(1));
}
