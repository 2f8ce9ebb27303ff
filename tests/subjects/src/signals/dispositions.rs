//! What happens when a signal comes.

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, args, procfs, raw, sys, tid};

/// struct kernel_sigaction of x86_64: handler, flags, restorer, mask.
type Action = [u64; 4];

fn get(signal: u64) -> Result<Action> {
    let mut action = [0; 4];
    sys(
        "rt_sigaction",
        raw(
            libc::SYS_rt_sigaction,
            args([signal, 0, action.as_mut_ptr() as u64, 8]),
        ),
    )?;
    Ok(action)
}

fn set(signal: i32, action: Action) -> Result<()> {
    let number = raw(
        libc::SYS_rt_sigaction,
        args([signal as u64, action.as_ptr() as u64, 0, 8]),
    );
    sys("rt_sigaction", number).map(drop)
}

extern "C" fn handler(_: i32) {}

const SA_RESTORER: u64 = 0x0400_0000;

/// All 64, some of them with handlers, flags and masks that are never called.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let at = handler as *const () as u64;
    let flags = |flags: i32| SA_RESTORER | flags as u64;
    set(libc::SIGHUP, [1, 0, 0, 0])?;
    set(
        libc::SIGUSR1,
        [
            at,
            flags(libc::SA_RESTART | libc::SA_SIGINFO),
            0x1234_5000,
            0x00ff_00f0,
        ],
    )?;
    set(
        libc::SIGUSR2,
        [at, flags(libc::SA_NODEFER), 0x1234_6000, u64::MAX],
    )?;
    set(
        libc::SIGCHLD,
        [at, flags(libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT), at, 0],
    )?;
    set(libc::SIGTSTP, [1, 0, 0, 0])?;
    set(
        40,
        [
            at,
            flags(libc::SA_RESETHAND | libc::SA_ONSTACK),
            at,
            1 << 40,
        ],
    )?;
    // The kernel takes SA_UNSUPPORTED and friends out; what is left is what it has kept.
    set(64, [at, flags(0x0000_0800), at, 1 << 63])?;
    Ok(
        Watch::keep(|| (1..=64).map(get).collect::<Result<Vec<_>>>())?
            .spoiled_by(|| set(64, [0, 0, 0, 0])),
    )
}

/// Each thread blocks others.
pub(crate) fn masks(_: &Setting) -> Result<Watch> {
    let block = |mask: u64| {
        let set = &raw const mask as u64;
        let how = libc::SIG_SETMASK as u64;
        sys(
            "rt_sigprocmask",
            raw(libc::SYS_rt_sigprocmask, args([how, set, 0, 8])),
        )
        .map(drop)
    };
    let mut crew = Crew::default();
    for mask in [0_u64, 1 << 63 | 1 << 9, 0xffff_ffff_fffb_feff] {
        crew.add(move || {
            block(mask)?;
            let task = format!("self/task/{}", tid());
            Ok(Watch::keep(move || procfs::status(&task, "SigBlk"))?.spoiled_by(move || block(1)))
        })?;
    }
    Ok(crew
        .watch()
        .and(Watch::keep(|| procfs::status("self", "SigIgn"))?))
}
