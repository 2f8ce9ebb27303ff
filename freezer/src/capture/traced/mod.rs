//! A process whose threads are in stops of their tracer ([`crate::freeze::traced`]).
//!
//! Nothing is asked inside of it: what it did for that its tracer would see. Its registers, its signals and its
//! stop the tracer sees and is asked for them ([`seen`]); the rest the kernel keeps ([`stands`]) or `/proc`
//! shows. What none of them shows is refused ([`obstacles`]).

mod obstacles;
mod seen;
mod stands;

pub(crate) use obstacles::{obstacle, passing};
pub(crate) use seen::in_tracer;
pub(crate) use stands::{Runs, runs};

use super::process::{self, Place};
use super::timers::TimersAt;
use super::{attributes, kept_timers, seccomp, signals};
use crate::proc::Status;
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{
    AddressSpace, Directories, Live, QueuedSignal, Thread, Traced, TracedThread,
};
use sys::{Pid, Tid};

/// Describes the process.
pub(super) fn describe(
    frozen: &Frozen,
    (pid, tracer): (Pid, Tid),
    place: Place<'_>,
    mm: &mut AddressSpace,
) -> Result<(Live, TimersAt), FreezerError> {
    if let Some(why) = obstacle(pid, tracer)? {
        return Err(refuse(pid, why));
    }
    let has_keys = place.maps.iter().any(|map| map.protection_key.is_some());
    let seen = seen::ask_tracer(frozen, (pid, tracer), place)?;
    let places: Vec<_> = seen.iter().map(|one| (one.tid, one.regs.rsp)).collect();
    let stands = stands::look(pid, &places).map_err(|e| refuse(pid, e.to_string()))?;
    let both = || seen.iter().zip(&stands);
    if let Some(why) = obstacles::of_group_stop((pid, tracer), &stands)? {
        return Err(refuse(pid, why.to_owned()));
    }
    if let Some(why) = obstacles::of_stops(pid, both())? {
        return Err(refuse(pid, why));
    }
    let (Some(first), Some(kept)) = (seen.first(), stands.first()) else {
        return Err(refuse(pid, "it has ended".into()));
    };
    kept.memory.tell(has_keys, mm);
    let status = Status::read(pid, "status")?;
    let traced = |(seen, stands): (&seen::Seen, &stands::Stands)| {
        Ok(TracedThread {
            seized: stands.seized,
            options: stands.options,
            listens: stands.listens,
            stop: stands.stop.map_err(|why| refuse(pid, why.into()))?,
            info: QueuedSignal(seen.info.clone()),
            unread: seen.unread,
            to_stop: seen.to_stop,
            makes_none: stands.makes_none,
            break_points: stands.break_points.then_some(seen.break_points),
        })
    };
    let mut filters = Vec::new();
    let threads = both().map(|(seen, stands)| {
        let confined = stands.confined.clone();
        Ok(Thread {
            seccomp: seccomp::of_kept(confined, &mut filters),
            ..seen.thread(pid, &stands.kept)?
        })
    });
    let threads = threads.collect::<Result<_, FreezerError>>()?;
    let timers = kept_timers::look(pid, first.tid)?;
    let live = Live {
        traced: Some(Box::new(Traced {
            tracer,
            threads: both().map(traced).collect::<Result<_, FreezerError>>()?,
        })),
        actions: kept.kept.actions.clone(),
        child_subreaper: kept.kept.child_subreaper,
        pending: signals::with_bare(first.shared.clone(), status.mask("ShdPnd")),
        directories: Directories {
            umask: status.umask(),
            ..Directories::default()
        },
        limits: attributes::limits(pid)?,
        oom_score: attributes::oom_score(pid)?,
        dumpable: kept.memory.dumpable,
        threads,
        filters,
        itimers: timers.interval,
        timers: timers.posix,
        ..process::nothing()
    };
    Ok((live, timers.at))
}

fn refuse(pid: Pid, why: String) -> FreezerError {
    FreezerError::refuse(pid, "ptrace", format!("it is traced: {why}"))
}
