//! Pipes.

use anyhow::{Result, bail};
use libc::{
    F_GETPIPE_SZ, F_SETPIPE_SZ, O_CLOEXEC, O_DIRECT, O_NONBLOCK, POLLERR, POLLHUP, POLLIN, POLLOUT,
};

use crate::kit::files::{close, fcntl, read, ready, seen, share, write};
use crate::kit::{Kin, Setting, Watch, fd, same, sys};

/// The ends for reading and for writing.
fn pipe(flags: i32) -> Result<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    fd("pipe", unsafe { libc::pipe2(ends.as_mut_ptr(), flags) })?;
    Ok(ends)
}

/// Bytes in it (FIONREAD).
fn held(end: i32) -> Result<i32> {
    let mut count = 0;
    // SAFETY: the kernel writes one int.
    sys("FIONREAD", unsafe {
        libc::ioctl(end, libc::FIONREAD, &raw mut count)
    })?;
    Ok(count)
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Empty, with a little and with more than a page.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut pipes = Vec::new();
    for (len, flags) in [
        (0, O_NONBLOCK),
        (5, O_CLOEXEC),
        (10_000, 0),
        (65_536, O_NONBLOCK),
    ] {
        let ends = pipe(flags)?;
        write(ends[1], &text(len))?;
        pipes.push((ends, len));
    }
    let flags: Vec<i32> = pipes.iter().flat_map(|(ends, _)| *ends).collect();
    let first = pipes[1].0;
    let observe = move || {
        flags
            .iter()
            .map(|end| seen(*end).map(|(fl, fd, _)| (fl, fd)))
            .collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            for ([from, to], len) in &pipes {
                same("bytes in it", &(*len as i32), &held(*from)?)?;
                if *len > 0 {
                    same("the data", &text(*len), &read(*from, 1 << 20)?)?;
                    write(*to, &text(*len))?;
                }
            }
            Ok(())
        })
        .spoiled_by(move || read(first[0], 1).map(drop)),
    ))
}

/// Given to somebody else, and closed to all (fchown(2), fchmod(2)).
pub(crate) fn mode(_: &Setting) -> Result<Watch> {
    let ends = pipe(0)?;
    // SAFETY: these take numbers.
    unsafe {
        sys("fchown", libc::fchown(ends[0], 7, 8))?;
        sys("fchmod", libc::fchmod(ends[1], 0o246))?;
    }
    let state = move |end| {
        // SAFETY: zeros are a valid structure, and the kernel fills it.
        unsafe {
            let mut state: libc::stat = std::mem::zeroed();
            sys("fstat", libc::fstat(end, &raw mut state))?;
            anyhow::Ok((state.st_mode, state.st_uid, state.st_gid))
        }
    };
    Ok(
        Watch::keep(move || Ok((state(ends[0])?, state(ends[1])?)))?.spoiled_by(move || {
            // SAFETY: takes numbers.
            sys("fchmod", unsafe { libc::fchmod(ends[0], 0o600) }).map(drop)
        }),
    )
}

/// Larger and smaller than usual, filled to the last byte.
pub(crate) fn size(_: &Setting) -> Result<Watch> {
    let mut pipes = Vec::new();
    for wanted in [4096, 1 << 18, 1 << 20] {
        let ends = pipe(O_NONBLOCK)?;
        let size = fcntl(ends[0], F_SETPIPE_SZ, wanted)?;
        write(ends[1], &text(size as usize))?;
        pipes.push((ends, size));
    }
    let last = pipes[2].0;
    Ok(Watch::new(move || {
        for ([from, to], size) in &pipes {
            same("the size", size, &fcntl(*from, F_GETPIPE_SZ, 0)?)?;
            same("room for more", &false, &write(*to, b"x").is_ok())?;
            same("the data", &text(*size as usize), &read(*from, 1 << 21)?)?;
            write(*to, &text(*size as usize))?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        read(last[0], 1 << 21)?;
        fcntl(last[0], F_SETPIPE_SZ, 65536)?;
        write(last[1], &text(65536))
    }))
}

/// O_DIRECT: each read returns one write, the rest of it is lost.
pub(crate) fn packets(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe(O_DIRECT | O_NONBLOCK)?;
    let sizes = [1, 100, 4096, 7];
    let fill = move || sizes.iter().try_for_each(|size| write(to, &text(*size)));
    fill()?;
    Ok(Watch::new(move || {
        same("the flag", &O_DIRECT, &(seen(to)?.0 & O_DIRECT))?;
        for size in sizes {
            same("a packet", &text(size), &read(from, 8192)?)?;
        }
        same("more packets", &true, &read(from, 1).is_err())?;
        fill()
    })
    .spoiled_by(move || read(from, 1).map(drop)))
}

/// Two readers and two writers in two processes.
pub(crate) fn shared(setting: &Setting) -> Result<Watch> {
    let [from, to] = pipe(0)?;
    write(to, b"abcdef")?;
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            same("what the child reads", b"abc".as_slice(), &read(from, 3)?)?;
            write(to, b"xyz")
        }))
    })?;
    Ok(Watch::new(move || {
        for end in [from, to] {
            same("one description", &true, &share(end, child.pid, end)?)?;
        }
        child.check()?;
        same("what is left", b"defxyz".as_slice(), &read(from, 100)?)?;
        write(to, b"abcdef")
    })
    .spoiled_by(move || read(from, 1).map(drop)))
}

/// No writer: end of file after the data. No reader: an error.
pub(crate) fn widowed(_: &Setting) -> Result<Watch> {
    // SAFETY: a signal that would end the subject is ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let [empty, gone] = pipe(0)?;
    close(gone);
    let [held_back, gone] = pipe(0)?;
    write(gone, b"last words")?;
    close(gone);
    let [gone, to] = pipe(0)?;
    close(gone);
    let mut read_already = false;
    Ok(Watch::new(move || {
        same("end of file", &POLLHUP, &ready(empty, POLLIN)?)?;
        same("nothing", &0, &read(empty, 1)?.len())?;
        same("no reader", &POLLERR, &(ready(to, POLLOUT)? & POLLERR))?;
        if write(to, b"x").is_ok() {
            bail!("somebody reads now");
        }
        // The data can be had once only: a part of it at each check.
        let expected = if read_already { 9 } else { 10 };
        let count = held(held_back)?;
        if count > expected || count == 0 && !read_already {
            bail!("{count} bytes wait");
        }
        read_already = true;
        read(held_back, 1)?;
        same(
            "one less",
            &(count - i32::from(count > 0)),
            &held(held_back)?,
        )
    })
    .spoiled_by(move || {
        let [_, writer] = pipe(0)?;
        // SAFETY: both are descriptors of ours.
        fd("dup2", unsafe { libc::dup2(writer, to) }).map(drop)
    }))
}

/// Two pipes whose buffers are the same pages.
pub(crate) fn tee(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe(O_NONBLOCK)?;
    let [other_from, other_to] = pipe(O_NONBLOCK)?;
    let fill = move || {
        write(to, &text(9000))?;
        // SAFETY: takes numbers.
        let done = unsafe { libc::tee(from, other_to, 9000, libc::SPLICE_F_NONBLOCK) };
        sys("tee", done)?;
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::new(move || {
        same("the first", &text(9000), &read(from, 10_000)?)?;
        same("the second", &text(9000), &read(other_from, 10_000)?)?;
        fill()
    })
    .spoiled_by(move || read(from, 1).map(drop)))
}

/// A pipe that is filled in some way.
fn filled(fill: impl Fn(i32, i32) -> Result<()>) -> Result<[i32; 2]> {
    let ends = pipe(O_NONBLOCK)?;
    fill(ends[0], ends[1])?;
    Ok(ends)
}

/// Bytes from the start of a page on: how many pages they lie in is how many buffers of a pipe they take.
#[repr(align(4096))]
struct Aligned([u8; 3 * 4096]);

impl Aligned {
    fn leak(bytes: &[u8]) -> &'static [u8] {
        let all = Box::leak(Box::new(Aligned([0; 3 * 4096])));
        all.0[..bytes.len()].copy_from_slice(bytes);
        &all.0[..bytes.len()]
    }
}

/// Pipes whose buffers are full to different parts.
fn uneven() -> Result<Vec<[i32; 2]>> {
    let text = &text;
    let several = |sizes: &'static [usize]| {
        filled(move |_, to| sizes.iter().try_for_each(|size| write(to, &text(*size))))
    };
    let mut pipes = vec![
        several(&[1])?,
        several(&[100, 5000, 5000])?,
        several(&[3000; 15])?,
        several(&[3000; 16])?,
    ];
    pipes.push(filled(|from, to| {
        write(to, &text(65_536))?;
        read(from, 100).map(drop)
    })?);
    pipes.push(filled(|from, to| {
        (0..5).try_for_each(|_| write(to, &text(5000)))?;
        read(from, 4999).map(drop)
    })?);
    // Pages of this process.
    let page = Aligned::leak(&text(9000));
    pipes.push(filled(|_, to| {
        let part = libc::iovec {
            iov_base: page.as_ptr().cast_mut().cast(),
            iov_len: page.len(),
        };
        // SAFETY: the bytes stay for ever.
        sys("vmsplice", unsafe {
            libc::vmsplice(to, &raw const part, 1, 0)
        })?;
        write(to, b"more")
    })?);
    // Of another pipe, and of a file.
    let [from, _] = pipes[1];
    pipes.push(filled(|_, to| {
        write(to, b"before")?;
        // SAFETY: takes numbers.
        sys("tee", unsafe { libc::tee(from, to, 6000, 0) })?;
        Ok(())
    })?);
    let file = crate::kit::files::open("/proc/self/exe", libc::O_RDONLY)?;
    pipes.push(filled(|_, to| {
        for at in 0..8 {
            let mut offset = at * 500;
            // SAFETY: the offset is alive.
            sys("splice", unsafe {
                libc::splice(file, &raw mut offset, to, core::ptr::null_mut(), 1000, 0)
            })?;
        }
        Ok(())
    })?);
    close(file);
    Ok(pipes)
}

/// What a writer of single bytes can still put in, and whether poll(2) says so.
fn left(end: i32) -> Result<(usize, i16)> {
    let ready = ready(end, POLLOUT)?;
    let mut more = 0;
    while write(end, b"+").is_ok() {
        more += 1;
    }
    Ok((more, ready))
}

/// Every pipe has the same room as a like one that was made later, and is filled the same way again.
pub(crate) fn room(_: &Setting) -> Result<Watch> {
    let pipes = uneven()?;
    let spoiled = pipes[2];
    Ok(Watch::new(move || {
        let fresh = uneven()?;
        for ([from, to], [other, other_to]) in pipes.iter().zip(&fresh) {
            same("bytes in it", &held(*other)?, &held(*from)?)?;
            same("room for more", &left(*other_to)?, &left(*to)?)?;
            same("the data", &read(*other, 1 << 17)?, &read(*from, 1 << 17)?)?;
        }
        // The next ones get the same numbers.
        for end in fresh.iter().flatten() {
            close(*end);
        }
        for (end, next) in pipes.iter().flatten().zip(uneven()?.iter().flatten()) {
            // SAFETY: both are descriptors of ours.
            sys("dup2", unsafe { libc::dup2(*next, *end) })?;
            close(*next);
        }
        Ok(())
    })
    .spoiled_by(move || {
        let all = read(spoiled[0], 1 << 17)?;
        write(spoiled[1], &all)
    }))
}

/// A reference (`O_PATH`) to a pipe, through which others can open it.
pub(crate) fn reference(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe(O_NONBLOCK)?;
    write(to, b"abc")?;
    let reference = crate::kit::files::open(format!("/proc/self/fd/{from}"), libc::O_PATH)?;
    let flags = seen(reference)?.0;
    Ok(Watch::new(move || {
        same("its flags", &flags, &seen(reference)?.0)?;
        same("reading from it", &true, &read(reference, 1).is_err())?;
        let path = format!("/proc/self/fd/{reference}");
        let end = crate::kit::files::open(path, libc::O_RDONLY | O_NONBLOCK)?;
        same("what is in it", b"abc".as_slice(), &read(end, 10)?)?;
        close(end);
        write(to, b"abc")
    })
    .spoiled_by(move || {
        // SAFETY: both are descriptors of ours.
        fd("dup2", unsafe { libc::dup2(from, reference) }).map(drop)
    }))
}
