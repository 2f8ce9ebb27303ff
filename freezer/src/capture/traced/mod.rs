//! A process whose only thread is in a stop of its tracer ([`crate::freeze::traced`]).
//!
//! Nothing is asked inside of it: what it did for that its tracer would see. Its registers, its signals and its
//! stop the tracer sees and is asked for them ([`seen`]); the rest the kernel keeps ([`stands`]) or `/proc`
//! shows. What none of them shows is refused ([`obstacles`]).

mod obstacles;
mod seen;
mod stands;

pub(crate) use obstacles::obstacle;

use super::process::{self, Place};
use super::timers::TimersAt;
use super::{attributes, signals};
use crate::proc::Status;
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, Directories, Live, QueuedSignal, Traced};
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
    let state = frozen.threads(pid).first().map(|(_, state)| *state);
    let state = state.ok_or_else(|| refuse(pid, "it has ended".into()))?;
    let seen = seen::ask_tracer(frozen, (pid, tracer), place)?.settled(pid, state)?;
    let stands = stands::look(pid, seen.regs.rsp).map_err(|e| refuse(pid, e.to_string()))?;
    let stop = stands.stop.map_err(|why| refuse(pid, why.into()))?;
    if let Some(why) = seen.obstacle(pid, stop, &stands)? {
        return Err(refuse(pid, why));
    }
    mm.layout.brk = stands.memory.brk;
    mm.membarrier = stands.memory.membarrier;
    mm.lock_future = stands.memory.lock_future;
    mm.protection_keys = 1;
    if has_keys {
        mm.protection_keys = stands.memory.protection_keys;
    }
    let status = Status::read(pid, "status")?;
    let live = Live {
        traced: Some(Box::new(Traced {
            tracer,
            seized: stands.seized,
            options: stands.options,
            stop,
            info: QueuedSignal(seen.info.clone()),
            unread: seen.unread,
        })),
        actions: stands.kept.actions.clone(),
        child_subreaper: stands.kept.child_subreaper,
        pending: signals::with_bare(seen.shared.clone(), status.mask("ShdPnd")),
        directories: Directories {
            umask: status.umask(),
            ..Directories::default()
        },
        limits: attributes::limits(pid)?,
        oom_score_adj: attributes::number(pid, "oom_score_adj", 10)? as i32,
        dumpable: stands.memory.dumpable,
        threads: vec![seen.thread(pid, &status, &stands.kept)?],
        ..process::nothing()
    };
    Ok((live, TimersAt::now()))
}

fn refuse(pid: Pid, why: String) -> FreezerError {
    FreezerError::refuse(pid, "ptrace", format!("it is traced: {why}"))
}
