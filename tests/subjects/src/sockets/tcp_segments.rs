//! The segment sizes that connections of TCP have come to use.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Result;
use libc::{SO_REUSEADDR, SOL_SOCKET, SOL_TCP, TCP_MAXSEG};

use crate::kit::net::{option, set_option};
use crate::kit::{Setting, Watch, loopback, same};

const PIECE: usize = 60_000;

fn connect(host: &str) -> Result<[TcpStream; 2]> {
    let listener = TcpListener::bind((host, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok([client, listener.accept()?.0])
}

/// Sends and reads so many pieces to and fro: windows grow.
fn exchange(ends: &[TcpStream; 2], times: usize) -> Result<()> {
    let mut bytes = vec![7; PIECE];
    for _ in 0..times {
        for [mut from, mut to] in [[&ends[0], &ends[1]], [&ends[1], &ends[0]]] {
            from.write_all(&bytes)?;
            to.read_exact(&mut bytes)?;
        }
    }
    Ok(())
}

fn seen(end: &TcpStream) -> Result<[Vec<u8>; 2]> {
    let fd = end.as_raw_fd();
    Ok([
        option(fd, SOL_TCP, TCP_MAXSEG)?,
        option(fd, SOL_SOCKET, SO_REUSEADDR)?,
    ])
}

/// Connections that have carried nothing, a little, and much; the ends that ask of IPv6 as well.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut all = Vec::new();
    for host in ["127.0.0.1", "::1"] {
        for times in [0, 1, 50] {
            let ends = connect(host)?;
            set_option(ends[0].as_raw_fd(), SOL_SOCKET, SO_REUSEADDR, 1)?;
            exchange(&ends, times)?;
            all.push(ends);
        }
    }
    let keep = move |all: &[[TcpStream; 2]]| -> Result<Vec<_>> {
        // An end of IPv6 that was accepted keeps a new one's size.
        let ends = all[..3]
            .iter()
            .flatten()
            .chain(all[3..].iter().map(|ends| &ends[0]));
        ends.map(seen).collect()
    };
    let mut before = keep(&all)?;
    let spoiled = all[0][0].try_clone()?;
    Ok(Watch::new(move || {
        same("segments", &before, &keep(&all)?)?;
        all.iter().try_for_each(|ends| exchange(ends, 1))?;
        before = keep(&all)?;
        Ok(())
    })
    .spoiled_by(move || set_option(spoiled.as_raw_fd(), SOL_SOCKET, SO_REUSEADDR, 0)))
}
