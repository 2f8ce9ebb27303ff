//! Requests that others wait for, and those whose memory is told of by structures that are gone.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;

use anyhow::Result;

use super::ring::{
    DRAIN, Entry, HARDLINK, LINK, LINK_TIMEOUT, NOP, READ, READV, RECVMSG, Ring, SENDMSG, TIMEOUT,
    WRITE, WRITEV,
};
use crate::kit::{Setting, Watch, files, same};

const LEN: usize = 64;

fn pipe() -> Result<(i32, i32)> {
    let (from, to) = nix::unistd::pipe()?;
    Ok((from.into_raw_fd(), to.into_raw_fd()))
}

/// A read whose time is limited by another request, and one that two wait for, the last of which writes.
pub(crate) fn linked(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (limited, chained, written) = (pipe()?, pipe()?, pipe()?);
    let room = Box::leak(Box::new([0_u8; LEN])).as_mut_ptr() as u64;
    let ask = move || {
        let mut time = [100_000_u64, 0];
        let read = |fd, flags, data| Entry {
            opcode: READ,
            flags,
            fd,
            address: room,
            len: 4,
            data,
            ..Entry::default()
        };
        let limit = |time: &[u64; 2], flags, data| Entry {
            opcode: LINK_TIMEOUT,
            flags,
            address: time.as_ptr() as u64,
            len: 1,
            data,
            ..Entry::default()
        };
        ring.add(read(limited.0, LINK, 1));
        ring.add(limit(&time, 0, 2));
        ring.add(read(chained.0, LINK, 3));
        ring.add(limit(&time, LINK, 4));
        ring.add(Entry {
            opcode: NOP,
            flags: HARDLINK,
            data: 5,
            ..Entry::default()
        });
        ring.add(Entry {
            opcode: WRITE,
            fd: written.1,
            address: room,
            len: 4,
            data: 6,
            ..Entry::default()
        });
        ring.submit(6)?;
        // They have been read by now.
        time = [0, 1];
        std::hint::black_box(&time);
        anyhow::Ok(())
    };
    ask()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        files::write(limited.1, b"once")?;
        let ended = vec![(1, 4), (2, -libc::ECANCELED)];
        same("a read with a limit", &ended, &ring.wait(2)?)?;
        ring.expect_none()?;
        files::write(chained.1, b"text")?;
        let ended = vec![(3, 4), (4, -libc::ECANCELED), (5, 0), (6, 4)];
        same("a chain", &ended, &ring.wait(4)?)?;
        same("written", &b"text".to_vec(), &files::read(written.0, 4)?)?;
        ask()
    })
    .spoiled_by(move || {
        files::write(limited.1, b"once")?;
        ring.wait(2).map(drop)
    }))
}

/// A read that is linked to nothing, and a chain whose last request is, which workers of the kernel wait in.
pub(crate) fn to_nothing(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (alone, chained) = (pipe()?, pipe()?);
    let room = Box::leak(Box::new([0_u8; LEN])).as_mut_ptr() as u64;
    let read = move |fd, data| Entry {
        opcode: READ,
        flags: LINK,
        fd,
        address: room,
        len: 4,
        data,
        ..Entry::default()
    };
    let ask = move || {
        ring.add(read(alone.0, 1));
        ring.submit(1)?;
        ring.add(read(chained.0, 2));
        ring.add(Entry {
            opcode: NOP,
            flags: LINK,
            data: 3,
            ..Entry::default()
        });
        ring.submit(2)
    };
    ask()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        files::write(alone.1, b"once")?;
        same("a read", &vec![(1, 4)], &ring.wait(1)?)?;
        files::write(chained.1, b"text")?;
        same("a chain", &vec![(2, 4), (3, 0)], &ring.wait(2)?)?;
        ask()
    })
    .spoiled_by(move || {
        files::write(alone.1, b"once")?;
        ring.wait(1).map(drop)
    }))
}

/// A request that waits for all before it, one of which waits, and one behind that.
pub(crate) fn drained(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (from, to) = pipe()?;
    let room = Box::leak(Box::new([0_u8; LEN])).as_mut_ptr() as u64;
    let ask = move || {
        ring.add(Entry {
            opcode: READ,
            fd: from,
            address: room,
            len: 4,
            data: 1,
            ..Entry::default()
        });
        for (flags, data) in [(DRAIN, 2), (0, 3)] {
            ring.add(Entry {
                flags,
                data,
                ..Entry::default()
            });
        }
        ring.submit(3)
    };
    ask()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        files::write(to, b"text")?;
        same("all", &vec![(1, 4), (2, 0), (3, 0)], &ring.wait(3)?)?;
        ask()
    })
    .spoiled_by(move || {
        files::write(to, b"text")?;
        ring.wait(3).map(drop)
    }))
}

/// Reads into several parts, and a message, whose structures are written over.
pub(crate) fn messages(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (from, to) = pipe()?;
    let (mine, theirs) = UnixStream::pair()?;
    let (mine, theirs) = (mine.into_raw_fd(), theirs.into_raw_fd());
    let room = Box::leak(Box::new([0_u8; 2 * LEN]));
    let (first, second) = (
        room.as_mut_ptr() as u64,
        room.as_mut_ptr() as u64 + LEN as u64,
    );
    let header = Box::leak(Box::new([0_u64; 7]));
    let ask = move |header: &mut [u64; 7]| {
        let mut parts = [first, 3, second, 16];
        *header = [0, 0, parts.as_ptr() as u64 + 16, 1, 0, 0, 0];
        ring.add(Entry {
            opcode: READV,
            fd: from,
            address: parts.as_ptr() as u64,
            len: 2,
            offset: u64::MAX,
            data: 1,
            ..Entry::default()
        });
        ring.submit(1)?;
        ring.add(Entry {
            opcode: RECVMSG,
            fd: mine,
            address: header.as_ptr() as u64,
            len: 1,
            data: 2,
            ..Entry::default()
        });
        ring.submit(1)?;
        parts = [8, 8, 8, 8];
        std::hint::black_box(&parts);
        *header = [0, 0, 8, 1, 0, 0, 0xffff];
        anyhow::Ok(())
    };
    ask(header)?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        room.fill(0);
        files::write(to, b"onetwo")?;
        same("parts", &vec![(1, 6)], &ring.wait(1)?)?;
        same("the first", &b"one\0"[..], &room[..4])?;
        same("the second", &b"two\0"[..], &room[LEN..][..4])?;
        files::write(theirs, b"message")?;
        same("a message", &vec![(2, 7)], &ring.wait(1)?)?;
        same("what it says", &b"message"[..], &room[LEN..][..7])?;
        // The flags are those of the message.
        same("its header", &[0, 0, 8, 1, 0, 0, 0], header)?;
        ask(header)
    })
    .spoiled_by(move || {
        files::write(to, b"onetwo")?;
        ring.wait(1).map(drop)
    }))
}

/// Writes to a full pipe and messages to a full socket.
pub(crate) fn writes(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (from, to) = pipe()?;
    let (other, full) = pipe()?;
    let [room, size] = [to, full].map(|fd| files::fcntl(fd, libc::F_GETPIPE_SZ, 0));
    let (room, size) = (room? as usize, size? as usize);
    let text = Box::leak(vec![b'x'; LEN].into_boxed_slice()).as_ptr() as u64;
    let fill = move || {
        files::write(to, &vec![b'.'; room])?;
        files::write(full, &vec![b'.'; size])?;
        let mut parts = [text, 4, text, 8];
        ring.add(Entry {
            opcode: WRITE,
            fd: to,
            address: text,
            len: LEN as u32,
            offset: u64::MAX,
            data: 1,
            ..Entry::default()
        });
        ring.add(Entry {
            opcode: WRITEV,
            fd: full,
            address: parts.as_ptr() as u64,
            len: 2,
            offset: u64::MAX,
            data: 2,
            ..Entry::default()
        });
        ring.submit(2)?;
        parts = [8, 8, 8, 8];
        std::hint::black_box(&parts);
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        for (fd, size, data, len) in [(from, room, 1, LEN), (other, size, 2, 12)] {
            let mut got = 0;
            while got < size {
                got += files::read(fd, size - got)?.len();
            }
            same("written", &vec![(data, len as i32)], &ring.wait(1)?)?;
            same("what", &vec![b'x'; len], &files::read(fd, len)?)?;
        }
        fill()
    })
    .spoiled_by(move || {
        ring.nop(8);
        ring.submit(1)
    }))
}

/// Messages to a full socket.
pub(crate) fn sends(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (mine, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    mine.set_nonblocking(true)?;
    let (mine, theirs) = (mine.into_raw_fd(), theirs.into_raw_fd());
    let text = Box::leak(vec![b'x'; LEN].into_boxed_slice()).as_ptr() as u64;
    let fill = move || {
        let mut sent = 0;
        // SAFETY: as many bytes as there are.
        while let got @ 1.. = unsafe { libc::write(mine, text as *const libc::c_void, LEN) } {
            sent += got as usize;
        }
        let poll = files::fcntl(mine, libc::F_GETFL, 0)?;
        files::fcntl(mine, libc::F_SETFL, poll & !libc::O_NONBLOCK)?;
        let mut parts = [text, 8];
        let mut header = [0, 0, parts.as_ptr() as u64, 1, 0, 0, 0];
        ring.add(Entry {
            opcode: SENDMSG,
            fd: mine,
            address: header.as_ptr() as u64,
            len: 1,
            data: 1,
            ..Entry::default()
        });
        ring.submit(1)?;
        files::fcntl(mine, libc::F_SETFL, poll)?;
        (parts, header) = ([8, 8], [8; 7]);
        std::hint::black_box((&parts, &header));
        anyhow::Ok(sent)
    };
    let mut sent = fill()?;
    let drain = move |sent: usize| {
        let mut got = 0;
        while got < sent {
            got += files::read(theirs, sent - got)?.len();
        }
        anyhow::Ok(())
    };
    Ok(Watch::new(move || {
        ring.expect_none()?;
        drain(sent)?;
        same("sent", &vec![(1, 8)], &ring.wait(1)?)?;
        same("what", &vec![b'x'; 8], &files::read(theirs, LEN)?)?;
        sent = fill()?;
        Ok(())
    })
    .spoiled_by(move || {
        ring.nop(8);
        ring.submit(1)
    }))
}

/// A time-out behind a request, which has not begun.
pub(crate) fn later(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let (from, to) = pipe()?;
    let room = Box::leak(Box::new([0_u8; LEN])).as_mut_ptr() as u64;
    let ask = move || {
        let time = [0_u64, 1_000_000];
        ring.add(Entry {
            opcode: READ,
            flags: HARDLINK,
            fd: from,
            address: room,
            len: 4,
            data: 1,
            ..Entry::default()
        });
        ring.add(Entry {
            opcode: TIMEOUT,
            address: time.as_ptr() as u64,
            len: 1,
            data: 2,
            ..Entry::default()
        });
        ring.submit(2)
    };
    ask()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        files::write(to, b"text")?;
        same("both", &vec![(1, 4), (2, -libc::ETIME)], &ring.wait(2)?)?;
        ask()
    })
    .spoiled_by(move || {
        files::write(to, b"text")?;
        ring.wait(2).map(drop)
    }))
}
