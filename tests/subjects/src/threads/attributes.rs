//! Attributes of a process or thread that prctl(2) or a file of /proc sets and tells.

use std::fs;

use anyhow::{Context, Result};
use libc::c_int;

use super::capabilities;
use crate::kit::{Crew, Kin, Setting, Watch, not_here, same, sys};

fn prctl(option: c_int, value: u64) -> i32 {
    // SAFETY: the options below take numbers only.
    unsafe { libc::prctl(option, value, 0, 0, 0) }
}

/// An attribute with a call that sets it and one that returns it.
fn attribute(set: c_int, get: c_int, value: u64, other: u64) -> Result<Watch> {
    if prctl(set, value) != 0 {
        return not_here("this kernel does not know the attribute");
    }
    Ok(Watch::keep(move || sys("prctl", prctl(get, 0)))?
        .spoiled_by(move || sys("prctl", prctl(set, other)).map(drop)))
}

/// One thread has it, the others do not.
pub(crate) fn no_new_privs(_: &Setting) -> Result<Watch> {
    let own = || Watch::keep(|| sys("prctl", prctl(libc::PR_GET_NO_NEW_PRIVS, 0)));
    let mut crew = Crew::default();
    crew.add(move || {
        sys("prctl", prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
        own()
    })?;
    crew.add(move || {
        Ok(own()?.spoiled_by(|| sys("prctl", prctl(libc::PR_SET_NO_NEW_PRIVS, 1)).map(drop)))
    })?;
    Ok(crew.watch().and(own()?))
}

/// Not dumpable.
pub(crate) fn dumpable(_: &Setting) -> Result<Watch> {
    attribute(libc::PR_SET_DUMPABLE, libc::PR_GET_DUMPABLE, 0, 1)
}

/// Of a child: whoever has started the subject may end at any time. PR_GET_PDEATHSIG returns it
/// through a pointer.
pub(crate) fn pdeathsig(setting: &Setting) -> Result<Watch> {
    let set = |signal: c_int| sys("prctl", prctl(libc::PR_SET_PDEATHSIG, signal as u64));
    let child = Kin::start(setting, "child", move |_| {
        set(libc::SIGUSR2)?;
        Ok(Watch::keep(|| {
            let mut signal = 0;
            // SAFETY: the kernel writes one int.
            sys("prctl", unsafe {
                libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal)
            })?;
            Ok(signal)
        })?
        .spoiled_by(move || set(0).map(drop)))
    })?;
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let spoiled = child.clone();
    Ok(Watch::new(move || child.borrow_mut().check()).spoiled_by(move || spoiled.borrow().spoil()))
}

/// PR_GET_CHILD_SUBREAPER returns it through a pointer.
pub(crate) fn subreaper(_: &Setting) -> Result<Watch> {
    sys("prctl", prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
    Ok(Watch::keep(|| {
        let mut on = 0;
        // SAFETY: the kernel writes one int.
        sys("prctl", unsafe {
            libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut on)
        })?;
        Ok(on)
    })?
    .spoiled_by(|| sys("prctl", prctl(libc::PR_SET_CHILD_SUBREAPER, 0)).map(drop)))
}

/// No huge pages in this process.
pub(crate) fn thp(_: &Setting) -> Result<Watch> {
    attribute(libc::PR_SET_THP_DISABLE, libc::PR_GET_THP_DISABLE, 1, 0)
}

/// PR_SET_THP_DISABLE with a flag (Linux 6.18), and without.
pub(crate) fn thp_advised(_: &Setting) -> Result<Watch> {
    const EXCEPT_ADVISED: u64 = 2;
    let set = |flags: u64| {
        // SAFETY: takes numbers.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, flags, 0, 0) }
    };
    if set(EXCEPT_ADVISED) != 0 {
        return not_here("huge pages are switched off everywhere or not at all");
    }
    Ok(
        Watch::keep(|| sys("prctl", prctl(libc::PR_GET_THP_DISABLE, 0)))?
            .spoiled_by(move || sys("prctl", set(0)).map(drop)),
    )
}

/// Of a process with threads, which would have a table of another size by themselves (Linux 6.16).
pub(crate) fn futex_slots(_: &Setting) -> Result<Watch> {
    const PR_FUTEX_HASH: c_int = 78;
    const SET: u64 = 1;
    const GET: u64 = 2;
    let set = |slots: u64| {
        // SAFETY: takes numbers.
        unsafe { libc::prctl(PR_FUTEX_HASH, SET, slots, 0, 0) }
    };
    if prctl(PR_FUTEX_HASH, GET) < 0 || set(256) != 0 {
        return not_here("futexes have no tables of processes");
    }
    let mut crew = Crew::default();
    crew.add(|| Watch::keep(|| sys("prctl", prctl(PR_FUTEX_HASH, GET))))?;
    Ok(crew
        .watch()
        .spoiled_by(move || sys("prctl", set(64)).map(drop)))
}

/// Without address randomisation, with one flag more.
pub(crate) fn personality(_: &Setting) -> Result<Watch> {
    // SAFETY: takes a number.
    let set = |to: u64| unsafe { libc::personality(to) };
    sys(
        "personality",
        set((libc::ADDR_NO_RANDOMIZE | libc::STICKY_TIMEOUTS) as u64),
    )?;
    Ok(
        Watch::keep(move || Ok(set(0xffff_ffff)))?.spoiled_by(move || {
            set(0);
            Ok(())
        }),
    )
}

/// A number in a file of /proc.
fn file(name: &'static str, value: &str, other: &'static str) -> Result<Watch> {
    let path = move || format!("/proc/self/{name}");
    fs::write(path(), value)?;
    Ok(Watch::keep(move || Ok(fs::read_to_string(path())?))?
        .spoiled_by(move || Ok(fs::write(path(), other)?)))
}

/// What goes into a core.
pub(crate) fn coredump_filter(_: &Setting) -> Result<Watch> {
    file("coredump_filter", "0x7b", "0x33")
}

/// How soon it is killed when memory runs out.
pub(crate) fn oom_score_adj(_: &Setting) -> Result<Watch> {
    file("oom_score_adj", "321", "0")
}

/// A process without CAP_SYS_RESOURCE that has raised its score may set it back to what somebody with it wrote last, and
/// no further.
pub(crate) fn oom_score_bound(_: &Setting) -> Result<Watch> {
    const FILE: &str = "/proc/self/oom_score_adj";
    const SYS_RESOURCE: u64 = 24;
    fs::write(FILE, "100")?;
    let all = !(1 << SYS_RESOURCE) & capabilities::permitted()?;
    capabilities::capset(all, all, 0)?;
    // Where root has it not either, the bound is where it was before.
    let bound = fs::write(FILE, "99").is_err();
    fs::write(FILE, "321")?;
    Ok(Watch::new(move || {
        same("the score", &"321\n".to_owned(), &fs::read_to_string(FILE)?)?;
        fs::write(FILE, "100").context("setting it back")?;
        same(
            "whether there is a bound",
            &bound,
            &fs::write(FILE, "99").is_err(),
        )?;
        Ok(fs::write(FILE, "321")?)
    })
    .spoiled_by(|| Ok(fs::write(FILE, "322")?)))
}

/// Of one thread.
pub(crate) fn keepcaps(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    crew.add(|| attribute(libc::PR_SET_KEEPCAPS, libc::PR_GET_KEEPCAPS, 0, 1))?;
    crew.add(|| attribute(libc::PR_SET_KEEPCAPS, libc::PR_GET_KEEPCAPS, 1, 0))?;
    Ok(crew.watch())
}

/// Killed early when memory fails.
pub(crate) fn mce(_: &Setting) -> Result<Watch> {
    let set = |policy: c_int| {
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET, policy, 0, 0) }
    };
    if set(libc::PR_MCE_KILL_EARLY) != 0 {
        return not_here("no machine check policy");
    }
    Ok(
        Watch::keep(|| sys("prctl", prctl(libc::PR_MCE_KILL_GET, 0)))?
            .spoiled_by(move || sys("prctl", set(libc::PR_MCE_KILL_LATE)).map(drop)),
    )
}

/// PR_SET_IO_FLUSHER
pub(crate) fn io_flusher(_: &Setting) -> Result<Watch> {
    attribute(57, 58, 1, 0)
}
