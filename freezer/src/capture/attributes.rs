//! Attributes of a process as a whole.

use crate::FreezerError;
use crate::kernel;
use crate::proc;
use persist_mem::manifest::OomScore;
use sys::Pid;
use sys::batch::{Batch, Buffer, CallIndex, Output};

const PRCTL: i64 = 157;
const BRK: i64 = 12;
const PR_GET_DUMPABLE: i32 = 3;
const PR_GET_CHILD_SUBREAPER: i32 = 37;
const PR_GET_THP_DISABLE: i32 = 42;
const PR_FUTEX_HASH: i32 = 78;
const PR_FUTEX_HASH_GET_SLOTS: i32 = 2;

pub(super) struct Attributes {
    pub(super) brk: u64,
    pub(super) child_subreaper: bool,
    pub(super) dumpable: u8,
    pub(super) thp_disabled: u32,
    pub(super) futex_slots: Option<u32>,
}

pub(super) struct Asked {
    brk: CallIndex,
    flag: Buffer,
    dumpable: CallIndex,
    thp: CallIndex,
    futexes: CallIndex,
}

pub(super) fn ask(batch: &mut Batch) -> Asked {
    let brk = batch.call("brk", BRK, [0.into()]);
    let flag = batch.space(8);
    batch.call(
        "asking for the subreaper",
        PRCTL,
        [PR_GET_CHILD_SUBREAPER.into(), flag.into()],
    );
    let dumpable = batch.call("asking for dumpable", PRCTL, [PR_GET_DUMPABLE.into()]);
    let thp = batch.call("asking for THP", PRCTL, [PR_GET_THP_DISABLE.into()]);
    let slots = [PR_FUTEX_HASH.into(), PR_FUTEX_HASH_GET_SLOTS.into()];
    let futexes = batch.try_call("asking for futex slots", PRCTL, slots);
    Asked {
        brk,
        flag,
        dumpable,
        thp,
        futexes,
    }
}

pub(super) fn read(asked: &Asked, out: &Output) -> Attributes {
    Attributes {
        brk: out.result(asked.brk).unwrap_or(0),
        child_subreaper: out.u32(asked.flag, 0) != 0,
        dumpable: out.result(asked.dumpable).map_or(1, |value| value as u8),
        thp_disabled: out.result(asked.thp).map_or(0, |value| value as u32),
        futex_slots: out.result(asked.futexes).ok().map(|slots| slots as u32),
    }
}

/// A file of `/proc/PID` that holds one number.
pub(super) fn number(pid: Pid, what: &str, base: u32) -> Result<i64, FreezerError> {
    let text = proc::read_text(pid, what)?;
    i64::from_str_radix(text.trim(), base).map_err(|_| FreezerError::Format {
        pid,
        what: what.into(),
        text: text.clone(),
    })
}

/// How soon it is killed when memory runs out. Nearly everybody has 0, and is not asked further.
pub(super) fn oom_score(pid: Pid) -> Result<OomScore, FreezerError> {
    let now = i16::try_from(number(pid, "oom_score_adj", 10)?).unwrap_or(0);
    let least = match now {
        0 => None,
        _ => kernel::look(|kernel| kernel.oom_score_least(pid.leader())).ok(),
    };
    Ok(OomScore { now, least })
}

/// Resource limits in the order of their numbers, which is not the order of `/proc/PID/limits`.
pub(super) fn limits(pid: Pid) -> Result<Vec<(u64, u64)>, FreezerError> {
    // proc_pid_limits (fs/proc/base.c) prints them by RLIMIT_* number: cpu, fsize, data, ...
    let text = proc::read_text(pid, "limits")?;
    let value = |word: &str| {
        if word == "unlimited" {
            Some(u64::MAX)
        } else {
            word.parse().ok()
        }
    };
    let mut limits = Vec::new();
    for line in text.lines().skip(1) {
        // The name is 25 characters wide and has blanks.
        let mut words = line.get(25..).unwrap_or("").split_whitespace();
        let pair = (words.next().and_then(value), words.next().and_then(value));
        let (Some(soft), Some(hard)) = pair else {
            return Err(FreezerError::Format {
                pid,
                what: "limits".into(),
                text: line.into(),
            });
        };
        limits.push((soft, hard));
    }
    Ok(limits)
}
