//! seccomp(2)

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, bail};
use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    sock_filter,
};

use crate::kit::{
    Crew, SOON, Setting, Watch, errno, fd, fork, give_way, procfs, raw, same, sys, tid, until,
};

/// A filter for this thread: the call fails with this error number.
pub(crate) fn install(call: i64, error: u32) -> Result<()> {
    answer(call, SECCOMP_RET_ERRNO | error)
}

/// A filter for this thread: what becomes of the call.
pub(crate) fn answer(call: i64, verdict: u32) -> Result<()> {
    answer_with(call, verdict, 0).map(drop)
}

/// A filter for this thread that asks who has the descriptor.
pub(super) fn ask(call: i64) -> Result<i32> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    Ok(i32::try_from(answer_with(
        call,
        libc::SECCOMP_RET_USER_NOTIF,
        flags,
    )?)?)
}

fn answer_with(call: i64, verdict: u32, flags: u64) -> Result<i64> {
    let op = |code: u32, k: u32, jt: u8| sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    let mut program = [
        op(BPF_LD | BPF_W | BPF_ABS, 0, 0),
        sock_filter {
            jf: 1,
            ..op(BPF_JMP | BPF_JEQ | BPF_K, call as u32, 0)
        },
        op(BPF_RET | BPF_K, verdict, 0),
        op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program is alive; this thread stays able to do all else.
    sys("seccomp", unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
}

/// What the calls of this thread return: each is the error number, or 0.
fn denied() -> Result<[i32; 3]> {
    Ok(
        [libc::SYS_getppid, libc::SYS_getpgrp, libc::SYS_sched_yield].map(|call| {
            // SAFETY: these calls take nothing.
            match unsafe { libc::syscall(call) } {
                -1 => errno(),
                _ => 0,
            }
        }),
    )
}

fn watch(expected: [i32; 3]) -> Watch {
    let task = format!("self/task/{}", tid());
    Watch::new(move || {
        let mode = if expected == [0; 3] { "0" } else { "2" };
        same("the mode", mode, &procfs::status(&task, "Seccomp")?)?;
        let filters = expected.iter().filter(|error| **error != 0).count();
        same(
            "the filters",
            &filters.to_string(),
            &procfs::status(&task, "Seccomp_filters")?,
        )?;
        same("what is denied", &expected, &denied()?)
    })
}

/// Two filters, one on top of the other.
pub(crate) fn filter(_: &Setting) -> Result<Watch> {
    install(libc::SYS_getppid, 77)?;
    install(libc::SYS_getpgrp, 78)?;
    Ok(watch([77, 78, 0]).spoiled_by(|| install(libc::SYS_sched_yield, 79)))
}

/// Filters that answer the same call: the one that was installed last is heard.
pub(crate) fn order(_: &Setting) -> Result<Watch> {
    for error in [75, 76, 77] {
        install(libc::SYS_getppid, error)?;
    }
    Ok(Watch::new(|| {
        let count = procfs::status("self", "Seccomp_filters")?;
        same("the filters", "3", count.as_str())?;
        same("what is denied", &[77, 0, 0], &denied()?)
    })
    .spoiled_by(|| install(libc::SYS_getppid, 79)))
}

/// A filter in common and one of its own for each thread.
pub(crate) fn threads(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    crew.add(|| Ok(watch([0; 3])))?;
    crew.add(|| {
        install(libc::SYS_getpgrp, 79)?;
        Ok(watch([0, 79, 0]))
    })?;
    install(libc::SYS_getppid, 77)?;
    for error in [81, 82] {
        crew.add(move || {
            install(libc::SYS_sched_yield, error as u32)?;
            Ok(watch([77, 0, error]).spoiled_by(|| install(libc::SYS_getpgrp, 80)))
        })?;
    }
    Ok(crew.watch().and(watch([77, 0, 0])))
}

/// Calls that were answered by the kernel though a filter denies them, and by the filter.
static ANSWERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Threads that make a denied call without a pause: none may get through while they are being stopped.
pub(crate) fn busy(_: &Setting) -> Result<Watch> {
    install(libc::SYS_getppid, 77)?;
    for _ in 0..4 {
        thread::spawn(|| {
            give_way();
            loop {
                let denied = raw(libc::SYS_getppid, [0; 6]) == -77;
                ANSWERS[usize::from(denied)].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Ok(Watch::new(|| {
        let [allowed, denied] = [0, 1].map(|at: usize| ANSWERS[at].load(Ordering::Relaxed));
        same("calls that got through", &0, &allowed)?;
        until("the threads go on", SOON, || {
            ANSWERS[1].load(Ordering::Relaxed) > denied
        })
    })
    .spoiled_by(|| {
        ANSWERS[0].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }))
}

/// A child in strict mode: it may read and write, and adds one to what it reads.
pub(crate) fn strict(_: &Setting) -> Result<Watch> {
    let (mut ask, mut answer) = ([0; 2], [0; 2]);
    // SAFETY: the arrays have room for two descriptors each.
    unsafe {
        fd("pipe", libc::pipe(ask.as_mut_ptr()))?;
        fd("pipe", libc::pipe(answer.as_mut_ptr()))?;
    }
    let child = fork(|| {
        let mut byte = 0_u8;
        // SAFETY: one byte is read and written; the child ends by a call that strict mode allows.
        unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT);
            while libc::read(ask[0], (&raw mut byte).cast(), 1) == 1 {
                byte += 1;
                libc::write(answer[1], (&raw const byte).cast(), 1);
            }
            libc::syscall(libc::SYS_exit, 0);
        }
    })?;
    let mut number = 0_u8;
    Ok(Watch::new(move || {
        number = (number + 1) % 100;
        let mut byte = number;
        // SAFETY: one byte is written and read.
        unsafe {
            sys("write", libc::write(ask[1], (&raw const byte).cast(), 1))?;
            sys("read", libc::read(answer[0], (&raw mut byte).cast(), 1))?;
        }
        same("the answer", &(number + 1), &byte)?;
        if procfs::status(&child.to_string(), "Seccomp")? != "1" {
            bail!("the child is not in strict mode");
        }
        Ok(())
    }))
}
