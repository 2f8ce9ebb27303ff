//! Tracees of debuggers that watch memory, of programs that emulate calls, and of several tracers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use libc::{PTRACE_CONT, PTRACE_SETREGS, PTRACE_TRACEME, SIGSTOP, SIGTRAP};

use super::traced::{raise, registers, request, stops, watch};
use crate::kit::{Kin, Setting, Watch, fork, same, sys};

const PTRACE_PEEKUSER: u32 = 3;
const PTRACE_POKEUSER: u32 = 6;
const PTRACE_SYSEMU: u32 = 31;

/// A child that does this again and again in the presence of its parent.
fn tracee(mut again: impl FnMut() -> bool) -> Result<i32> {
    let child = fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        raise(SIGSTOP);
        while again() {}
    })?;
    stops(child, SIGSTOP)?;
    Ok(child)
}

/// Before a system call that is not made (`PTRACE_SYSEMU`).
pub(crate) fn emulated(_: &Setting) -> Result<Watch> {
    const NUMBER: u64 = libc::SYS_getppid as u64;
    const ANSWER: u64 = 4711;
    const ORIG_RAX: usize = 15;
    const RAX: usize = 10;
    let child = tracee(|| {
        // SAFETY: takes no arguments.
        let answer = unsafe { libc::syscall(libc::SYS_getppid) };
        answer.cast_unsigned() == ANSWER
    })?;
    let next = move || {
        request(PTRACE_SYSEMU, child, 0)?;
        stops(child, SIGTRAP)
    };
    // What raise(3) does on its way out is not needed.
    next()?;
    while registers(child)?[ORIG_RAX] != NUMBER {
        next()?;
    }
    watch(
        child,
        move || same("the call", &NUMBER, &registers(child)?[ORIG_RAX]),
        move || {
            let mut all = registers(child)?;
            all[RAX] = ANSWER;
            request(PTRACE_SETREGS, child, all.as_ptr() as u64)?;
            next()
        },
    )
}

static WORD: AtomicU64 = AtomicU64::new(0);

/// Its tracer has a hardware break point at a word that it writes.
pub(crate) fn watched(_: &Setting) -> Result<Watch> {
    /// Where DR0 and DR7 are in `struct user`.
    const DR0: usize = 848;
    const DR7: usize = 904;
    /// Writes of eight bytes there.
    const ENABLED: u64 = 1 | 0b1001 << 16;
    let child = tracee(|| {
        WORD.fetch_add(1, Ordering::SeqCst);
        raise(SIGSTOP);
        true
    })?;
    let set = |place: usize, value: u64| {
        // SAFETY: takes numbers.
        let done = unsafe { libc::ptrace(PTRACE_POKEUSER, child, place, value) };
        sys("setting a break point", done as i32)
    };
    set(DR0, WORD.as_ptr() as u64)?;
    set(DR7, ENABLED)?;
    let come = move || {
        // SAFETY: the C library returns what is there.
        let found = unsafe { libc::ptrace(PTRACE_PEEKUSER, child, DR7, 0) };
        same("the break points", &ENABLED, &(found as u64 & 0xf_0003))?;
        request(PTRACE_CONT, child, 0)?;
        stops(child, SIGTRAP)?;
        request(PTRACE_CONT, child, 0)
    };
    come()?;
    watch(child, move || stops(child, SIGSTOP), come)
}

/// Two tracers with a tracee each.
pub(crate) fn two_tracers(setting: &Setting) -> Result<Watch> {
    let tracers = Rc::new(RefCell::new([
        Kin::start(setting, "one", super::traced::entry)?,
        Kin::start(setting, "other", watched)?,
    ]));
    let spoilt = Rc::clone(&tracers);
    Ok(
        Watch::new(move || tracers.borrow_mut().iter_mut().try_for_each(Kin::check))
            .spoiled_by(move || spoilt.borrow()[1].spoil()),
    )
}
