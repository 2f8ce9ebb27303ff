//! Attributes of processes.

use super::oom;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::{Actor, Restore};
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::{Errno, Pid, procdir};

const PR_SET_THP_DISABLE: i32 = 41;
const PR_FUTEX_HASH: i32 = 78;
const PR_FUTEX_HASH_SET_SLOTS: i32 = 1;
const PR_FUTEX_HASH_GET_SLOTS: i32 = 2;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    set_futex_slots(restore)?;
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        let host = task.host_pid();
        if live.mm.thp_disabled != 0 {
            switch_huge_pages_off(pid, &mut task.first, live.mm.thp_disabled)?;
        }
        oom::set(pid, host, live.oom_score)?;
        write(
            pid,
            host,
            "coredump_filter",
            &format!("{:#x}", live.mm.coredump_filter),
        )?;
    }
    Ok(())
}

/// `PR_SET_THP_DISABLE` with the flags that `PR_GET_THP_DISABLE` tells. A kernel without flags (before 6.18) switches
/// them off everywhere.
fn switch_huge_pages_off(pid: Pid, first: &mut Tracee, told: u32) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    // The last one is what remains.
    for flags in BTreeSet::from([0, told & !1]) {
        let args = [
            PR_SET_THP_DISABLE.into(),
            1.into(),
            u64::from(flags).into(),
            0.into(),
            0.into(),
        ];
        batch.try_call("switching huge pages off", nr::PRCTL, args);
    }
    run(pid, "switching huge pages off", first, &batch).map(drop)
}

/// Futexes of a process have a table of their own since Linux 6.16. A size that the kernel would choose by itself is
/// left to it: one that was set does not grow with the threads any more.
fn set_futex_slots(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    const DOING: &str = "setting futex slots";
    let lives = restore.lives();
    let wanted = lives.filter_map(|(pid, live)| Some(((pid, None), live.mm.futex_slots?)));
    let wanted: BTreeMap<Actor, u32> = wanted.collect();
    let mut ask = Batch::new();
    let args = [PR_FUTEX_HASH.into(), PR_FUTEX_HASH_GET_SLOTS.into()];
    let asked = ask.try_call(DOING, nr::PRCTL, args);
    let all = wanted.keys().map(|actor| (*actor, ask.clone()));
    let now = restore.together(DOING, all.collect())?;
    let mut changes = BTreeMap::new();
    for (actor, slots) in wanted {
        let now = now.get(&actor).map(|output| output.result(asked));
        if now.is_none_or(|now| now.is_err() || now == Ok(slots.into())) {
            continue;
        }
        let mut batch = Batch::new();
        let args = [
            PR_FUTEX_HASH.into(),
            PR_FUTEX_HASH_SET_SLOTS.into(),
            u64::from(slots).into(),
            0.into(),
        ];
        batch.try_call(DOING, nr::PRCTL, args);
        changes.insert(actor, batch);
    }
    restore.together(DOING, changes).map(drop)
}

/// Writes a file of `/proc/PID` that does not hold this text already.
pub(super) fn write(pid: Pid, host: Pid, what: &str, text: &str) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, format!("setting its {what}"));
    let now = procdir::read(host, what).map_err(failed())?;
    let now = String::from_utf8_lossy(&now);
    if number(now.trim(), what) == number(text, what) {
        return Ok(());
    }
    write_always(host, what, text).map_err(failed())
}

pub(super) fn write_always(host: Pid, what: &str, text: &str) -> sys::Result<()> {
    let file = procdir::open(host, what, OFlag::O_WRONLY)?;
    let written = { file }.write_all(text.as_bytes());
    written.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// coredump_filter is hexadecimal without a prefix when read.
fn number(text: &str, what: &str) -> Option<i64> {
    let hexadecimal = what == "coredump_filter";
    let digits = text.trim_start_matches("0x");
    i64::from_str_radix(digits, if hexadecimal { 16 } else { 10 }).ok()
}
