//! Calls that were partly done when they were stopped: they return the whole.

use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use anyhow::{Result, bail};

use super::polling::pipe;
use crate::kit::{Setting, Watch, args, blocked, raw, sys};

/// More than a pipe or a socket has room for.
const LARGE: usize = 700_000;

/// Bytes no two neighbouring pages of which are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 4096) as u8).collect()
}

/// Takes [`LARGE`] bytes out, which must be those of [`pattern`].
fn take_all(from: RawFd) -> Result<()> {
    let mut found = vec![0; LARGE];
    let mut done = 0;
    while done < LARGE {
        let at = found[done..].as_mut_ptr() as u64;
        let call = args([from as u64, at, (LARGE - done) as u64]);
        match sys("read", raw(libc::SYS_read, call))? {
            0 => bail!("it ends after {done} bytes"),
            more => done += more as usize,
        }
    }
    match found.iter().zip(pattern(LARGE)).position(|(a, b)| *a != b) {
        Some(at) => bail!("byte {at} is another one"),
        None => Ok(()),
    }
}

/// Parts of odd lengths that make up a buffer.
fn in_parts(bytes: &[u8]) -> Vec<libc::iovec> {
    let lengths = [1, 70_001, 0, 300_000, bytes.len() - 370_002];
    let mut rest = bytes;
    let mut part = |len| {
        let (now, then) = rest.split_at(len);
        rest = then;
        libc::iovec {
            iov_base: now.as_ptr().cast_mut().cast(),
            iov_len: len,
        }
    };
    lengths.map(&mut part).to_vec()
}

/// write(2) to a pipe.
pub(crate) fn write(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe()?;
    let bytes = pattern(LARGE);
    blocked(
        libc::SYS_write,
        move || {
            let call = args([to as u64, bytes.as_ptr() as u64, LARGE as u64]);
            raw(libc::SYS_write, call)
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// writev(2) to a pipe.
pub(crate) fn writev(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe()?;
    let bytes = pattern(LARGE);
    blocked(
        libc::SYS_writev,
        move || {
            let parts = in_parts(&bytes);
            let call = args([to as u64, parts.as_ptr() as u64, parts.len() as u64]);
            raw(libc::SYS_writev, call)
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// send(2) to a unix stream.
pub(crate) fn send(_: &Setting) -> Result<Watch> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let bytes = pattern(LARGE);
    blocked(
        libc::SYS_sendto,
        move || {
            let call = args([to as u64, bytes.as_ptr() as u64, LARGE as u64]);
            raw(libc::SYS_sendto, call)
        },
        LARGE as i64,
        move || take_all(from),
    )
}

fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: zeros are a valid message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message
}

/// sendmsg(2) to a unix stream.
pub(crate) fn sendmsg(_: &Setting) -> Result<Watch> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let bytes = pattern(LARGE);
    blocked(
        libc::SYS_sendmsg,
        move || {
            let mut parts = in_parts(&bytes);
            let message = message(&mut parts);
            raw(
                libc::SYS_sendmsg,
                args([to as u64, &raw const message as u64]),
            )
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// Bytes that are waited for, and that are there from the beginning.
const ALL: usize = 1000;
const FIRST: usize = 300;

fn put(to: RawFd, bytes: &[u8]) -> Result<()> {
    let call = args([to as u64, bytes.as_ptr() as u64, bytes.len() as u64]);
    sys("write", raw(libc::SYS_write, call)).map(drop)
}

/// What a call returns when all has come.
fn whole(found: &[u8], result: i64) -> i64 {
    if found == pattern(ALL) { result } else { -1 }
}

/// recv(2) with `MSG_WAITALL` of a unix stream.
pub(crate) fn recv(_: &Setting) -> Result<Watch> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    put(to, &pattern(ALL)[..FIRST])?;
    blocked(
        libc::SYS_recvfrom,
        move || {
            let mut found = [0_u8; ALL];
            let (at, all) = (found.as_mut_ptr() as u64, libc::MSG_WAITALL as u64);
            let call = args([from as u64, at, ALL as u64, all]);
            let result = raw(libc::SYS_recvfrom, call);
            whole(&found, result)
        },
        ALL as i64,
        move || {
            put(to, &pattern(ALL)[FIRST..])?;
            put(to, &pattern(ALL)[..FIRST])
        },
    )
}

/// recvmsg(2) with `MSG_WAITALL` of a unix stream.
pub(crate) fn recvmsg(_: &Setting) -> Result<Watch> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    put(to, &pattern(ALL)[..FIRST])?;
    blocked(
        libc::SYS_recvmsg,
        move || {
            let mut found = [0_u8; ALL];
            let part = |at: &mut [u8]| libc::iovec {
                iov_base: at.as_mut_ptr().cast(),
                iov_len: at.len(),
            };
            let (one, other) = found.split_at_mut(FIRST - 100);
            let mut parts = [part(one), part(other)];
            let mut message = message(&mut parts);
            let (at, all) = (&raw mut message as u64, libc::MSG_WAITALL as u64);
            let result = raw(libc::SYS_recvmsg, args([from as u64, at, all]));
            whole(&found, result)
        },
        ALL as i64,
        move || {
            put(to, &pattern(ALL)[FIRST..])?;
            put(to, &pattern(ALL)[..FIRST])
        },
    )
}

/// recvmmsg(2) for three datagrams.
pub(crate) fn recvmmsg(_: &Setting) -> Result<Watch> {
    let (from, to) = UnixDatagram::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    put(to, b"one")?;
    blocked(
        libc::SYS_recvmmsg,
        move || {
            let mut bytes = [[0_u8; 8]; 3];
            let mut parts = bytes.each_mut().map(|at| libc::iovec {
                iov_base: at.as_mut_ptr().cast(),
                iov_len: 8,
            });
            let mut messages = parts.each_mut().map(|part| libc::mmsghdr {
                msg_hdr: message(std::slice::from_mut(part)),
                msg_len: 0,
            });
            let result = raw(
                libc::SYS_recvmmsg,
                args([from as u64, messages.as_mut_ptr() as u64, 3]),
            );
            let lengths = messages.map(|message| message.msg_len);
            if lengths == [3, 3, 5] { result } else { -1 }
        },
        3,
        move || {
            put(to, b"two")?;
            put(to, b"three")?;
            put(to, b"one")
        },
    )
}
