//! io_uring(7)

pub(crate) mod awaited;
pub(crate) mod links;
pub(crate) mod named;
pub(crate) mod polled;
pub(crate) mod provided;
pub(crate) mod registered;
mod ring;
pub(crate) mod settings;
pub(crate) mod waiting;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};
use ring::{
    ASYNC, DRAIN, EXT_ARG, Entry, GETEVENTS, MSG_RING, NO_COMPLETION, NOP, OPENAT, READ, Ring,
    WRITE,
};

use crate::kit::{
    Kin, LONG_TERM, SOON, Setting, TERM, Watch, args, blocked, raw, same, timed, timed_long, until,
};

/// Completions that nobody has read, and entries that nobody has submitted.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    // More than there is room for at once.
    for data in 0..37 {
        ring.nop(data);
        ring.submit(1)?;
        same("a completion", &Some((data, 0)), &ring.take())?;
    }
    let fill = move || {
        (0..3).for_each(|data| ring.nop(0x100 + data));
        ring.submit(3)?;
        (0..2).for_each(|data| ring.nop(0x200 + data));
        Ok(())
    };
    fill()?;
    let mut count = 40;
    Ok(Watch::new(move || {
        same("counts", &(count, count), &ring.counts())?;
        let unread = [(0x100, 0), (0x101, 0), (0x102, 0)];
        same("unread", &unread[..], &ring.take_all()[..])?;
        same("submitted", &2, &ring.enter(2, 2))?;
        same("new", &[(0x200, 0), (0x201, 0)][..], &ring.take_all()[..])?;
        same("nothing is left", &0, &ring.enter(1, 0))?;
        count += 5;
        fill()
    })
    .spoiled_by(move || {
        ring.take();
        Ok(())
    }))
}

/// Unread completions that lie at the end of their queue and at its beginning; then more come than there is room for.
pub(crate) fn lap(_: &Setting) -> Result<Watch> {
    const ROOM: u32 = 16;
    let ring = Ring::new(8, ROOM, 0)?;
    let five = move |first: u64| {
        (first..first + 5).for_each(|data| ring.nop(data));
        ring.submit(5)
    };
    let fill = move || {
        // The five before these are at the end of a lap.
        while ring.counts().1 % ROOM != ROOM - 5 {
            ring.nop(0);
            ring.submit(1)?;
            same("a completion", &Some((0, 0)), &ring.take())?;
        }
        five(0)?;
        five(5)
    };
    fill()?;
    Ok(Watch::new(move || {
        // There is room for six.
        five(10)?;
        five(15)?;
        let expected = |numbers: std::ops::Range<u64>| numbers.map(|data| (data, 0)).collect();
        let found: Vec<(u64, i32)> = ring.take_all();
        same("unread", &expected(0..16), &found)?;
        same("asked for the rest", &0, &ring.enter(0, 1))?;
        same("the rest", &expected(16..20), &ring.take_all())?;
        fill()
    })
    .spoiled_by(move || {
        ring.take();
        Ok(())
    }))
}

/// More requests than completions, and more completions than requests.
pub(crate) fn counts(_: &Setting) -> Result<Watch> {
    let [silent, loud] = [Ring::new(4, 8, 0)?, Ring::new(4, 8, 0)?];
    let more = move || {
        for _ in 0..50 {
            silent.add(Entry {
                flags: NO_COMPLETION,
                ..Entry::default()
            });
            silent.submit(1)?;
            // A message to itself: its own completion, and that of the message.
            loud.add(Entry {
                opcode: MSG_RING,
                fd: loud.fd,
                offset: 7,
                len: 9,
                data: 8,
                ..Entry::default()
            });
            same("sent", &1, &loud.enter(1, 2))?;
            same("completions", &2, &loud.take_all().len())?;
        }
        silent.nop(1);
        silent.submit(1)?;
        same("completions", &vec![(1, 0)], &silent.take_all())
    };
    more()?;
    let mut known = (silent.counts(), loud.counts());
    same("counts", &((51, 1), (50, 100)), &known)?;
    Ok(Watch::new(move || {
        same("counts", &known, &(silent.counts(), loud.counts()))?;
        more()?;
        // An entry that waits for those before it: not where some have no completions.
        let drain = Entry {
            opcode: NOP,
            flags: DRAIN,
            ..Entry::default()
        };
        loud.add(drain);
        same("to be drained", &1, &loud.enter(1, 1))?;
        same("drained", &vec![(0, 0)], &loud.take_all())?;
        silent.add(drain);
        silent.enter(1, 0);
        let refused = vec![(0, -libc::EOPNOTSUPP)];
        same("not drained", &refused, &silent.take_all())?;
        known = (silent.counts(), loud.counts());
        Ok(())
    })
    .spoiled_by(move || {
        silent.nop(1);
        silent.submit(1)
    }))
}

/// A child that has its parent's ring.
pub(crate) fn child(setting: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    // The child takes what the parent has submitted, and the other way round.
    let expect = move |data| match ring.take() {
        Some((found, 0)) if found == data => Ok(()),
        other => bail!("a completion: {other:?}, not {data:#x}"),
    };
    ring.nop(0x10);
    ring.submit(1)?;
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            expect(0x10)?;
            ring.nop(0x20);
            ring.submit(1)
        }))
    })?;
    Ok(Watch::new(move || {
        child.check()?;
        expect(0x20)?;
        ring.nop(0x10);
        ring.submit(1)
    })
    .spoiled_by(move || expect(0x10)))
}

/// `IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN`
const DEFERRED: u32 = 1 << 12 | 1 << 13;

/// A thread waits for its ring, to which nobody else may submit; another ring sends it a message.
pub(crate) fn deferred(_: &Setting) -> Result<Watch> {
    let sender = Ring::new(4, 8, 0)?;
    Ring::new(4, 8, DEFERRED)?;
    let number = Arc::new(AtomicI32::new(-1));
    let target = number.clone();
    let mut own = None;
    let wait = move || {
        if own.is_none() {
            own = Ring::new(4, 64, DEFERRED).ok();
        }
        let Some(ring) = own else { return -1 };
        number.store(ring.fd, Ordering::SeqCst);
        // Some of its own first: 3 requests for each message.
        for data in 0..3 {
            ring.nop(data);
            if ring.enter(1, 1) != 1 || ring.take() != Some((data, 0)) {
                return -2;
            }
        }
        let done = ring.enter(0, 1);
        match ring.take_all()[..] {
            [(7, 9)] => done,
            _ => -3,
        }
    };
    blocked(libc::SYS_io_uring_enter, wait, 0, move || {
        let fd = target.load(Ordering::SeqCst);
        // Nobody else may submit.
        let args = args([fd as u64, 1]);
        let other = raw(libc::SYS_io_uring_enter, args);
        same("another thread", &-i64::from(libc::EEXIST), &other)?;
        send(sender, fd)
    })
}

/// Sends a ring a message.
fn send(from: Ring, to: i32) -> Result<()> {
    from.add(Entry {
        opcode: MSG_RING,
        fd: to,
        offset: 7,
        len: 9,
        ..Entry::default()
    });
    from.submit(1)?;
    until("the message is sent", SOON, || from.take_all() == [(0, 0)])
}

/// A message to a ring whose thread has not asked for it: from Linux 6.10 on it waits in the kernel, and is nobody's
/// request.
pub(crate) fn unasked(_: &Setting) -> Result<Watch> {
    let [sender, ring] = [Ring::new(4, 8, 0)?, Ring::new(4, 8, DEFERRED)?];
    let ask = move || {
        let args = args([ring.fd as u64, 0, 0, GETEVENTS]);
        raw(libc::SYS_io_uring_enter, args);
        ring.take_all()
    };
    send(sender, ring.fd)?;
    Ok(Watch::new(move || {
        same("the message", &vec![(7, 9)], &ask())?;
        same("nothing more", &vec![], &ask())?;
        send(sender, ring.fd)
    })
    .spoiled_by(move || {
        ask();
        Ok(())
    }))
}

/// Entries of a call that says that there are more, and does not wait for that.
const TAKEN: u64 = 200;

/// A thread submits fewer entries than it says, over and over, and would wait for more than comes.
pub(crate) fn short(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(256, 512, 0)?;
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = rounds.clone();
    let failure = Arc::new(OnceLock::new());
    let (failed, spoiled) = (failure.clone(), failure.clone());
    std::thread::spawn(move || {
        while failed.get().is_none() {
            (0..TAKEN).for_each(|data| ring.nop(data));
            let done = ring.enter(TAKEN + 1, TAKEN + 1);
            let completed = ring.take_all().len() as u64;
            if done != TAKEN as i64 || completed != TAKEN {
                let _ = failed.set(format!("{done} taken and {completed} completed"));
            }
            // What a ring has counted is to stay below what a new one is brought to, also in a quarter of an hour.
            let round = counted.fetch_add(1, Ordering::SeqCst);
            if round % 100 == 99 {
                let pause = if round < 100_000 { 15 } else { 300 };
                std::thread::sleep(std::time::Duration::from_millis(pause));
            }
        }
    });
    Ok(Watch::new(move || {
        let before = rounds.load(Ordering::SeqCst);
        until("entries are taken", SOON, || {
            failure.get().is_some() || rounds.load(Ordering::SeqCst) > before + 3
        })?;
        match failure.get() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    })
    .spoiled_by(move || {
        let _ = spoiled.set("it ends".to_owned());
        Ok(())
    }))
}

/// A request that a worker of the kernel is at until somebody opens the other end of a FIFO.
pub(crate) fn lasting(setting: &Setting) -> Result<Watch> {
    let ring = Ring::new(4, 8, 0)?;
    let fifo = setting.fresh("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let path = std::ffi::CString::new(fifo.as_os_str().as_encoded_bytes())?;
    let begin = move || {
        ring.add(Entry {
            opcode: OPENAT,
            flags: ASYNC,
            fd: libc::AT_FDCWD,
            address: path.as_ptr() as u64,
            ..Entry::default()
        });
        ring.submit(1)
    };
    begin()?;
    Ok(Watch::new(move || {
        same("not opened", &None, &ring.take())?;
        let other = fs::OpenOptions::new().write(true).open(&fifo)?;
        same("a wait", &0, &ring.enter(0, 1))?;
        drop(other);
        match ring.take() {
            Some((0, fd)) if fd > 0 => nix::unistd::close(fd)?,
            other => bail!("opened: {other:?}"),
        }
        begin()
    }))
}

/// A thread has submitted two requests and waits for three completions.
pub(crate) fn partly(_: &Setting) -> Result<Watch> {
    let [ring, sender] = [Ring::new(4, 8, 0)?, Ring::new(4, 8, 0)?];
    let wait = move || {
        (0..2).for_each(|data| ring.nop(data));
        let done = ring.enter(2, 3);
        match ring.take_all()[..] {
            [(0, 0), (1, 0), (7, 9)] => done,
            _ => -3,
        }
    };
    blocked(libc::SYS_io_uring_enter, wait, 2, move || {
        send(sender, ring.fd)
    })
}

/// A thread has submitted a request and waits for more completions, while another one keeps the ring locked.
pub(crate) fn locked(_: &Setting) -> Result<Watch> {
    /// `IORING_REGISTER_BUFFERS`, `IORING_UNREGISTER_BUFFERS`
    const REGISTER: [u64; 2] = [0, 1];
    const LEN: usize = 4 << 20;
    let [ring, sender] = [Ring::new(4, 8, 0)?, Ring::new(4, 8, 0)?];
    let wait = move || {
        ring.nop(0);
        let done = ring.enter(1, 2);
        match ring.take_all()[..] {
            [(0, 0), (7, 9)] => done,
            _ => -3,
        }
    };
    let watch = blocked(libc::SYS_io_uring_enter, wait, 1, move || {
        send(sender, ring.fd)
    })?;
    let buffer = [ring::memory(LEN)? as u64, LEN as u64];
    std::thread::spawn(move || {
        for round in 0_u64.. {
            for _ in 0..20 {
                let _ = ring.register(REGISTER[0], buffer.as_ptr() as u64, 1);
                let _ = ring.register(REGISTER[1], 0, 0);
            }
            // It is not to take a processor from others for long.
            let pause = if round < 2000 { 200 } else { 20_000 };
            std::thread::sleep(Duration::from_micros(pause));
        }
    });
    Ok(watch)
}

/// Waits for a completion that does not come.
fn in_vain(ring: Ring, limit: Duration) -> i64 {
    let time = [limit.as_secs(), limit.subsec_nanos().into()];
    // struct io_uring_getevents_arg: a mask, its size, the time-out.
    let argument = [0_u64, 0, time.as_ptr() as u64];
    let (flags, at) = (GETEVENTS | EXT_ARG, argument.as_ptr() as u64);
    let args = args([ring.fd as u64, 0, 1, flags, at, 24]);
    let done = raw(libc::SYS_io_uring_enter, args);
    // The call must not have written there.
    match time == [limit.as_secs(), limit.subsec_nanos().into()] {
        true => done,
        false => -1000,
    }
}

/// A wait with a time-out.
pub(crate) fn limited(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(4, 8, 0)?;
    let expected = -i64::from(libc::ETIME);
    timed(
        libc::SYS_io_uring_enter,
        move || in_vain(ring, TERM),
        expected,
    )
}

/// A wait with a time-out, stopped more than once.
pub(crate) fn limited_long(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(4, 8, 0)?;
    let expected = -i64::from(libc::ETIME);
    let wait = move || in_vain(ring, LONG_TERM);
    timed_long(libc::SYS_io_uring_enter, wait, expected)
}

/// Bytes of a block of a file.
const BLOCK: usize = 4096;
/// Blocks that are read or written at once.
const AT_ONCE: usize = 8;

/// A thread writes a file and reads it again, without a pause.
pub(crate) fn file(setting: &Setting) -> Result<Watch> {
    let ring = Ring::new(16, 32, 0)?;
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(true).read(true).write(true);
    let path = setting.fresh("file");
    let file = match options.clone().custom_flags(libc::O_DIRECT).open(&path) {
        Ok(file) => file,
        Err(_) => options.open(&path)?,
    };
    file.set_len((AT_ONCE * BLOCK) as u64)?;
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = rounds.clone();
    let failure = Arc::new(OnceLock::new());
    let failed = failure.clone();
    let spoiled = file.try_clone()?;
    std::thread::spawn(move || {
        for round in 1.. {
            if let Err(why) = turn(ring, file.as_raw_fd(), round) {
                let _ = failed.set(format!("round {round}: {why}"));
                counted.store(u64::MAX, Ordering::SeqCst);
                return;
            }
            counted.store(round, Ordering::SeqCst);
        }
    });
    Ok(Watch::new(move || {
        let before = rounds.load(Ordering::SeqCst);
        until("the file is written", SOON, || {
            rounds.load(Ordering::SeqCst) > before.saturating_add(3)
        })?;
        match failure.get() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    })
    .spoiled_by(move || {
        let rubbish = vec![1; AT_ONCE * BLOCK];
        // Until it comes between a write and its read.
        for _ in 0..2000 {
            spoiled.write_all_at(&rubbish, 0).or_else(|_| {
                let path = format!("/proc/self/fd/{}", spoiled.as_raw_fd());
                fs::OpenOptions::new()
                    .write(true)
                    .open(path)?
                    .write_all_at(&rubbish, 0)
            })?;
        }
        Ok(())
    }))
}

/// Memory at the borders of pages.
#[repr(align(4096))]
struct Blocks([u8; AT_ONCE * BLOCK]);

/// Writes all blocks, and reads them.
fn turn(ring: Ring, fd: i32, round: u64) -> Result<()> {
    let mut written = Box::new(Blocks([0; AT_ONCE * BLOCK]));
    for (number, block) in written.0.chunks_mut(BLOCK).enumerate() {
        block.fill((round as usize * 7 + number) as u8);
    }
    let mut read = Box::new(Blocks([0; AT_ONCE * BLOCK]));
    all(ring, fd, WRITE, written.0.as_mut_ptr() as u64)?;
    all(ring, fd, READ, read.0.as_mut_ptr() as u64)?;
    match written.0 == read.0 {
        true => Ok(()),
        false => bail!("what was read is not what was written"),
    }
}

fn all(ring: Ring, fd: i32, opcode: u8, address: u64) -> Result<()> {
    for number in 0..AT_ONCE {
        let offset = (number * BLOCK) as u64;
        ring.add(Entry {
            opcode,
            fd,
            offset,
            address: address + offset,
            len: BLOCK as u32,
            data: offset,
            ..Entry::default()
        });
    }
    ring.submit(AT_ONCE as u64)?;
    let mut done = Vec::new();
    while done.len() < AT_ONCE {
        same("a wait", &0, &ring.enter(0, 1))?;
        done.extend(ring.take_all());
    }
    done.sort_unstable();
    let expected = (0..AT_ONCE).map(|n| ((n * BLOCK) as u64, BLOCK as i32));
    same("results", &expected.collect::<Vec<_>>(), &done)
}
