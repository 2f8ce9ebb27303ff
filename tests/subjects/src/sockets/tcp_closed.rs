//! TCP connections whose other end was closed before everything that it had sent found room.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use libc::{IPPROTO_TCP, POLLIN, POLLOUT, POLLRDHUP, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, TCP_INFO};

use crate::kit::files::ready;
use crate::kit::net::{option, set_option};
use crate::kit::{SOON, Setting, Watch, loopback, same, until};

/// A byte of the stream that is sent.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// Sends until nothing fits any more, also after a moment; how much that was.
fn fill(to: &TcpStream) -> Result<usize> {
    to.set_nonblocking(true)?;
    let bytes: Vec<u8> = (0..4_000_000).map(byte).collect();
    let mut sent = 0;
    for _ in 0..2 {
        while let Ok(some) = (&*to).write(&bytes[sent..bytes.len().min(sent + 50_000)]) {
            sent += some;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(sent)
}

/// All of it comes, and then the end.
fn drain(from: &TcpStream, count: usize) -> Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(SOON / 2))?;
    let mut bytes = Vec::new();
    (&*from).read_to_end(&mut bytes)?;
    same("how much has come", &count, &bytes.len())?;
    let wrong = bytes
        .iter()
        .enumerate()
        .find(|(at, one)| **one != byte(*at));
    same("a byte that is wrong", &None, &wrong)
}

/// A listening socket with little room, which those that it accepts take over.
fn listener() -> Result<TcpListener> {
    loopback()?;
    // The kernel gives up what nobody holds any more after some 200 s (tcp_probe_timer).
    std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "100")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    set_option(listener.as_raw_fd(), SOL_SOCKET, SO_RCVBUF, 60_000)?;
    Ok(listener)
}

/// A connection to it.
fn connect(to: &TcpListener) -> Result<TcpStream> {
    let client = TcpStream::connect(to.local_addr()?)?;
    set_option(client.as_raw_fd(), SOL_SOCKET, SO_RCVBUF, 60_000)?;
    set_option(client.as_raw_fd(), SOL_SOCKET, SO_SNDBUF, 300_000)?;
    Ok(client)
}

/// How the end that is left stands.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// It was accepted.
    Accepted,
    /// It was accepted, and has finished before the other one was closed.
    Finished,
    /// It has connected, and whoever accepted it is gone.
    Connected,
}

fn closed(listener: &TcpListener, left: Left) -> Result<(TcpStream, usize)> {
    let client = connect(listener)?;
    let (server, _) = listener.accept()?;
    let (own, other) = match left {
        Left::Connected => (client, server),
        _ => (server, client),
    };
    if left == Left::Finished {
        own.shutdown(Shutdown::Write)?;
    }
    set_option(other.as_raw_fd(), SOL_SOCKET, SO_SNDBUF, 300_000)?;
    let sent = fill(&other)?;
    Ok((own, sent))
}

/// The end that is left reads everything, then the end of it: accepted or not, finished or not.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    const ALL: [Left; 3] = [Left::Accepted, Left::Finished, Left::Connected];
    let listener = listener()?;
    let begin = {
        let listener = listener.try_clone()?;
        move || {
            ALL.iter()
                .map(|left| closed(&listener, *left))
                .collect::<Result<Vec<_>>>()
        }
    };
    let ends = Rc::new(RefCell::new(begin()?));
    let spoilt = ends.clone();
    Ok(Watch::new(move || {
        for (left, (own, sent)) in ALL.iter().zip(ends.take()) {
            drain(&own, sent)?;
            if *left != Left::Finished {
                until("being told that nobody is there", SOON / 4, || {
                    let error = own.take_error().is_ok_and(|error| error.is_some());
                    error || (&own).write_all(b"?").is_err()
                })?;
            }
        }
        ends.replace(begin()?);
        Ok(())
    })
    .spoiled_by(move || {
        let ends = spoilt.borrow();
        let (own, _) = ends.first().context("no connections")?;
        let mut own = own;
        own.read_exact(&mut [0; 4])?;
        Ok(())
    }))
}

/// Ends that are shut down: for reading, writing, both, and both ends for writing.
pub(crate) fn halves(_: &Setting) -> Result<Watch> {
    let listener = listener()?;
    let mut pairs = Vec::new();
    for how in [
        Shutdown::Read,
        Shutdown::Write,
        Shutdown::Both,
        Shutdown::Write,
    ] {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.shutdown(how)?;
        pairs.push([client, server]);
    }
    pairs[3][1].shutdown(Shutdown::Write)?;
    (&pairs[1][1]).write_all(b"an answer")?;
    let answered = pairs[1][0].as_raw_fd();
    until("the answer", SOON / 4, || {
        ready(answered, POLLIN).is_ok_and(|events| events & POLLIN != 0)
    })?;
    let spoilt = pairs[0][0].try_clone()?;
    let look = move |end: &TcpStream| {
        let asked = POLLIN | POLLOUT | POLLRDHUP;
        let state = option(end.as_raw_fd(), IPPROTO_TCP, TCP_INFO)?;
        let peer = end.peer_addr().map_err(|error| error.raw_os_error());
        anyhow::Ok((
            ready(end.as_raw_fd(), asked)?,
            state.first().copied(),
            peer.ok(),
        ))
    };
    let all = move || pairs.iter().flatten().map(look).collect::<Result<Vec<_>>>();
    // include/net/tcp_states.h: when the last acknowledgement has come.
    const CALM: [u8; 8] = [1, 1, 5, 8, 5, 8, 7, 7];
    until("the last acknowledgement", SOON / 4, || {
        all().is_ok_and(|found| found.iter().map(|one| one.1).eq(CALM.map(Some)))
    })?;
    Ok(Watch::keep(all)?.spoiled_by(move || Ok(spoilt.shutdown(Shutdown::Write)?)))
}

/// A client has sent more than fits, and has gone before anybody accepted it.
pub(crate) fn unaccepted(_: &Setting) -> Result<Watch> {
    let listener = listener()?;
    let size = option(listener.as_raw_fd(), SOL_SOCKET, SO_RCVBUF)?;
    let come = |listener: &TcpListener| {
        let client = connect(listener)?;
        fill(&client)
    };
    let mut sent = come(&listener)?;
    let other = listener.try_clone()?;
    Ok(Watch::new(move || {
        let (own, _) = listener.accept()?;
        let now = option(own.as_raw_fd(), SOL_SOCKET, SO_RCVBUF)?;
        same("the room that it has taken over", &size, &now)?;
        drain(&own, sent)?;
        sent = come(&listener)?;
        Ok(())
    })
    .spoiled_by(move || {
        let (own, _) = other.accept()?;
        drop(own);
        let client = connect(&other)?;
        (&client).write_all(b"less")?;
        Ok(())
    }))
}
