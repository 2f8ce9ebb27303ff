//! Requests that wait.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::DEFERRED;
use super::ring::{ACCEPT, Entry, POLL_ADD, READ, RECV, Ring, TIMEOUT};
use crate::kit::{LONG_TERM, SOON, Setting, Watch, files, same, timed_long, until};

/// `IORING_CQE_F_MORE`
const MORE: u32 = 1 << 1;
/// `IORING_POLL_ADD_MULTI`, `IORING_ACCEPT_MULTISHOT`
const MULTISHOT: u32 = 1;
const IN: i32 = libc::POLLIN as i32;
/// A count of a thread that has ended.
const WRONG: u64 = 1 << 40;

fn pipe() -> Result<(i32, i32)> {
    let (from, to) = nix::unistd::pipe()?;
    Ok((from.into_raw_fd(), to.into_raw_fd()))
}

fn poll(ring: Ring, fd: i32, data: u64, flags: u32) -> Result<()> {
    ring.add(Entry {
        opcode: POLL_ADD,
        fd,
        len: flags,
        op_flags: libc::POLLIN as u32,
        data,
        ..Entry::default()
    });
    ring.submit(1)
}

/// Waits for one completion.
fn one(ring: Ring) -> Result<(u64, i32, u32)> {
    ring.wait_for(1)?;
    let found = ring.take_with_flags();
    same("a second completion", &None, &ring.take())?;
    found.ok_or_else(|| anyhow::anyhow!("no completion"))
}

/// Polls: one that ends, one that goes on and has told of what is there, one that goes on and has nothing to tell.
fn polls_of(ring: Ring) -> Result<Watch> {
    let [once, told, quiet] = [pipe()?, pipe()?, pipe()?];
    poll(ring, once.0, 1, 0)?;
    poll(ring, told.0, 2, MULTISHOT)?;
    poll(ring, quiet.0, 3, MULTISHOT)?;
    files::write(told.1, b"x")?;
    same("told", &(2, IN, MORE), &one(ring)?)?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        files::write(once.1, b"x")?;
        same("once", &(1, IN, 0), &one(ring)?)?;
        files::read(once.0, 1)?;
        poll(ring, once.0, 1, 0)?;
        files::write(told.1, b"x")?;
        same("told again", &(2, IN, MORE), &one(ring)?)?;
        files::write(quiet.1, b"x")?;
        same("quiet", &(3, IN, MORE), &one(ring)?)?;
        files::read(quiet.0, 1)?;
        ring.expect_none()
    })
    .spoiled_by(move || {
        files::write(once.1, b"x")?;
        one(ring).map(drop)
    }))
}

pub(crate) fn polls(_: &Setting) -> Result<Watch> {
    polls_of(Ring::new(8, 16, 0)?)
}

/// Polls of a ring that asks for its completions; one that nobody has read lies in another.
pub(crate) fn polls_deferred(_: &Setting) -> Result<Watch> {
    let unread = Ring::new(2, 4, DEFERRED)?;
    let [told, other] = [pipe()?, pipe()?];
    poll(unread, told.0, 7, MULTISHOT)?;
    let tell = move || {
        files::write(told.1, b"x")?;
        unread.wait_for(1)
    };
    tell()?;
    let watch = Watch::new(move || {
        same("unread", &(7, IN, MORE), &one(unread)?)?;
        unread.expect_none()?;
        tell()?;
        poll(unread, other.0, 8, 0)?;
        files::write(other.1, b"x")?;
        same("both", &vec![(7, IN), (8, IN)], &unread.wait(2)?)?;
        files::read(other.0, 1)?;
        tell()
    });
    Ok(watch.and(polls_of(Ring::new(8, 16, DEFERRED)?)?))
}

/// Reads of a pipe and an eventfd, a receive of a socket.
pub(crate) fn reads(_: &Setting) -> Result<Watch> {
    const LEN: usize = 64;
    let ring = Ring::new(8, 16, 0)?;
    let (from, to) = pipe()?;
    let (mine, theirs) = UnixStream::pair()?;
    let (mine, theirs) = (mine.into_raw_fd(), theirs.into_raw_fd());
    // SAFETY: no pointers.
    let counter = crate::kit::fd("eventfd", unsafe { libc::eventfd(0, 0) })?;
    let room = Box::leak(vec![0_u8; 3 * LEN].into_boxed_slice());
    let at = room.as_ptr() as u64;
    let wanted = [
        (READ, from, 8, to, b"by pipe.".as_slice()),
        (RECV, mine, LEN, theirs, b"by socket".as_slice()),
        (READ, counter, 8, counter, b"\x05\0\0\0\0\0\0\0".as_slice()),
    ];
    let ask = move |number: usize| {
        let (opcode, fd, len, ..) = wanted[number];
        ring.add(Entry {
            opcode,
            fd,
            address: at + (number * LEN) as u64,
            len: len as u32,
            data: number as u64,
            ..Entry::default()
        });
        ring.submit(1)
    };
    (0..wanted.len()).try_for_each(ask)?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        for (number, (_, _, _, to, bytes)) in wanted.into_iter().enumerate() {
            room.fill(0);
            files::write(to, bytes)?;
            let expected = (number as u64, bytes.len() as i32, 0);
            same("a completion", &expected, &one(ring)?)?;
            let found = &room[number * LEN..][..bytes.len()];
            same("what was read", bytes, found)?;
            ask(number)?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        files::write(to, b"12345678")?;
        one(ring).map(drop)
    }))
}

/// Sockets that wait for connections: one for one, the other for all.
pub(crate) fn accepts(setting: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let [once, always] = ["once", "always"].map(|name| setting.fresh(name));
    let listeners = [UnixListener::bind(&once)?, UnixListener::bind(&always)?];
    let [first, second] = [listeners[0].as_raw_fd(), listeners[1].as_raw_fd()];
    let accept = move |fd: i32, data: u64, priority: u32| {
        ring.add(Entry {
            opcode: ACCEPT,
            priority: priority as u16,
            fd,
            op_flags: libc::SOCK_CLOEXEC as u32,
            data,
            ..Entry::default()
        });
        ring.submit(1)
    };
    accept(first, 1, 0)?;
    accept(second, 2, MULTISHOT)?;
    ring.expect_none()?;
    let spoiled = once.clone();
    Ok(Watch::new(move || {
        let _ = &listeners;
        ring.expect_none()?;
        for (path, data, flags) in [(&always, 2, MORE), (&once, 1, 0), (&always, 2, MORE)] {
            let client = UnixStream::connect(path)?;
            let (found, fd, told) = one(ring)?;
            same("a connection", &(data, flags), &(found, told))?;
            if fd < 0 {
                bail!("accepted: {fd}");
            }
            let closed = files::fcntl(fd, libc::F_GETFD, 0)?;
            same("its flag", &libc::FD_CLOEXEC, &closed)?;
            files::write(client.as_raw_fd(), b"x")?;
            same("what it says", &b"x".to_vec(), &files::read(fd, 1)?)?;
            files::close(fd);
        }
        accept(first, 1, 0)
    })
    .spoiled_by(move || {
        let client = UnixStream::connect(&spoiled)?;
        drop(client);
        one(ring).map(drop)
    }))
}

fn time_out(ring: Ring, seconds: u64, after: u64, flags: u32, data: u64) -> Result<()> {
    let time = [seconds, 0];
    ring.add(Entry {
        opcode: TIMEOUT,
        address: time.as_ptr() as u64,
        len: 1,
        offset: after,
        op_flags: flags,
        data,
        ..Entry::default()
    });
    ring.submit(1)
}

/// Time-outs that are far away: one ends when there are three completions, one is for a time of day.
pub(crate) fn time_outs(_: &Setting) -> Result<Watch> {
    const FAR: u64 = 100_000;
    /// `IORING_TIMEOUT_ABS | IORING_TIMEOUT_REALTIME`
    const TIME_OF_DAY: u32 = 1 | 1 << 3;
    let ring = Ring::new(8, 16, 0)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    time_out(ring, now.as_secs() + FAR, 0, TIME_OF_DAY, 9)?;
    let begin = move || {
        time_out(ring, FAR, 3, 0, 1)?;
        // One of the three.
        ring.nop(5);
        ring.submit(1)?;
        same("the first of three", &vec![(5, 0)], &ring.take_all())
    };
    begin()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        ring.nop(5);
        ring.submit(1)?;
        same("the second of three", &vec![(5, 0)], &ring.take_all())?;
        ring.expect_none()?;
        ring.nop(5);
        ring.submit(1)?;
        same("after three", &vec![(1, 0), (5, 0)], &ring.wait(2)?)?;
        begin()
    })
    .spoiled_by(move || {
        ring.nop(5);
        ring.submit(1)?;
        ring.take();
        Ok(())
    }))
}

/// A thread waits for its time-out, and is stopped more than once.
pub(crate) fn time_out_ends(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(4, 8, 0)?;
    let wait = move || {
        let limit = LONG_TERM.as_secs();
        if time_out(ring, limit, 0, 0, 2).is_err() || ring.enter(0, 1) != 0 {
            return -1;
        }
        match ring.take_all()[..] {
            [(2, result)] => result.into(),
            _ => -2,
        }
    };
    timed_long(libc::SYS_io_uring_enter, wait, -i64::from(libc::ETIME))
}

/// Waits for a short time-out, or for more, which it ends; whether that ended as it should.
///
/// The kernel counts a time-out before it tells of it. On another processor a thread whose ring asks for its completions
/// sees the count and goes on, with a completion that is still to come (io_uring/wait.c, `io_should_wake`).
fn tick(ring: Ring, data: u64, wanted: u64) -> bool {
    const TIME: Duration = Duration::from_millis(10);
    let time = [0, u64::from(TIME.subsec_nanos())];
    let begun = Instant::now();
    ring.add(Entry {
        opcode: TIMEOUT,
        address: time.as_ptr() as u64,
        len: 1,
        data,
        ..Entry::default()
    });
    let mut submitted = ring.enter(1, wanted) == 1;
    let mut found = ring.take_all();
    while submitted && found.is_empty() && begun.elapsed() >= TIME {
        submitted = ring.enter(0, 1) == 0;
        found = ring.take_all();
    }
    submitted && found == [(data, -libc::ETIME)]
}

/// Threads that wait for short time-outs of their rings without a pause: one is over while they are looked at.
pub(crate) fn ticks(_: &Setting) -> Result<Watch> {
    ticking(1)
}

/// The same of threads that wait for two completions, of which one comes.
pub(crate) fn ticks_of_two(_: &Setting) -> Result<Watch> {
    ticking(2)
}

fn ticking(wanted: u64) -> Result<Watch> {
    let counts: [Arc<AtomicU64>; 2] = Default::default();
    for (count, flags) in counts.iter().zip([0, DEFERRED]) {
        Ring::new(4, 8, flags)?;
        let count = count.clone();
        std::thread::spawn(move || {
            let Ok(ring) = Ring::new(4, 8, flags) else {
                return;
            };
            for next in 0.. {
                if !tick(ring, next, wanted) {
                    count.store(WRONG, Ordering::SeqCst);
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let spoiled = counts[0].clone();
    Ok(Watch::new(move || {
        for count in &counts {
            let before = count.load(Ordering::SeqCst);
            let now = || count.load(Ordering::SeqCst);
            until("time-outs end", SOON, || {
                now() >= WRONG || now() > before + 3
            })?;
            if now() >= WRONG {
                bail!("a time-out did not end as it should");
            }
        }
        Ok(())
    })
    .spoiled_by(move || {
        spoiled.store(WRONG, Ordering::SeqCst);
        Ok(())
    }))
}
