//! A stopped tree, described.

mod aio;
mod attributes;
mod cgroups;
mod child_waits;
mod connects;
mod credentials;
mod dispatch;
mod foothold;
mod inside;
mod io_contexts;
mod kept;
mod kept_memory;
mod kept_timers;
mod lasting;
mod ldt;
mod leader;
mod mapped_locks;
pub(crate) mod mappings;
mod membarrier;
mod memory;
mod numa;
mod overruns;
mod packet_rings;
mod pages;
mod parents;
mod policy;
mod process;
mod processors;
mod reports;
mod restart;
mod room;
mod seccomp;
mod signals;
mod slacks;
mod sleep;
mod thread;
mod tiles;
mod timer_ids;
mod timers;
mod traced;
mod uring;
mod vfork;

pub(crate) use dispatch::is_dispatched;
pub(crate) use foothold::Finder;
pub(crate) use inside::marker_refusal;
pub(crate) use io_contexts::{Contexts, refusals as io_context_refusals};
pub(crate) use leader::refusal as leader_refusal;
pub(crate) use memory::refusals as memory_refusals;
pub use pages::capture_pages;
pub(crate) use restart::{Left, is_readable as rest_is_readable};
pub(crate) use room::refusal as room_refusal;
pub(crate) use sleep::{interrupted_call, left_of as left_of_sleep, times_left};
pub(crate) use traced::{
    Runs, in_tracer, obstacle as traced_obstacle, passing as traced_passing, runs,
};
pub(crate) use vfork::obstacle as vfork_obstacle;

use crate::confinement::Confinements;
use crate::files::outsiders::Outsiders;
use crate::files::{Table, apart};
use crate::landlock::Domains;
use crate::objects::Objects;
use crate::proc::{Stat, Status};
use crate::tables::{Sharing, threads};
use crate::{Externals, FreezerError, Frozen};
use persist_mem::manifest::{
    Clocks, Directories, Host, Live, Manifest, Process, State, ThreadDirectories,
};
use std::collections::BTreeMap;
use sys::clock::Moment;
use sys::process::KcmpKind;
use sys::{Pid, Tid};

/// Describes a stopped tree, all but the contents of its pages ([`capture_pages`]). The processes stay
/// stopped and are left as they were.
///
/// # Errors
/// When anything is met that is not carried, or cannot be read.
pub fn capture(frozen: &Frozen) -> Result<(Manifest, Objects), FreezerError> {
    let inside = members(frozen);
    let mut prepared = Prepared {
        outsiders: Outsiders::look(&inside),
        ..Prepared::default()
    };
    capture_with(frozen, Externals::default(), &mut prepared)
}

/// What was found out about a tree before it was stopped, so that less is to be done while it stands still.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Who holds what outside of the tree.
    pub(crate) outsiders: Outsiders,
    /// Where calls can be made.
    pub(crate) finder: Finder,
}

/// As [`capture`]; what is external is named, not described. `prepared` is what the check has seen.
///
/// # Errors
/// As [`capture`].
pub fn capture_with(
    frozen: &Frozen,
    externals: Externals,
    prepared: &mut Prepared,
) -> Result<(Manifest, Objects), FreezerError> {
    describe(frozen, None, externals, prepared).map_err(apart::named_error)
}

/// Everybody of a tree, ended ones too.
fn members(frozen: &Frozen) -> Vec<Pid> {
    let zombies = frozen.zombies().iter().copied();
    frozen.pids().chain(zombies).collect()
}

/// As [`capture`], for a whole host: this process, which ends with its kernel, may hold ends of pipes
/// that the others use.
///
/// # Errors
/// As [`capture`].
pub fn capture_host(frozen: &Frozen) -> Result<(Manifest, Objects), FreezerError> {
    let this = Pid(nix::unistd::getpid().as_raw());
    let inside: Vec<Pid> = members(frozen).into_iter().chain([this]).collect();
    let mut prepared = Prepared {
        outsiders: Outsiders::look(&inside),
        ..Prepared::default()
    };
    let (mut manifest, objects) = describe(frozen, Some(this), Externals::default(), &mut prepared)
        .map_err(apart::named_error)?;
    lasting::settle(&mut manifest);
    Ok((manifest, objects))
}

fn describe(
    frozen: &Frozen,
    ours: Option<Pid>,
    externals: Externals,
    prepared: &mut Prepared,
) -> Result<(Manifest, Objects), FreezerError> {
    crate::namespaces::verify(frozen)?;
    let undo = crate::ipc::undo::capture(frozen, ours.is_none())?;
    let mut table = Table::new(externals, ours.is_some());
    table.in_domains = crate::landlock::concerns(&frozen.pids().collect::<Vec<_>>());
    let Prepared { outsiders, finder } = prepared;
    // What ends changes files and memory.
    uring::settle(frozen, finder)?;
    let (stats, children) = relatives(frozen)?;
    let made_by = parents::threads(frozen, &children);
    let mut groups = cgroups::capture(frozen, ours.is_some())?;
    let lives = lives(frozen, &mut table, finder, &mut groups, (&stats, &children))?;
    let (mut processes, timers_at): (Vec<_>, Vec<_>) = lives.into_iter().unzip();
    for &pid in frozen.zombies() {
        processes.push(zombie(pid)?);
    }
    let contexts = io_contexts::Contexts::find(frozen);
    let slacks = slacks::Slacks::find(frozen);
    let timer_ids = timer_ids::NextIds::find(frozen);
    let tiles = tiles::Tiles::find(frozen);
    let anywhere = processors::Anywhere::find(frozen);
    for process in &mut processes {
        contexts.tell(process);
        if let State::Live(live) = &process.state {
            threads::verify(process.pid, live)?;
        }
        anywhere.tell(process);
        slacks.tell(process);
        timer_ids.tell(process);
        tiles.tell(process);
        process.parent_thread = made_by.get(&process.pid).copied();
    }
    child_waits::settle(&mut processes);
    parents::note_places(&mut processes);
    let inside: Vec<Pid> = members(frozen).into_iter().chain(ours).collect();
    table.refuse_outside(&inside, outsiders)?;
    let inside: Vec<Pid> = frozen.pids().collect();
    let found = table.finish(&inside)?;
    crate::files::listener::verify(&processes, &found.descriptions)?;
    let mut objects = found.objects;
    let outside = objects.shared_outside(&inside);
    if !outside.is_empty() {
        return Err(FreezerError::Refused(outside));
    }
    let host = host()?;
    for (process, at) in processes.iter_mut().zip(timers_at) {
        if let State::Live(live) = &mut process.state {
            at.settle(live, host.clocks.monotonic.cast_unsigned());
        }
    }
    let mut manifest = Manifest {
        host,
        processes,
        descriptions: found.descriptions,
        pipes: found.pipes,
        terminals: found.terminals,
        removed: found.removed,
        locks: found.locks,
        notices: found.notices,
        posix_queues: found.queues,
        undo,
        tunnels: found.tunnels,
        cgroups: groups.groups,
        ..Manifest::default()
    };
    let mapped = mapped_locks::capture(&manifest);
    manifest.locks.extend(mapped);
    connects::settle(&mut manifest);
    if ours.is_some() {
        crate::ipc::capture(&mut manifest, &mut objects)?;
    }
    Ok((manifest, objects))
}

/// Every live process in the order of `stats`, and when its timers were asked.
fn lives(
    frozen: &Frozen,
    table: &mut Table,
    finder: &mut Finder,
    groups: &mut cgroups::Found,
    (stats, children): (&[(Pid, Stat)], &Children),
) -> Result<Vec<(Process, timers::TimersAt)>, FreezerError> {
    let pids: Vec<Pid> = frozen.pids().collect();
    for pid in &pids {
        let tids: Vec<Tid> = frozen.threads(*pid).iter().map(|(tid, _)| *tid).collect();
        if let Some(why) = crate::tables::incomparable(*pid, frozen.first(*pid)?, &tids) {
            return Err(FreezerError::Refused(vec![why]));
        }
    }
    let [memory, actions, files, directories, undone] = sharing(&pids);
    let mut captured = Vec::new();
    let mut domains = Domains::default();
    let confinements = Confinements::look();
    // Who has another's memory may leave something on that one's stack, which gives it back then.
    let mut order: Vec<usize> = (0..stats.len()).collect();
    order.sort_by_key(|at| memory.of(stats[*at].0).is_none());
    for at in order {
        let (pid, stat) = &stats[at];
        let pid = *pid;
        let children = children.get(&pid).map_or(&[][..], Vec::as_slice);
        let (mut process, timers) = process::capture(frozen, (pid, stat), children, table, finder)?;
        if let State::Live(live) = &mut process.state {
            live.mm_of = memory.of(pid);
            live.actions_of = actions.of(pid);
            live.files_of = files.of(pid);
            live.fs_of = directories.of(pid);
            live.undo_of = undone.of(pid);
            threads::note_undo(pid, live);
            directories_of_threads(pid, live, table)?;
            apart::capture(pid, live, table)?;
            crate::landlock::capture(pid, live, &mut domains, &pids)?;
            confinements.capture(pid, live)?;
            groups.tell(pid, process.sid, live);
        }
        captured.push((at, (process, timers)));
    }
    captured.sort_by_key(|(at, _)| *at);
    Ok(captured.into_iter().map(|(_, of)| of).collect())
}

/// Notes the directories of threads that have their own.
fn directories_of_threads(
    pid: Pid,
    live: &mut Live,
    table: &mut Table,
) -> Result<(), FreezerError> {
    let tids: Vec<Tid> = live.threads.iter().map(|thread| thread.tid).collect();
    let Some(first) = tids.first().filter(|_| tids.len() > 1) else {
        return Ok(());
    };
    for group in threads::groups(pid, *first, &tids, KcmpKind::Fs) {
        let owner = group[0];
        let members = live.threads.iter_mut();
        for thread in members.filter(|thread| group.contains(&thread.tid)) {
            thread.directories = Some(ThreadDirectories::Of(owner));
            if thread.tid == owner {
                let task = format!("task/{owner}/");
                let umask = Status::read(pid, &format!("{task}status"))?.umask();
                let own = Directories {
                    umask,
                    ..table.directories(pid, &task)?
                };
                thread.directories = Some(ThreadDirectories::Own(Box::new(own)));
            }
        }
    }
    Ok(())
}

/// Who shares memory, signal actions, descriptors, directories, and undo lists.
fn sharing(pids: &[Pid]) -> [Sharing; 5] {
    [
        KcmpKind::Vm,
        KcmpKind::Sighand,
        KcmpKind::Files,
        KcmpKind::Fs,
        KcmpKind::Sysvsem,
    ]
    .map(|kind| Sharing::find(pids, kind))
}

/// Everybody's children, in ascending order.
type Children = BTreeMap<Pid, Vec<Pid>>;

/// The `stat` of every live process, in their order, and who is whose child.
fn relatives(frozen: &Frozen) -> Result<(Vec<(Pid, Stat)>, Children), FreezerError> {
    let stat = |pid| {
        let first = frozen.first(pid)?;
        Ok((pid, Stat::read(pid, &format!("task/{first}/stat"))?))
    };
    let stats: Vec<_> = frozen
        .pids()
        .map(stat)
        .collect::<Result<_, FreezerError>>()?;
    let parent = |(pid, stat): &(Pid, Stat)| (*pid, stat.pid(4));
    let mut parents: Vec<(Pid, Pid)> = stats.iter().map(parent).collect();
    for zombie in frozen.zombies() {
        parents.push((*zombie, Stat::read(*zombie, "stat")?.pid(4)));
    }
    parents.sort_unstable();
    let mut children = Children::new();
    for (pid, parent) in parents {
        children.entry(parent).or_default().push(pid);
    }
    Ok((stats, children))
}

fn zombie(pid: Pid) -> Result<Process, FreezerError> {
    let stat = Stat::read(pid, "stat")?;
    let status = i32::try_from(stat.field(52)).unwrap_or(0);
    let text = Status::read(pid, "status")?;
    let state = State::Zombie {
        status,
        signals: ["SigIgn", "SigCgt"].map(|key| text.mask(key)),
        remains: Box::new(leader::remains(pid, &stat, &text)?),
        limits: attributes::limits(pid)?,
    };
    Ok(Process {
        pid,
        ppid: stat.pid(4),
        parent_thread: None,
        place: 0,
        pgid: stat.pid(5),
        sid: stat.pid(6),
        exit_signal: stat.exit_signal(),
        state,
    })
}

fn host() -> Result<Host, FreezerError> {
    let this = Pid(nix::unistd::getpid().as_raw());
    let now = Moment::now().map_err(FreezerError::call(this, "reading the clocks"))?;
    let clocks = Clocks {
        realtime: now.realtime,
        monotonic: now.monotonic,
        boottime: now.boottime,
        tsc: now.tsc,
    };
    let uname = nix::sys::utsname::uname()
        .map_err(FreezerError::call(this, "asking for the kernel's release"))?;
    Ok(Host {
        release: uname.release().to_string_lossy().into_owned(),
        boot_id: boot_id(this)?,
        kupgrade: env!("CARGO_PKG_VERSION").into(),
        clocks,
        page_size: 4096,
    })
}

/// Names the running boot.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id(this: Pid) -> Result<String, FreezerError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|cause| FreezerError::Proc {
        pid: this,
        what: PATH.into(),
        cause,
    })?;
    Ok(text.trim().to_owned())
}
