//! Resource limits.

use std::fs;

use anyhow::{Result, bail};

use crate::kit::{SOON, Setting, Watch, args, fork, procfs, raw, sys, until};

const UNLIMITED: u64 = u64::MAX;

fn set(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure is alive.
    sys("setrlimit", unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Limits below what is used: nothing more can be mapped.
pub(crate) fn used_up(_: &Setting) -> Result<Watch> {
    let pid = fork(|| {
        // VmSize and VmData are far above it.
        let done = [libc::RLIMIT_AS, libc::RLIMIT_DATA].map(|which| set(which, 4096, UNLIMITED));
        while done.iter().all(Result::is_ok) {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })?;
    until("it sleeps", SOON, || {
        procfs::status(&pid.to_string(), "State").is_ok_and(|state| state.starts_with('S'))
    })?;
    let seen = move || Ok::<_, anyhow::Error>(fs::read_to_string(format!("/proc/{pid}/limits"))?);
    if !seen()?.contains(" 4096 ") {
        bail!("its limits were not set");
    }
    Ok(Watch::keep(move || {
        // Not all it has mapped: another kernel's own pages are more or less.
        let data = procfs::status(&pid.to_string(), "VmData")?;
        Ok((seen()?, data))
    })?
    .spoiled_by(move || {
        let limit = [8192_u64, UNLIMITED];
        let at = limit.as_ptr() as u64;
        let which = [pid as u64, libc::RLIMIT_AS.into(), at, 0];
        sys("prlimit", raw(libc::SYS_prlimit64, args(which))).map(drop)
    }))
}

/// A user who has more processes than RLIMIT_NPROC allows by now: what runs already may still run other programs.
pub(crate) fn too_many(_: &Setting) -> Result<Watch> {
    /// Of nobody else.
    const USER: u32 = 54_321;
    /// Of /proc/PID/stat: the next execve(2) fails (include/linux/sched.h, PF_NPROC_EXCEEDED).
    const EXCEEDED: u64 = 0x1000;
    let mut pids = Vec::new();
    for _ in 0..4 {
        pids.push(fork(|| {
            // SAFETY: take numbers.
            unsafe { libc::setresuid(USER, USER, USER) };
            let done = set(libc::RLIMIT_NPROC, 2, 2);
            while done.is_ok() {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        })?);
    }
    let pid = pids[0];
    let seen = move || -> Result<(u64, String)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let flags = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(6));
        let flags: u64 = flags.unwrap_or_default().parse()?;
        Ok((
            flags & EXCEEDED,
            fs::read_to_string(format!("/proc/{pid}/limits"))?,
        ))
    };
    for pid in pids {
        until("its limit is set", SOON, || {
            fs::read_to_string(format!("/proc/{pid}/limits")).is_ok_and(|text| {
                let mut lines = text.lines();
                lines.any(|line| line.starts_with("Max processes") && line.contains(" 2 "))
            })
        })?;
    }
    Ok(Watch::keep(seen)?.spoiled_by(move || {
        // SAFETY: take numbers; reaps it.
        sys("kill", unsafe { libc::kill(pid, libc::SIGKILL) })?;
        // SAFETY: as above.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// Some lowered, hard limits too: all sixteen must be the same.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    set(libc::RLIMIT_NOFILE, 321, 4321)?;
    set(libc::RLIMIT_CORE, 0, 12345)?;
    set(libc::RLIMIT_STACK, 3 << 20, 64 << 20)?;
    set(libc::RLIMIT_FSIZE, 1 << 30, 1 << 40)?;
    set(libc::RLIMIT_SIGPENDING, 77, 78)?;
    set(libc::RLIMIT_MSGQUEUE, 4096, 8192)?;
    Ok(
        Watch::keep(|| Ok(fs::read_to_string("/proc/self/limits")?))?
            .spoiled_by(|| set(libc::RLIMIT_NOFILE, 322, 4321)),
    )
}
