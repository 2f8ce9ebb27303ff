//! Waiting on sockets.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::polling::{pipe, pull};
use super::sleeping::spec;
use crate::kit::{
    LONG_TERM, Setting, TERM, Watch, args, blocked, fd, loopback, raw, sys, timed, timed_long,
};

/// A stream.
pub(crate) fn read(_: &Setting) -> Result<Watch> {
    let (ours, mut theirs) = UnixStream::pair()?;
    blocked(
        libc::SYS_read,
        move || pull(ours.as_raw_fd()),
        1,
        move || Ok(theirs.write_all(b"x")?),
    )
}

/// Datagrams.
pub(crate) fn recvmsg(_: &Setting) -> Result<Watch> {
    let (ours, theirs) = UnixDatagram::pair()?;
    blocked(
        libc::SYS_recvmsg,
        move || {
            let mut bytes = [0_u8; 8];
            let mut part = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: 8,
            };
            // SAFETY: zeros are a valid message.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            raw(
                libc::SYS_recvmsg,
                args([ours.as_raw_fd() as u64, &raw mut message as u64]),
            )
        },
        5,
        move || Ok(theirs.send(b"hello").map(drop)?),
    )
}

/// A time-out that belongs to the socket.
pub(crate) fn timed_recv(_: &Setting) -> Result<Watch> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(TERM))?;
    let _held = theirs.into_raw_fd();
    timed(
        libc::SYS_recvfrom,
        move || {
            let mut byte = 0_u8;
            raw(
                libc::SYS_recvfrom,
                args([ours.as_raw_fd() as u64, &raw mut byte as u64, 1]),
            )
        },
        -i64::from(libc::EAGAIN),
    )
}

/// The same, stopped more than once.
pub(crate) fn recv_twice(_: &Setting) -> Result<Watch> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(LONG_TERM))?;
    let _held = theirs.into_raw_fd();
    timed_long(
        libc::SYS_recvfrom,
        move || {
            let mut byte = 0_u8;
            let at = &raw mut byte as u64;
            raw(libc::SYS_recvfrom, args([ours.as_raw_fd() as u64, at, 1]))
        },
        -i64::from(libc::EAGAIN),
    )
}

/// The same with read(2), which is for files as well.
pub(crate) fn timed_read(_: &Setting) -> Result<Watch> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(TERM))?;
    let _held = theirs.into_raw_fd();
    timed(
        libc::SYS_read,
        move || pull(ours.as_raw_fd()),
        -i64::from(libc::EAGAIN),
    )
}

/// Two ends of a stream with a time-out for both ways, the first of which has no room.
fn full_stream() -> Result<[i32; 2]> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(TERM))?;
    ours.set_write_timeout(Some(TERM))?;
    ours.set_nonblocking(true)?;
    while (&ours).write(&[7; 4096]).is_ok() {}
    ours.set_nonblocking(false)?;
    Ok([ours.into_raw_fd(), theirs.into_raw_fd()])
}

/// sendfile(2) to a stream without room.
pub(crate) fn timed_sendfile(_: &Setting) -> Result<Watch> {
    let [ours, _] = full_stream()?;
    // SAFETY: the name is a C string.
    let file = fd("memfd_create", unsafe {
        libc::memfd_create(c"sent".as_ptr(), 0)
    })?;
    // SAFETY: takes numbers.
    sys("ftruncate", unsafe { libc::ftruncate(file, 4096) })?;
    timed(
        libc::SYS_sendfile,
        move || {
            let arguments = [ours as u64, file as u64, 0, 4096];
            raw(libc::SYS_sendfile, args(arguments))
        },
        -i64::from(libc::EAGAIN),
    )
}

/// splice(2) from a stream that nothing comes from.
pub(crate) fn timed_splice(_: &Setting) -> Result<Watch> {
    let [ours, _] = full_stream()?;
    let [_, to] = pipe()?;
    timed(
        libc::SYS_splice,
        move || {
            let arguments = [ours as u64, 0, to as u64, 0, 4096];
            raw(libc::SYS_splice, args(arguments))
        },
        -i64::from(libc::EAGAIN),
    )
}

/// A call on a vector of one part, without an offset.
fn timed_vector(number: i64) -> Result<Watch> {
    let [ours, _] = full_stream()?;
    timed(
        number,
        move || {
            let mut bytes = [0_u8; 4096];
            let part = [bytes.as_mut_ptr() as u64, bytes.len() as u64];
            let none = u64::MAX;
            let arguments = [ours as u64, part.as_ptr() as u64, 1, none, none];
            raw(number, args(arguments))
        },
        -i64::from(libc::EAGAIN),
    )
}

/// preadv2(2)
pub(crate) fn timed_preadv2(_: &Setting) -> Result<Watch> {
    timed_vector(libc::SYS_preadv2)
}

/// pwritev2(2)
pub(crate) fn timed_pwritev2(_: &Setting) -> Result<Watch> {
    timed_vector(libc::SYS_pwritev2)
}

/// recvmmsg(2) for more datagrams than come: the first one after its time ends it.
pub(crate) fn timed_recvmmsg(_: &Setting) -> Result<Watch> {
    const MOST: usize = 200;
    let (ours, theirs) = UnixDatagram::pair()?;
    let begun: Arc<Mutex<Option<Instant>>> = Arc::default();
    let begin = |begun: &Mutex<_>, now: Option<Instant>| {
        *begun.lock().unwrap_or_else(PoisonError::into_inner) = now;
    };
    let sender = Arc::clone(&begun);
    std::thread::spawn(move || {
        loop {
            let since = *sender.lock().unwrap_or_else(PoisonError::into_inner);
            if since.is_some_and(|since| since.elapsed() + Duration::from_millis(60) > TERM) {
                let _ = theirs.send(b"more");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    timed(
        libc::SYS_recvmmsg,
        move || {
            begin(&begun, Some(Instant::now()));
            let mut bytes = [0_u8; 8];
            let mut part = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: 8,
            };
            // SAFETY: zeros are valid messages.
            let mut messages: [libc::mmsghdr; MOST] = unsafe { std::mem::zeroed() };
            for message in &mut messages {
                message.msg_hdr.msg_iov = &raw mut part;
                message.msg_hdr.msg_iovlen = 1;
            }
            let time = spec(TERM);
            let at = messages.as_mut_ptr() as u64;
            let (fd, time) = (ours.as_raw_fd() as u64, time.as_ptr() as u64);
            let result = raw(libc::SYS_recvmmsg, args([fd, at, MOST as u64, 0, time]));
            begin(&begun, None);
            result.min(1)
        },
        1,
    )
}

/// A listener that takes nobody, and SO_SNDTIMEO.
pub(crate) fn timed_connect(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("timed");
    let listener = UnixListener::bind(&path)?;
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(listener.as_raw_fd(), 0) })?;
    let _held = (
        UnixStream::connect(&path)?.into_raw_fd(),
        listener.into_raw_fd(),
    );
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: takes numbers.
    let ours = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
    let term = [TERM.as_secs(), TERM.subsec_micros().into()];
    let (level, option) = (libc::SOL_SOCKET as u64, libc::SO_SNDTIMEO as u64);
    let arguments = [ours as u64, level, option, term.as_ptr() as u64, 16];
    sys("setsockopt", raw(libc::SYS_setsockopt, args(arguments)))?;
    timed(
        libc::SYS_connect,
        move || {
            let len = size_of_val(&address) as u64;
            raw(
                libc::SYS_connect,
                args([ours as u64, &raw const address as u64, len]),
            )
        },
        -i64::from(libc::EAGAIN),
    )
}

fn accept(listener: i32) -> i64 {
    let accepted = raw(libc::SYS_accept, args([listener as u64]));
    let result = pull(accepted as i32);
    raw(libc::SYS_close, args([accepted as u64]));
    result
}

/// A unix socket with a name.
pub(crate) fn accept_unix(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("socket");
    let listener = UnixListener::bind(&path)?;
    blocked(
        libc::SYS_accept,
        move || accept(listener.as_raw_fd()),
        1,
        move || Ok(UnixStream::connect(&path)?.write_all(b"x")?),
    )
}

/// A TCP socket.
pub(crate) fn accept_tcp(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    blocked(
        libc::SYS_accept,
        move || accept(listener.as_raw_fd()),
        1,
        move || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"x")?;
            // Closed by the other side, so that nothing of it is left.
            Ok(stream.read(&mut [0]).map(drop)?)
        },
    )
}

/// The backlog holds one connection; a second one waits until it is taken.
pub(crate) fn connect(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("socket");
    let listener = UnixListener::bind(&path)?;
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(listener.as_raw_fd(), 0) })?;
    let first = UnixStream::connect(&path)?;
    let watch = blocked(
        libc::SYS_connect,
        move || match UnixStream::connect(&path) {
            Ok(stream) => i64::from(stream.into_raw_fd() > 0),
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(1)),
        },
        1,
        move || Ok(listener.accept().map(drop)?),
    )?;
    let _held = (first.into_raw_fd(), fs::metadata(setting.path("socket"))?);
    Ok(watch)
}
