//! Programs with sockets of every kind are saved, ended, rebuilt, and find everything as they left it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod frame;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

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
        "connections",
    ] {
        frame::carry("sockets", name);
    }
    peers_outside();
}

/// Answers everyone who connects with the id of the process it sees.
fn answer(listener: &UnixListener) {
    for client in listener.incoming() {
        let mut client = client.unwrap();
        std::thread::spawn(move || {
            while matches!(client.read(&mut [0; 9]), Ok(1..)) {
                let (level, name) = (nix::libc::SOL_SOCKET, nix::libc::SO_PEERCRED);
                let peer = sys::socket::option(client.as_fd(), level, name, 12).unwrap();
                let pid = sys::socket::Credentials::from_bytes(&peer).unwrap().pid;
                client.write_all(pid.to_string().as_bytes()).unwrap();
            }
        });
    }
}

fn peers_outside() {
    let dir = std::env::temp_dir().join(format!("sockets-peers-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (server, log) = (dir.join("server"), dir.join("log"));
    let listener = UnixListener::bind(&server).unwrap();
    std::thread::spawn(move || answer(&listener));
    let messages = UnixDatagram::bind(&log).unwrap();
    let names = [&server, &log].map(|path| format!("--external=unix:{}", path.display()));
    frame::carry_with("sockets", "outside", &names.each_ref().map(String::as_str));
    messages.set_nonblocking(true).unwrap();
    for expected in ["before", "after"] {
        let mut message = [0; 99];
        let len = messages.recv(&mut message).unwrap();
        assert_eq!(&message[..len], expected.as_bytes());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
