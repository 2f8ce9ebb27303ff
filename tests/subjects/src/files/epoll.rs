//! epoll(7)

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT,
    EPOLLOUT, c_int,
};

use crate::kit::files::{close, read, seen, write};
use crate::kit::{SOON, Setting, Watch, args, fd, raw, same, sys, until};

fn create() -> Result<c_int> {
    // SAFETY: takes a number.
    fd("epoll_create", unsafe {
        libc::epoll_create1(libc::EPOLL_CLOEXEC)
    })
}

fn control(epoll: c_int, what: c_int, fd: c_int, events: c_int, data: u64) -> Result<()> {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: data,
    };
    // SAFETY: the event is alive.
    sys("epoll_ctl", unsafe {
        libc::epoll_ctl(epoll, what, fd, &raw mut event)
    })
    .map(drop)
}

/// What is ready now, sorted by its data.
fn ready(epoll: c_int) -> Result<Vec<(u64, u32)>> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: the array has room for 16 events.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 16, 0) };
    sys("epoll_wait", count)?;
    let mut found: Vec<_> = events[..count as usize]
        .iter()
        .map(|event| (event.u64, event.events))
        .collect();
    found.sort_unstable();
    Ok(found)
}

fn pipe() -> Result<[c_int; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    fd("pipe", unsafe {
        libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK)
    })?;
    Ok(ends)
}

/// The `tfd:` lines of fdinfo: number, events, data of every entry.
fn listed(epoll: c_int) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}"))?;
    let entry = |line: &str| {
        line.split("pos:")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("tfd"))
        .map(entry)
        .collect();
    lines.sort_unstable();
    Ok(lines)
}

/// What is told next, at most `most`.
fn next(epoll: c_int, most: c_int) -> Result<Vec<u64>> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: the array has room for 16 events.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), most, 0) };
    sys("epoll_wait", count)?;
    let found = events.iter().take(count as usize);
    Ok(found.map(|event| event.u64).collect())
}

/// Entries that became ready in another order than they were registered in: those that came first are told first, and
/// what was told comes behind the others.
pub(crate) fn order(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let pipes = (0..8)
        .map(|number| {
            let ends = pipe()?;
            let more = [0, EPOLLET, EPOLLONESHOT][number % 3];
            control(epoll, EPOLL_CTL_ADD, ends[0], EPOLLIN | more, number as u64)?;
            Ok(ends)
        })
        .collect::<Result<Vec<_>>>()?;
    let fill = move || {
        for number in [5, 2, 6, 1, 7, 0, 3, 4] {
            write(pipes[number][1], b"x")?;
        }
        anyhow::Ok(())
    };
    let arm = {
        let numbers = listed_numbers(epoll)?;
        move || {
            let again = numbers.iter().filter(|(_, data)| data % 3 == 2);
            let mut again = again.copied();
            again.try_for_each(|(fd, data)| {
                control(epoll, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, data)
            })
        }
    };
    fill()?;
    let before = next(epoll, 3)?;
    same("which came first", &vec![5, 2, 6], &before)?;
    let numbers = listed_numbers(epoll)?;
    let read_all = move || {
        for (fd, _) in &numbers {
            while read(*fd, 9).is_ok_and(|bytes| !bytes.is_empty()) {}
        }
    };
    Ok(Watch::new(move || {
        same("which came next", &vec![1, 7, 0, 3], &next(epoll, 4)?)?;
        same("the rest", &vec![4, 6, 0, 3], &next(epoll, 16)?)?;
        read_all();
        same("of what was read", &Vec::new(), &next(epoll, 16)?)?;
        arm()?;
        fill()?;
        same("which came first", &vec![5, 2, 6], &next(epoll, 3)?)
    })
    .spoiled_by(move || next(epoll, 1).map(drop)))
}

/// The number of every entry, with its data.
fn listed_numbers(epoll: c_int) -> Result<Vec<(c_int, u64)>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}"))?;
    let entry = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let data = words.skip_while(|word| *word != "data:").nth(1)?;
        Some((number, u64::from_str_radix(data, 16).ok()?))
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// Thousands of entries, as a server with many clients has; every fifth is ready, and half of these are edges that were
/// told. One in a hundred watches what another number is open on.
pub(crate) fn many(_: &Setting) -> Result<Watch> {
    const COUNT: u64 = 3000;
    let epoll = create()?;
    let mut expected = Vec::new();
    let mut last = 0;
    for number in 0..COUNT {
        // SAFETY: no pointers.
        let event = unsafe { libc::eventfd((number % 5 == 0).into(), libc::EFD_NONBLOCK) };
        last = fd("eventfd", event)?;
        let edge = if number % 2 == 0 { EPOLLET } else { 0 };
        control(epoll, EPOLL_CTL_ADD, last, EPOLLIN | edge, number)?;
        if number % 100 == 0 {
            // SAFETY: no pointers.
            fd("dup", unsafe { libc::dup(last) })?;
            close(last);
        }
        if number % 5 == 0 && number % 2 == 1 {
            expected.push(number);
        }
    }
    let told = move || {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; COUNT as usize];
        // SAFETY: there is room for so many events.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), COUNT as c_int, 0) };
        sys("epoll_wait", count)?;
        let found = events.iter().take(count as usize);
        let mut found: Vec<u64> = found.map(|event| event.u64).collect();
        found.sort_unstable();
        anyhow::Ok(found)
    };
    // The edges are told.
    told()?;
    same("what is ready", &expected, &told()?)?;
    Ok(Watch::keep(move || Ok((listed(epoll)?, told()?)))?
        .spoiled_by(move || control(epoll, EPOLL_CTL_DEL, last, 0, 0)))
}

/// Entries on pipes that are all ready, but for the one-shot.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let kinds = [
        (EPOLLIN, 0x1_0000_0001),
        (EPOLLIN | EPOLLET, 2),
        (EPOLLIN | EPOLLEXCLUSIVE, 4),
        (EPOLLIN | EPOLLONESHOT, 3),
    ];
    let mut pipes = Vec::new();
    for (events, data) in kinds {
        let ends = pipe()?;
        control(epoll, EPOLL_CTL_ADD, ends[0], events, data)?;
        if events & EPOLLONESHOT == 0 {
            write(ends[1], b"x")?;
        }
        pipes.push(ends);
    }
    let ends = pipe()?;
    control(epoll, EPOLL_CTL_ADD, ends[1], EPOLLOUT, u64::MAX)?;
    // The edge is told.
    ready(epoll)?;
    let on = EPOLLIN as u32;
    let quiet = [(4, on), (0x1_0000_0001, on), (u64::MAX, EPOLLOUT as u32)];
    let (edge, once) = (pipes[1], pipes[3]);
    Ok(
        Watch::keep(move || Ok((listed(epoll)?, seen(epoll)?)))?.and(
            Watch::new(move || {
                same("what is ready", &quiet.to_vec(), &ready(epoll)?)?;
                same("edges told again", &quiet.to_vec(), &ready(epoll)?)?;
                // A new edge is told, and the one-shot once.
                write(edge[1], b"y")?;
                write(once[1], b"y")?;
                let mut all = quiet.to_vec();
                all.extend([(2, on), (3, on)]);
                all.sort_unstable();
                same("what is ready then", &all, &ready(epoll)?)?;
                same("the one-shot again", &quiet.to_vec(), &ready(epoll)?)?;
                read(edge[0], 1)?;
                read(once[0], 1)?;
                control(epoll, EPOLL_CTL_MOD, once[0], EPOLLIN | EPOLLONESHOT, 3)
            })
            .spoiled_by(move || control(epoll, EPOLL_CTL_DEL, edge[0], 0, 0)),
        ),
    )
}

/// A signal is told by an epoll that watches a signalfd, and by one that watches that epoll: nobody else
/// may ask them, who would see no signal of his own and take it from their lists.
pub(crate) fn signals(_: &Setting) -> Result<Watch> {
    let mask = 1_u64 << 9;
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let made = raw(
        libc::SYS_signalfd4,
        args([
            u64::MAX,
            &raw const mask as u64,
            8,
            libc::SFD_NONBLOCK as u64,
        ]),
    );
    let signals = fd("signalfd", i32::try_from(made)?)?;
    let (inner, outer) = (create()?, create()?);
    control(inner, EPOLL_CTL_ADD, signals, EPOLLIN, 1)?;
    control(outer, EPOLL_CTL_ADD, inner, EPOLLIN, 2)?;
    let raise = || {
        // SAFETY: a signal that is blocked, for this process.
        sys("kill", unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) }).map(drop)
    };
    raise()?;
    Ok(Watch::new(move || {
        let on = EPOLLIN as u32;
        same("the outer epoll", &vec![(2, on)], &ready(outer)?)?;
        same("the inner epoll", &vec![(1, on)], &ready(inner)?)?;
        let info = read(signals, 128)?;
        same("the signal", &(libc::SIGUSR1 as u8), &info[0])?;
        same("the epoll then", &vec![], &ready(inner)?)?;
        raise()
    })
    .spoiled_by(move || read(signals, 128).map(drop)))
}

/// Edges: one that was told is not told again though its pipe is full still, one that was not is told once.
/// The epoll of one of them is watched by another one.
pub(crate) fn edges(_: &Setting) -> Result<Watch> {
    let [old, new, inner, outer] = [create()?, create()?, create()?, create()?];
    let [told, fresh, nested] = [pipe()?, pipe()?, pipe()?];
    let (edge, on) = (EPOLLIN | EPOLLET, EPOLLIN as u32);
    for (epoll, target, data) in [(old, told[0], 1), (new, fresh[0], 2), (outer, inner, 3)] {
        control(epoll, EPOLL_CTL_ADD, target, edge, data)?;
    }
    control(inner, EPOLL_CTL_ADD, nested[0], EPOLLIN, 4)?;
    for ends in [told, fresh, nested] {
        write(ends[1], b"x")?;
    }
    same("it is told", &vec![(1, on)], &ready(old)?)?;
    same("the nested one is told", &vec![(3, on)], &ready(outer)?)?;
    Ok(Watch::new(move || {
        same("told before", &Vec::new(), &ready(old)?)?;
        same("not told before", &vec![(2, on)], &ready(new)?)?;
        same("told by now", &Vec::new(), &ready(new)?)?;
        same("the inner one", &vec![(4, on)], &ready(inner)?)?;
        same("the outer one", &Vec::new(), &ready(outer)?)?;
        write(told[1], b"y")?;
        same("a new edge", &vec![(1, on)], &ready(old)?)?;
        write(fresh[1], b"y").map(drop)
    })
    .spoiled_by(move || control(old, EPOLL_CTL_MOD, told[0], edge, 1)))
}

/// Edges of what has ended: a pipe that nobody reads, and a child that nobody has waited for. They were told.
pub(crate) fn ended(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let (ends, child) = (pipe()?, crate::kit::fork(|| ())?);
    let info = [0_u8; 128];
    let all = libc::WEXITED | libc::WNOWAIT;
    raw(
        libc::SYS_waitid,
        args([1, child as u64, info.as_ptr() as u64, all as u64]),
    );
    let made = raw(libc::SYS_pidfd_open, args([child as u64]));
    let child = fd("pidfd_open", i32::try_from(made)?)?;
    close(ends[0]);
    control(epoll, EPOLL_CTL_ADD, ends[1], EPOLLOUT | EPOLLET, 1)?;
    control(epoll, EPOLL_CTL_ADD, child, EPOLLIN | EPOLLET, 2)?;
    let level = pipe()?;
    control(epoll, EPOLL_CTL_ADD, level[1], EPOLLOUT, 3)?;
    same("they are told", &3, &ready(epoll)?.len())?;
    Ok(
        Watch::new(move || same("told again", &vec![(3, EPOLLOUT as u32)], &ready(epoll)?))
            .spoiled_by(move || control(epoll, EPOLL_CTL_MOD, child, EPOLLIN | EPOLLET, 2)),
    )
}

/// A one-shot that has fired is off, even when its pipe loses its writer.
pub(crate) fn oneshot(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let (ends, gone) = (pipe()?, pipe()?);
    for (end, data) in [(ends[0], 1), (gone[0], 2)] {
        control(epoll, EPOLL_CTL_ADD, end, EPOLLIN | EPOLLONESHOT, data)?;
    }
    write(ends[1], b"x")?;
    write(gone[1], b"x")?;
    let on = EPOLLIN as u32;
    same("both fire", &vec![(1, on), (2, on)], &ready(epoll)?)?;
    close(gone[1]);
    Ok(Watch::new(move || {
        same("they are off", &Vec::new(), &ready(epoll)?)?;
        // Set again, the first one fires again.
        control(epoll, EPOLL_CTL_MOD, ends[0], EPOLLIN | EPOLLONESHOT, 1)?;
        same("it fires", &vec![(1, on)], &ready(epoll)?)
    })
    .spoiled_by(move || control(epoll, EPOLL_CTL_MOD, ends[0], EPOLLIN | EPOLLONESHOT, 1)))
}

/// One-shots of pipes that have fired, and of which one was read empty since and one filled, stay off when the other
/// end goes.
pub(crate) fn oneshot_pipes(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let (empty, full) = (pipe()?, pipe()?);
    control(epoll, EPOLL_CTL_ADD, empty[0], EPOLLIN | EPOLLONESHOT, 1)?;
    control(epoll, EPOLL_CTL_ADD, full[1], EPOLLOUT | EPOLLONESHOT, 2)?;
    write(empty[1], b"x")?;
    let fired = vec![(1, EPOLLIN as u32), (2, EPOLLOUT as u32)];
    same("both fire", &fired, &ready(epoll)?)?;
    read(empty[0], 1)?;
    let room = size(full[1])?;
    write(full[1], &vec![b'x'; room])?;
    let off = move || {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}"))?;
        let events = |line: &str| Some(line.split_once("events:")?.1.trim().get(..8)?.to_owned());
        let events: Vec<String> = info.lines().filter_map(events).collect();
        anyhow::Ok((events, size(full[1])?))
    };
    Ok(Watch::new(move || {
        let modes = format!("{EPOLLONESHOT:8x}");
        same("they are off", &(vec![modes; 2], room), &off()?)?;
        same("nothing is told", &Vec::new(), &ready(epoll)?)
    })
    .spoiled_by(move || control(epoll, EPOLL_CTL_MOD, empty[0], EPOLLIN | EPOLLONESHOT, 1)))
}

/// The size of a pipe.
fn size(end: c_int) -> Result<usize> {
    // SAFETY: no pointer.
    let size = sys("F_GETPIPE_SZ", unsafe {
        libc::fcntl(end, libc::F_GETPIPE_SZ)
    })?;
    Ok(size as usize)
}

/// An epoll in an epoll in an epoll.
pub(crate) fn nested(_: &Setting) -> Result<Watch> {
    let [inner, middle, outer] = [create()?, create()?, create()?];
    let ends = pipe()?;
    control(outer, EPOLL_CTL_ADD, middle, EPOLLIN, 10)?;
    control(middle, EPOLL_CTL_ADD, inner, EPOLLIN, 20)?;
    control(inner, EPOLL_CTL_ADD, ends[0], EPOLLIN, 30)?;
    let on = EPOLLIN as u32;
    Ok(
        Watch::keep(move || Ok([listed(outer)?, listed(middle)?, listed(inner)?]))?.and(
            Watch::new(move || {
                let all = || Ok::<_, anyhow::Error>([ready(outer)?, ready(middle)?, ready(inner)?]);
                same("nothing is ready", &[vec![], vec![], vec![]], &all()?)?;
                write(ends[1], b"x")?;
                same(
                    "all are ready",
                    &[vec![(10, on)], vec![(20, on)], vec![(30, on)]],
                    &all()?,
                )?;
                read(ends[0], 1).map(drop)
            })
            .spoiled_by(move || control(middle, EPOLL_CTL_DEL, inner, 0, 0)),
        ),
    )
}

/// It watches something under the number that it has itself by now.
pub(crate) fn own_number(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let [reader, writer] = pipe()?;
    control(epoll, EPOLL_CTL_ADD, reader, EPOLLIN | EPOLLEXCLUSIVE, 7)?;
    // SAFETY: takes numbers.
    let kept = fd("dup", unsafe { libc::dup(reader) })?;
    // SAFETY: takes numbers.
    fd("dup2", unsafe { libc::dup2(epoll, reader) })?;
    close(epoll);
    let epoll = reader;
    Ok(Watch::new(move || {
        same("nothing is ready", &Vec::new(), &ready(epoll)?)?;
        write(writer, b"x")?;
        same("the pipe is", &vec![(7, EPOLLIN as u32)], &ready(epoll)?)?;
        read(kept, 1).map(drop)
    })
    .spoiled_by(move || {
        close(kept);
        Ok(())
    }))
}

/// The number that was registered is another file now, the description lives under another one.
pub(crate) fn dup(_: &Setting) -> Result<Watch> {
    let epoll = create()?;
    let ends = pipe()?;
    control(epoll, EPOLL_CTL_ADD, ends[0], EPOLLIN, 7)?;
    // SAFETY: takes numbers.
    let other = fd("dup", unsafe { libc::dup(ends[0]) })?;
    close(ends[0]);
    let on = EPOLLIN as u32;
    Ok(Watch::keep(move || listed(epoll))?.and(
        Watch::new(move || {
            same("nothing is ready", &Vec::new(), &ready(epoll)?)?;
            write(ends[1], b"x")?;
            same("it is ready", &vec![(7, on)], &ready(epoll)?)?;
            read(other, 1)?;
            // It cannot be had by the other number.
            same(
                "the other number",
                &true,
                &control(epoll, EPOLL_CTL_MOD, other, EPOLLIN, 8).is_err(),
            )
        })
        .spoiled_by(move || {
            close(other);
            Ok(())
        }),
    ))
}

/// Edges of a timerfd, one after the other: each is waited for, and the next is armed when it is told.
pub(crate) fn timed_edge(_: &Setting) -> Result<Watch> {
    static EDGES: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    let epoll = create()?;
    // SAFETY: takes numbers.
    let timer = fd("timerfd_create", unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK)
    })?;
    control(epoll, EPOLL_CTL_ADD, timer, EPOLLIN | EPOLLET, 1)?;
    let next = move || {
        let value = [0_u64, 0, 0, 300_000_000];
        let arguments = [timer as u64, 0, value.as_ptr() as u64];
        raw(libc::SYS_timerfd_settime, args(arguments))
    };
    let mut waiter = Some(std::thread::spawn(move || {
        while !STOP.load(Ordering::SeqCst) && next() == 0 {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            // SAFETY: there is room for one event.
            while unsafe { libc::epoll_wait(epoll, &raw mut event, 1, -1) } != 1 {}
            EDGES.fetch_add(1, Ordering::SeqCst);
        }
    }));
    Ok(Watch::new(|| {
        let before = EDGES.load(Ordering::SeqCst);
        until("another edge is told", SOON / 4, || {
            EDGES.load(Ordering::SeqCst) > before
        })
    })
    .spoiled_by(move || {
        STOP.store(true, Ordering::SeqCst);
        match waiter.take().map(std::thread::JoinHandle::join) {
            Some(Ok(())) => Ok(()),
            _ => anyhow::bail!("the thread has panicked"),
        }
    }))
}
