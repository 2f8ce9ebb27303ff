//! Signals that descriptors send.

use anyhow::Result;
use libc::{F_GETOWN, F_SETFL, F_SETOWN, O_ASYNC, O_NONBLOCK};

use crate::kit::files::{F_GETSIG, F_SETSIG, fcntl, read, seen, write};
use crate::kit::{Setting, Watch, args, fd, raw, same, tid};

/// struct f_owner_ex
fn owner(end: i32) -> Result<[i32; 2]> {
    let mut owner = [0; 2];
    // SAFETY: the kernel writes two ints. 16 is F_GETOWN_EX.
    crate::kit::sys("F_GETOWN_EX", unsafe {
        libc::fcntl(end, 16, owner.as_mut_ptr())
    })?;
    Ok(owner)
}

/// What kind of owner somebody was who has ended.
pub(crate) fn ended(_: &Setting) -> Result<Watch> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    fd("pipe", unsafe {
        libc::pipe2(ends.as_mut_ptr(), O_NONBLOCK)
    })?;
    // SAFETY: a child without threads that only ends.
    let child = match unsafe { libc::fork() } {
        // SAFETY: ends it.
        0 => unsafe { libc::_exit(0) },
        child => child,
    };
    crate::kit::sys("fork", child)?;
    fcntl(ends[0], F_SETOWN, child)?;
    // SAFETY: the status is not asked for.
    crate::kit::sys("waitpid", unsafe {
        libc::waitpid(child, core::ptr::null_mut(), 0)
    })?;
    same("a process, and none", &[1, 0], &owner(ends[0])?)?;
    Ok(Watch::keep(move || owner(ends[0]))?
        .spoiled_by(move || fcntl(ends[0], F_SETOWN, 1).map(drop)))
}

/// A pipe that signals the process, and one that signals a thread with another signal.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mask = 1_u64 << 41 | 1 << (libc::SIGIO - 1);
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let pipe = || {
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        fd("pipe", unsafe {
            libc::pipe2(ends.as_mut_ptr(), O_NONBLOCK)
        })?;
        anyhow::Ok(ends)
    };
    let (one, two) = (pipe()?, pipe()?);
    fcntl(one[0], F_SETOWN, std::process::id() as i32)?;
    let thread = [0, tid()];
    // SAFETY: the kernel reads two ints. 15 is F_SETOWN_EX; type 0 is F_OWNER_TID.
    crate::kit::sys("F_SETOWN_EX", unsafe {
        libc::fcntl(two[0], 15, thread.as_ptr())
    })?;
    fcntl(two[0], F_SETSIG, 42)?;
    for end in [one[0], two[0]] {
        fcntl(end, F_SETFL, O_ASYNC | O_NONBLOCK)?;
    }
    let observe = move || {
        let mut all = Vec::new();
        for end in [one[0], two[0]] {
            all.push((
                seen(end)?.0,
                owner(end)?,
                fcntl(end, F_GETSIG, 0)?,
                fcntl(end, F_GETOWN, 0)?,
            ));
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || fcntl(two[0], F_SETSIG, 41).map(drop))
        .and(Watch::new(move || {
            for (ends, signal) in [(one, libc::SIGIO), (two, 42)] {
                write(ends[1], b"x")?;
                read(ends[0], 1)?;
                let (none, mut info) = ([0_u64; 2], [0_u64; 16]);
                let arguments = [
                    &raw const mask as u64,
                    info.as_mut_ptr() as u64,
                    none.as_ptr() as u64,
                    8,
                ];
                same(
                    "the signal",
                    &i64::from(signal),
                    &raw(libc::SYS_rt_sigtimedwait, args(arguments)),
                )?;
            }
            Ok(())
        })))
}
