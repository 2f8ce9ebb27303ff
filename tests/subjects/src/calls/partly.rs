//! Calls that were partly done when they were stopped: they return the whole.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

use super::polling::pipe;
use super::sleeping::spec;
use crate::kit::files::open;
use crate::kit::{
    SOON, Setting, TERM, Watch, args, blocked, give_way, loopback, raw, same, sys, until,
};

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

/// writev(2), or pwritev2(2) without an offset, to a pipe of parts that are made of a buffer.
fn written(number: i64, in_parts: fn(&[u8]) -> Vec<libc::iovec>) -> Result<Watch> {
    let [from, to] = pipe()?;
    let bytes = pattern(LARGE);
    blocked(
        number,
        move || {
            let parts = in_parts(&bytes);
            let none = u64::MAX;
            let (at, count) = (parts.as_ptr() as u64, parts.len() as u64);
            raw(number, args([to as u64, at, count, none, none]))
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// writev(2) to a pipe.
pub(crate) fn writev(_: &Setting) -> Result<Watch> {
    written(libc::SYS_writev, in_parts)
}

/// More parts than are copied.
fn in_many_parts(bytes: &[u8]) -> Vec<libc::iovec> {
    let part = |bytes: &[u8]| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    bytes.chunks(1001).map(part).collect()
}

/// writev(2) of many parts to a pipe.
pub(crate) fn writev_many(_: &Setting) -> Result<Watch> {
    written(libc::SYS_writev, in_many_parts)
}

/// pwritev2(2) to a pipe.
pub(crate) fn pwritev2(_: &Setting) -> Result<Watch> {
    written(libc::SYS_pwritev2, in_parts)
}

/// sendmsg(2) to a unix stream of parts that are made of a buffer.
fn sent(in_parts: fn(&[u8]) -> Vec<libc::iovec>) -> Result<Watch> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let bytes = pattern(LARGE);
    blocked(
        libc::SYS_sendmsg,
        move || {
            let mut parts = in_parts(&bytes);
            let message = message(&mut parts);
            let at = &raw const message as u64;
            raw(libc::SYS_sendmsg, args([to as u64, at]))
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// sendmsg(2) of many parts to a unix stream.
pub(crate) fn sendmsg_many(_: &Setting) -> Result<Watch> {
    sent(in_many_parts)
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
    sent(in_parts)
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

/// A stream that is read when so many bytes are there.
fn stream_of_least(least: usize) -> Result<(RawFd, RawFd)> {
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let least = least as i32;
    // SAFETY: the kernel reads one int.
    sys("SO_RCVLOWAT", unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
        libc::setsockopt(from, level, name, (&raw const least).cast(), 4)
    })?;
    put(to, &pattern(ALL)[..FIRST])?;
    Ok((from, to))
}

/// A call that waits for most of what is sent, and returns all of it.
fn least(number: i64) -> Result<Watch> {
    let (from, to) = stream_of_least(ALL - 100)?;
    blocked(
        number,
        move || {
            let mut found = [0_u8; 2 * ALL];
            let call = args([from as u64, found.as_mut_ptr() as u64, 2 * ALL as u64]);
            let result = raw(number, call);
            let result = whole(&found[..ALL], result);
            // For the next one.
            match put(to, &pattern(ALL)[..FIRST]) {
                Ok(()) => result,
                Err(_) => -1,
            }
        },
        ALL as i64,
        move || put(to, &pattern(ALL)[FIRST..]),
    )
}

/// recv(2) of a stream with `SO_RCVLOWAT`.
pub(crate) fn recv_least(_: &Setting) -> Result<Watch> {
    least(libc::SYS_recvfrom)
}

/// The same with read(2).
pub(crate) fn read_least(_: &Setting) -> Result<Watch> {
    least(libc::SYS_read)
}

/// recv(2) of a TCP stream with `MSG_PEEK` and `MSG_WAITALL`, which takes nothing.
pub(crate) fn peek(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = TcpStream::connect(listener.local_addr()?)?.into_raw_fd();
    let from = listener.accept()?.0.into_raw_fd();
    put(to, &pattern(ALL)[..FIRST])?;
    blocked(
        libc::SYS_recvfrom,
        move || {
            let mut found = [0_u8; ALL];
            let at = found.as_mut_ptr() as u64;
            let flags = (libc::MSG_PEEK | libc::MSG_WAITALL) as u64;
            let result = raw(
                libc::SYS_recvfrom,
                args([from as u64, at, ALL as u64, flags]),
            );
            let result = whole(&found, result);
            // All but what the next one finds.
            raw(libc::SYS_recvfrom, args([from as u64, at, ALL as u64]));
            if put(to, &pattern(ALL)[..FIRST]).is_err() {
                return -1;
            }
            result
        },
        ALL as i64,
        move || put(to, &pattern(ALL)[FIRST..]),
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
    three_messages(false)
}

/// The same with a time-out that is not reached.
pub(crate) fn recvmmsg_timed(_: &Setting) -> Result<Watch> {
    three_messages(true)
}

fn three_messages(timed: bool) -> Result<Watch> {
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
            let mut time = spec(TERM * 1000);
            let time = if timed { time.as_mut_ptr() as u64 } else { 0 };
            let at = messages.as_mut_ptr() as u64;
            let result = raw(libc::SYS_recvmmsg, args([from as u64, at, 3, 0, time]));
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

/// sendmmsg(2) of two messages to a unix stream. What it says was sent is taken for that, as programs do: all messages
/// but the last one are whole.
pub(crate) fn sendmmsg(_: &Setting) -> Result<Watch> {
    const FIRST_HALF: usize = LARGE / 2;
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let bytes = pattern(LARGE);
    let send = move |rest: &[u8]| {
        let (one, other) = rest.split_at(rest.len().saturating_sub(LARGE - FIRST_HALF));
        let mut parts = [one, other].map(|bytes| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
        let mut messages = parts.each_mut().map(|part| libc::mmsghdr {
            msg_hdr: message(std::slice::from_mut(part)),
            msg_len: 0,
        });
        let skip = usize::from(one.is_empty());
        let at = messages[skip..].as_mut_ptr() as u64;
        let count = (2 - skip) as u64;
        match raw(libc::SYS_sendmmsg, args([to as u64, at, count])) {
            2 => Ok(one.len() + messages[1].msg_len as usize),
            1 => Ok(messages[skip].msg_len as usize),
            failed => Err(failed),
        }
    };
    blocked(
        libc::SYS_sendmmsg,
        move || {
            let mut done = 0;
            while done < LARGE {
                match send(&bytes[done..]) {
                    Ok(more) => done += more,
                    Err(failed) => return failed,
                }
            }
            done as i64
        },
        LARGE as i64,
        move || take_all(from),
    )
}

/// readv of a device that never ends, by a thread that does nothing else.
pub(crate) fn readv_endless(_: &Setting) -> Result<Watch> {
    const PART: usize = 1 << 20;
    static READ: AtomicU64 = AtomicU64::new(0);
    static SHORT: AtomicU64 = AtomicU64::new(0);
    let random = open("/dev/urandom", libc::O_RDONLY)?;
    std::thread::spawn(move || {
        give_way();
        let mut parts = [vec![0_u8; PART], vec![0_u8; PART]];
        let vector = parts.each_mut().map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: PART,
        });
        loop {
            // SAFETY: both parts are alive and as long as they say.
            let count = unsafe { libc::readv(random, vector.as_ptr(), 2) };
            SHORT.fetch_add(u64::from(count != 2 * PART as isize), Ordering::SeqCst);
            READ.fetch_add(1, Ordering::SeqCst);
        }
    });
    Ok(Watch::new(|| {
        let before = READ.load(Ordering::SeqCst);
        until("more is read", SOON, || {
            READ.load(Ordering::SeqCst) > before + 1
        })?;
        same("short reads", &0, &SHORT.load(Ordering::SeqCst))
    })
    .spoiled_by(|| {
        SHORT.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}
