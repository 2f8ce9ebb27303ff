//! Timers of a process that cannot be asked about them: what `/proc` lists and the kernel keeps.

use super::kept::{self, Reader};
use super::overruns;
use super::timers::{self, TimersAt};
use crate::kernel::{Unreadable, word};
use crate::{FreezerError, proc};
use persist_mem::manifest::{Itimer, PosixTimer};
use sys::{Pid, Tid};

const CLOCKS: [i32; 4] = [0, 1, 7, 11];
/// `SIGEV_NONE`
const SIGEV_NONE: i32 = 1;
const TICK: u64 = 4_000_000;

/// The interval timers and the others.
pub(super) struct Timers {
    pub(super) interval: [Itimer; 3],
    pub(super) posix: Vec<PosixTimer>,
    pub(super) at: TimersAt,
}

/// Reads them through one of the process's threads.
pub(super) fn look(pid: Pid, tid: Tid) -> Result<Timers, FreezerError> {
    let refuse = |why: Unreadable| FreezerError::refuse(pid, "timers", why.to_string());
    let at = TimersAt::now();
    let interval = kept::look((pid, tid), |reader, _| interval(reader, tid, at)).map_err(refuse)?;
    let mut posix = listed(pid)?;
    if posix.is_empty() {
        return Ok(Timers {
            interval,
            posix,
            at,
        });
    }
    let kept = overruns::kept(tid).map_err(refuse)?;
    for timer in &mut posix {
        let unknown = || refuse(Unreadable::Inconsistent("a timer"));
        let kept = kept.get(&timer.id).ok_or_else(unknown)?;
        timer.interval = kept.interval.ok_or_else(unknown)?;
        let waits = kept.armed.ok_or_else(unknown)?;
        if waits {
            // One that has just expired is about to tell.
            let lasts = kept.lasts(timer.clock, at.0, 0);
            timer.remaining = lasts.map_or(1, |lasts| lasts.remaining);
            timer.absolute = lasts.is_some_and(|lasts| lasts.absolute);
        } else if let Some((lasts, periods)) = kept.next(timer.clock, at.0) {
            // It waits for its signal to be taken: one that is not set has no interval.
            (timer.remaining, timer.absolute) = (lasts.remaining, lasts.absolute);
            timer.missed = kept.periods + periods;
        }
    }
    posix.sort_by_key(|timer| timer.id);
    Ok(Timers {
        interval,
        posix,
        at,
    })
}

/// As `/proc` lists them.
fn listed(pid: Pid) -> Result<Vec<PosixTimer>, FreezerError> {
    let text = proc::read_text(pid, "timers")?;
    timers::parse(&text).ok_or_else(|| FreezerError::Format {
        pid,
        what: "timers".into(),
        text: text.clone(),
    })
}

/// Why timers are not carried, found without stopping their process.
pub(super) fn obstacle(pid: Pid, tid: Tid) -> Result<Option<&'static str>, FreezerError> {
    let posix = listed(pid)?;
    if posix.iter().any(|timer| !CLOCKS.contains(&timer.clock)) {
        return Ok(Some(
            "it has timers of processor time, or that wake the machine",
        ));
    }
    if posix.iter().any(|timer| timer.notify & 3 == SIGEV_NONE) {
        return Ok(Some("it has timers that tell nobody (SIGEV_NONE)"));
    }
    let chooses = kept::look((pid, tid), |reader, _| {
        let flag = reader
            .kernel
            .btf()
            .flag("signal_struct", "timer_create_restore_ids");
        let Ok((byte, bit)) = flag else {
            return Ok(false);
        };
        let signal = reader.pointer("signal")?;
        Ok(reader.bytes(signal + byte, 1, "a process")?[0] & bit != 0)
    });
    let looked = kept::look((pid, tid), |reader, _| {
        interval(reader, tid, TimersAt::now())
    });
    Ok(match (chooses, looked.is_ok()) {
        (Ok(false), true) => None,
        (Ok(true), true) => Some("it chooses the ids of its timers"),
        _ => Some("its timers cannot be read from the kernel"),
    })
}

/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF, as getitimer(2) tells them (kernel/time/itimer.c).
fn interval(reader: &mut Reader<'_>, tid: Tid, at: TimersAt) -> Result<[Itimer; 3], Unreadable> {
    const WHAT: &str = "an interval timer";
    let signal = reader.pointer("signal")?;
    let every = reader.offset("signal_struct", "it_real_incr")?;
    let every = reader.kernel.word(signal + every, WHAT)?;
    let state = reader
        .offset("signal_struct", "real_timer.state")
        .or_else(|_| reader.offset("signal_struct", "real_timer.is_queued"))?;
    let armed = reader.bytes(signal + state, 1, WHAT)?[0] != 0;
    let mut real = Itimer {
        interval_us: every / 1000,
        value_us: 0,
    };
    if armed || every > 0 {
        let expires = reader.kernel.real_timer(tid)?;
        let left = expires.saturating_sub(at.0.cast_signed());
        real.value_us = match armed {
            true => u64::try_from(left / 1000).unwrap_or(0).max(1),
            false => timers::next(expires, real.interval_us, at.0),
        };
    }
    // struct cpu_itimer of CPUCLOCK_PROF and of CPUCLOCK_VIRT: expires, incr.
    let counting = reader.kernel.btf().field("signal_struct", "it")?;
    let bytes = reader.bytes(signal + counting.offset, 32, WHAT)?;
    let words = [0, 8, 16, 24].map(|at| word(&bytes, at).unwrap_or(0));
    let used = ["utime", "stime"].map(|kind| {
        let path = format!("cputimer.cputime_atomic.{kind}");
        let at = signal + reader.offset("signal_struct", &path)?;
        reader.kernel.word(at, WHAT)
    });
    let [user, system] = used;
    let (user, system) = (user?, system?);
    let counts = |[expires, every]: [u64; 2], used: u64| Itimer {
        interval_us: every / 1000,
        value_us: match expires {
            0 => 0,
            expires => expires
                .checked_sub(used)
                .unwrap_or(TICK)
                .div_ceil(1000)
                .max(1),
        },
    };
    let [prof, virt] = [[words[0], words[1]], [words[2], words[3]]];
    Ok([real, counts(virt, user), counts(prof, user + system)])
}
