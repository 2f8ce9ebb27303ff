//! Traced processes with seccomp filters.

use std::sync::atomic::Ordering;
use std::thread;

use anyhow::Result;
use libc::{
    EIO, PTRACE_CONT, PTRACE_EVENT_SECCOMP, PTRACE_EVENT_STOP, PTRACE_INTERRUPT,
    PTRACE_O_TRACESECCOMP, PTRACE_O_TRACESYSGOOD, PTRACE_SEIZE, PTRACE_SETOPTIONS, PTRACE_TRACEME,
    SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRACE, SIGSTOP, SIGTRAP, SIGUSR1,
};

use super::traced::{
    COUNTED, calling, count, raise, registers, request, stops, threads_of, watch, watch_all,
};
use crate::kit::{SOON, Setting, Watch, errno, fork, procfs, same, until};
use crate::threads::seccomp::{answer, install};

/// What a filter says to the tracer.
const MESSAGE: u32 = 0x1234;

/// What none of these processes does by itself ends them: waiting for a signal, and no call at all. One call fails.
pub(super) fn confine() -> Result<()> {
    for call in [libc::SYS_pause, -1] {
        answer(call, SECCOMP_RET_KILL_PROCESS)?;
    }
    install(libc::SYS_getpgrp, EIO as u32)
}

fn is_confined() -> bool {
    // SAFETY: takes no arguments.
    let done = unsafe { libc::syscall(libc::SYS_getpgrp) };
    done == -1 && errno() == EIO
}

/// Before a signal is delivered.
pub(crate) fn signalled(_: &Setting) -> Result<Watch> {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(SIGUSR1, count as *const () as usize) };
    let child = fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        let confined = confine().is_ok();
        for round in 1.. {
            raise(SIGUSR1);
            // What was delivered, and denied, is told by how it stops next.
            let counted = COUNTED.load(Ordering::SeqCst) == round;
            let well = counted && confined && is_confined();
            raise(if well { SIGSTOP } else { SIGTRAP });
        }
    })?;
    watch(
        child,
        move || {
            stops(child, SIGUSR1)?;
            filters(child, child, "3")
        },
        move || {
            request(PTRACE_CONT, child, SIGUSR1 as u64)?;
            stops(child, SIGSTOP)?;
            request(PTRACE_CONT, child, 0)
        },
    )
}

fn filters(child: i32, tid: i32, count: &str) -> Result<()> {
    let task = format!("{child}/task/{tid}");
    let found = procfs::status(&task, "Seccomp_filters")?;
    same("its filters", count, found.as_str())
}

/// Before a call.
pub(crate) fn entry(_: &Setting) -> Result<Watch> {
    calling(0, confine)
}

/// Behind one.
pub(crate) fn exit(_: &Setting) -> Result<Watch> {
    calling(1, confine)
}

/// Threads with other filters each, one of which spins.
pub(crate) fn threads(_: &Setting) -> Result<Watch> {
    const STOPPED: i32 = SIGTRAP | PTRACE_EVENT_STOP << 8;
    let child = fork(|| {
        let common = confine().is_ok();
        thread::spawn(move || {
            let own = install(libc::SYS_getppid, EIO as u32).is_ok();
            while common && own && is_confined() {}
        });
        // A nap that is over after an upgrade would be told as done.
        loop {
            thread::sleep(std::time::Duration::from_secs(3600));
        }
    })?;
    let threads = threads_of(child, 2)?;
    until("both are confined", SOON, || {
        filters(child, threads[0], "3").is_ok() && filters(child, threads[1], "4").is_ok()
    })?;
    for tid in &threads {
        request(PTRACE_SEIZE, *tid, PTRACE_O_TRACESYSGOOD as u64)?;
    }
    let (stopped, gone_on) = (threads.clone(), threads.clone());
    watch_all(
        threads,
        move || {
            for (tid, count) in stopped.iter().zip(["3", "4"]) {
                request(PTRACE_INTERRUPT, *tid, 0)?;
                stops(*tid, STOPPED)?;
                filters(child, *tid, count)?;
            }
            Ok(())
        },
        move || {
            for tid in &gone_on {
                request(PTRACE_CONT, *tid, 0)?;
            }
            // One that is denied nothing any more ends.
            until("they go on", SOON, || {
                let state = |tid| procfs::status(&format!("{child}/task/{tid}"), "State");
                state(gone_on[1]).is_ok_and(|state| state.starts_with('R'))
                    && state(gone_on[0]).is_ok_and(|state| state.starts_with('S'))
            })
        },
    )
}

/// Before a call that a filter asks the tracer about.
pub(crate) fn event(_: &Setting) -> Result<Watch> {
    const GETEVENTMSG: u32 = 0x4201;
    const ORIG_RAX: usize = 15;
    const STOPPED: i32 = SIGTRAP | PTRACE_EVENT_SECCOMP << 8;
    let child = fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        let asks = answer(libc::SYS_getppid, SECCOMP_RET_TRACE | MESSAGE);
        if asks.and_then(|()| confine()).is_err() {
            return;
        }
        raise(SIGSTOP);
        loop {
            // SAFETY: takes no arguments.
            let parent = unsafe { libc::syscall(libc::SYS_getppid) };
            raise(if parent > 0 { SIGUSR1 } else { SIGTRAP });
        }
    })?;
    stops(child, SIGSTOP)?;
    let options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD;
    request(PTRACE_SETOPTIONS, child, options as u64)?;
    request(PTRACE_CONT, child, 0)?;
    let told = move || -> Result<()> {
        let mut message = 0_u64;
        request(GETEVENTMSG, child, &raw mut message as u64)?;
        same("the message", &u64::from(MESSAGE), &message)?;
        let call = registers(child)?[ORIG_RAX];
        same("the call", &(libc::SYS_getppid as u64), &call)
    };
    let again = move || {
        stops(child, STOPPED)?;
        told()
    };
    watch(child, again, move || {
        told()?;
        request(PTRACE_CONT, child, 0)?;
        // It has made its call.
        stops(child, SIGUSR1)?;
        request(PTRACE_CONT, child, 0)
    })
}
