//! Domains that several processes are in, or several threads that scopes ask it of.
//!
//! A domain comes to others only from who makes them. So the first one enforces its layers before it makes the next, and
//! whatever is made later is made in there. What they cannot reach any more a helper fetches for them ([`Bridge`]).

use super::lender::Bridge;
use super::make;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::numbers;
use crate::restore::Restore;
use crate::tree::{clone_args, wait_until_stopped};
use persist_mem::manifest::{Live, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::{Errno, Pid, socket};

const CLONE_VM: u64 = 0x100;
const AF_UNIX: i32 = 1;
const SOCK_STREAM: i32 = 1;
const O_CLOEXEC: i32 = 0o2_000_000;
const PIDFD_OPEN: i64 = 434;

/// Helpers in domains, until the way back is closed.
pub(crate) type Bridges = Vec<Arc<Mutex<Bridge>>>;

/// The layers that all threads of a process are in, by their numbers.
fn common(live: &Live) -> &[u64] {
    let mut all = live.all_threads();
    let first = all.next().map_or(&[][..], |thread| &thread.domains);
    let common = all.fold(first.len(), |len, thread| {
        len.min(alike(first, &thread.domains))
    });
    &first[..common]
}

fn alike(one: &[u64], other: &[u64]) -> usize {
    let both = one.iter().zip(other);
    both.take_while(|(one, other)| one == other).count()
}

/// The domains that a process was in, by their numbers.
#[derive(Debug, Default)]
struct Had {
    /// All its threads.
    common: Vec<u64>,
    /// Any of them.
    all: BTreeSet<u64>,
    /// So many its threads are to be in together.
    together: usize,
}

/// Which layers processes have before they are complete, as they are made.
#[derive(Debug, Default)]
pub(crate) struct Early {
    had: BTreeMap<Pid, Had>,
    /// How many they have.
    layers: BTreeMap<Pid, usize>,
    /// Who has enforced one.
    by: BTreeMap<u64, Pid>,
    /// Those that other threads of their parents than the leaders make.
    made_by_threads: BTreeSet<Pid>,
    /// Those whose other threads have made some.
    threaded: BTreeSet<Pid>,
}

impl Early {
    pub(crate) fn of(processes: &[Process]) -> Early {
        let had = |live: &Live| Had {
            common: common(live).to_vec(),
            all: live
                .all_threads()
                .flat_map(|thread| thread.domains.clone())
                .collect(),
            together: live.layers_together as usize,
        };
        let lives = processes.iter().filter_map(|p| Some((p.pid, p.live()?)));
        let by_threads = processes.iter().filter(|p| p.parent_thread.is_some());
        Early {
            had: lives.map(|(pid, live)| (pid, had(live))).collect(),
            made_by_threads: by_threads.map(|process| process.pid).collect(),
            ..Early::default()
        }
    }

    /// `pid` is made by `by`. Err says why it would not be in the domains that it was in.
    pub(crate) fn fork(&mut self, pid: Pid, by: Option<Pid>) -> Result<(), (Pid, String)> {
        let Some(by) = by else { return Ok(()) };
        let has = self.layers.get(&by).copied().unwrap_or(0);
        let (Some(maker), Some(made)) = (self.had.get(&by), self.had.get(&pid)) else {
            self.layers.insert(pid, has);
            return Ok(());
        };
        let both = alike(&maker.common, &made.common);
        if both < has {
            let why = format!(
                "it is made by {by}, which is in a domain of Landlock by then that it is not in"
            );
            return Err((pid, why));
        }
        if both > has && self.threaded.contains(&by) {
            let why =
                "children of its threads and others are in different domains of Landlock with it";
            return Err((by, why.to_owned()));
        }
        for domain in &maker.common[has..both] {
            if *self.by.entry(*domain).or_insert(by) != by {
                let why = "it is in a domain of Landlock with others that it has not made";
                return Err((by, why.to_owned()));
            }
        }
        let threaded = self.made_by_threads.contains(&pid);
        self.threaded.extend(threaded.then_some(by));
        self.layers.insert(by, both);
        self.layers.insert(pid, both);
        Ok(())
    }

    /// When all are made: whether everybody is in a domain who was.
    pub(crate) fn finish(&self) -> Result<(), (Pid, String)> {
        let mut members: BTreeMap<u64, Vec<Pid>> = BTreeMap::new();
        for (pid, had) in &self.had {
            for domain in &had.all {
                members.entry(*domain).or_default().push(*pid);
            }
        }
        for (pid, had) in &self.had {
            let has = self.layers.get(pid).copied().unwrap_or(0);
            if had.together > has && self.threaded.contains(pid) {
                let why = "a child of one of its threads is not in the domain of Landlock that these are in together";
                return Err((*pid, why.to_owned()));
            }
            // The others it enforces itself.
            for domain in &had.all {
                let mut others = members.get(domain).into_iter().flatten();
                if had.common[..has].contains(domain) {
                    continue;
                }
                if let Some(other) = others.find(|other| *other != pid) {
                    let why = format!(
                        "it is in a domain of Landlock with {other}, and no parent of both could make it so"
                    );
                    return Err((*pid, why));
                }
            }
        }
        Ok(())
    }
}

/// Has `by` enforce what it is in together with `pid`, which it makes next.
pub(crate) fn before_fork(
    restore: &mut Restore<'_>,
    by: Pid,
    pid: Pid,
) -> Result<(), ResurrectError> {
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    let (Some(maker), Some(made)) = (lives.get(&by), lives.get(&pid)) else {
        return Ok(());
    };
    enforce_first(restore, by, maker, alike(common(maker), common(made)))
}

/// Has processes enforce what their threads are to be in together, before these are made.
pub(crate) fn before_threads(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let together = live.layers_together as usize;
        enforce_first(restore, pid, live, together.min(common(live).len()))?;
    }
    Ok(())
}

/// Enforces the first layers of a process up to a number, as far as it has not.
fn enforce_first(
    restore: &mut Restore<'_>,
    pid: Pid,
    live: &Live,
    upto: usize,
) -> Result<(), ResurrectError> {
    let has = restore.task(pid)?.layers;
    let first = live.all_threads().next();
    let layers = first.and_then(|thread| thread.layers.get(has..upto));
    let Some(layers) = layers.filter(|layers| !layers.is_empty()) else {
        return Ok(());
    };
    if !restore.task(pid)?.threads.is_empty() {
        return Err(ResurrectError::Impossible {
            pid,
            why: "it has threads already that are to be in its domain of Landlock".into(),
        });
    }
    let layers = layers.iter().filter_map(|at| live.layers.get(*at as usize));
    let layers: Vec<_> = layers.collect();
    let failed = |doing, errno| ResurrectError::call(pid, doing)(errno);
    let made = layers.iter().map(|layer| make(layer, &failed));
    let made: Vec<OwnedFd> = made.collect::<Result<_, _>>()?;
    let flags: Vec<u32> = layers.iter().map(|layer| super::flags(layer)).collect();
    let ends = socket::pair(AF_UNIX, SOCK_STREAM, 0);
    let (sender, receiver) = ends.map_err(ResurrectError::own("making a pair"))?;
    let receiver = numbers::copy(restore.manifest, &receiver)?;
    enter(restore, pid, (&made, &flags), receiver.as_raw_fd())?;
    let bridge = bridge(restore, pid, sender, receiver.as_raw_fd())?;
    let bridge = Arc::new(Mutex::new(bridge));
    restore.bridges.push(Arc::clone(&bridge));
    let task = restore.task(pid)?;
    task.layers = upto;
    task.first.set_lender(Some(bridge));
    Ok(())
}

/// Has a process take one end of a connection, and rulesets, and enforce them.
fn enter(
    restore: &mut Restore<'_>,
    pid: Pid,
    (rulesets, flags): (&[OwnedFd], &[u32]),
    receiver: i32,
) -> Result<(), ResurrectError> {
    const DOING: &str = "restricting it with Landlock";
    let way = restore.self_pidfd.as_raw_fd();
    let mut batch = Batch::new();
    let take = |batch: &mut Batch, fd: i32| {
        batch.call(
            "taking a descriptor",
            nr::PIDFD_GETFD,
            [way.into(), fd.into(), 0.into()],
        )
    };
    let end = take(&mut batch, receiver);
    let args = [end.into(), receiver.into(), O_CLOEXEC.into()];
    batch.call("numbering a socket", nr::DUP3, args);
    batch.call("closing a copy", nr::CLOSE, [end.into()]);
    let taken: Vec<_> = rulesets
        .iter()
        .map(|fd| take(&mut batch, fd.as_raw_fd()))
        .collect();
    for (ruleset, flags) in taken.into_iter().zip(flags) {
        let args = [ruleset.into(), (*flags).into()];
        batch.call("enforcing a ruleset", nr::LANDLOCK_RESTRICT_SELF, args);
        batch.call("closing a ruleset", nr::CLOSE, [ruleset.into()]);
    }
    run(pid, DOING, &mut restore.task(pid)?.first, &batch).map(drop)
}

/// Has a process make a helper beside itself, and keep a pidfd of that in the place of the one of this process.
fn bridge(
    restore: &mut Restore<'_>,
    pid: Pid,
    sender: OwnedFd,
    receiver: i32,
) -> Result<Bridge, ResurrectError> {
    const DOING: &str = "making a helper in its domain of Landlock";
    let own = restore.self_pidfd.try_clone();
    let own = own.map_err(|_| ResurrectError::call(pid, DOING)(Errno::EMFILE))?;
    let way = restore.self_pidfd.as_raw_fd();
    let mut ids = ids_to_spare(restore);
    let task = restore.task(pid)?;
    let (id, host) = loop {
        let id = ids.next().ok_or(Errno::EAGAIN);
        let id = id.map_err(ResurrectError::call(pid, DOING))?;
        let mut batch = Batch::new();
        let args = clone_args(&mut batch, CLONE_VM, 0, id.0);
        batch.call(DOING, nr::CLONE3, args);
        let output = task.first.run_raw(&batch);
        let output = output.map_err(ResurrectError::tracee(pid, DOING))?;
        match (batch.failure(&output), task.first.take_born().pop()) {
            (None, Some(host)) => break (id, host),
            (Some(failure), _) if failure.errno == Errno::EEXIST => {}
            (Some(failure), _) => return Err(ResurrectError::call(pid, DOING)(failure.errno)),
            (None, None) => return Err(ResurrectError::call(pid, DOING)(Errno::ECHILD)),
        }
    };
    wait_until_stopped(pid, host)?;
    let tracee = Tracee::new(Pid(host.0), host);
    let mut tracee = tracee.map_err(ResurrectError::tracee(pid, DOING))?;
    if let Some(scratch) = task.first.scratch() {
        let adopted = tracee.adopt_scratch(scratch, true);
        adopted.map_err(ResurrectError::tracee(pid, DOING))?;
    }
    let blocked = tracee.block_signals();
    blocked.map_err(ResurrectError::tracee(pid, DOING))?;
    let mut batch = Batch::new();
    let pidfd = batch.call(DOING, PIDFD_OPEN, [id.0.into(), 0.into()]);
    batch.call(
        DOING,
        nr::DUP3,
        [pidfd.into(), way.into(), O_CLOEXEC.into()],
    );
    batch.call(DOING, nr::CLOSE, [pidfd.into()]);
    batch.call(DOING, nr::CLOSE, [receiver.into()]);
    task.first.set_lender(None);
    run(pid, DOING, &mut task.first, &batch)?;
    Ok(Bridge {
        tracee,
        pid: id,
        parent: pid,
        sender,
        receiver,
        own,
        way,
        lent: Vec::new(),
    })
}

/// Ids that nobody of the manifest has, the highest first.
fn ids_to_spare(restore: &Restore<'_>) -> impl Iterator<Item = Pid> + use<> {
    const TRIES: i32 = 1000;
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    let most: i32 = most.unwrap_or(0x8000);
    let mut used = BTreeSet::new();
    for process in &restore.manifest.processes {
        used.extend([process.pid, process.sid, process.pgid]);
        let threads = process.live().into_iter().flat_map(Live::all_threads);
        used.extend(threads.map(|thread| Pid(thread.tid.0)));
    }
    for bridge in &restore.bridges {
        used.insert(bridge.lock().unwrap_or_else(PoisonError::into_inner).pid);
    }
    let all = (most.saturating_sub(TRIES).max(2)..most).rev().map(Pid);
    all.filter(move |id| !used.contains(id))
}

/// Ends all helpers, when nothing is to be fetched any more.
pub(crate) fn end_bridges(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for bridge in core::mem::take(&mut restore.bridges) {
        let mut bridge = bridge.lock().unwrap_or_else(PoisonError::into_inner);
        let task = restore.task(bridge.parent)?;
        task.first.set_lender(None);
        bridge.end(&mut task.first)?;
    }
    for task in restore.tasks.values_mut() {
        task.first_to_last()
            .for_each(|tracee| tracee.set_lender(None));
    }
    Ok(())
}

/// Kills them, where a restore has failed.
pub(crate) fn kill_bridges(bridges: &Bridges) {
    const SIGKILL: i32 = 9;
    for bridge in bridges {
        let bridge = bridge.lock().unwrap_or_else(PoisonError::into_inner);
        // What is gone already is what is wanted.
        let _ = sys::process::kill(bridge.tracee.pid(), SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes and the domains of their threads, and who makes them.
    fn plan(had: &[(i32, &[u64])], made: &[(i32, i32)]) -> Result<(), (Pid, String)> {
        let had = had.iter().map(|(pid, domains)| {
            let had = Had {
                common: domains.to_vec(),
                all: domains.iter().copied().collect(),
                together: 0,
            };
            (Pid(*pid), had)
        });
        let mut early = Early {
            had: had.collect(),
            ..Early::default()
        };
        for (pid, by) in made {
            early.fork(Pid(*pid), Some(Pid(*by)).filter(|by| by.0 != 0))?;
        }
        early.finish()
    }

    #[test]
    fn domains_come_from_parents() {
        let family: &[(i32, &[u64])] = &[(1, &[]), (2, &[7, 8]), (3, &[7]), (4, &[7, 8, 9])];
        let made = [(1, 0), (2, 1), (3, 2), (4, 2)];
        assert_eq!(plan(family, &made), Ok(()));
        // It would be in a domain that it was not in.
        let late = [(1, 0), (2, 1), (4, 2), (3, 2)];
        assert_eq!(plan(family, &late).unwrap_err().0, Pid(3));
        // Who was in it with both is gone.
        let orphan = [(1, 0), (2, 1), (3, 2), (4, 1)];
        assert!(plan(family, &orphan).is_err());
        // A domain of one's own is made at the end.
        assert_eq!(plan(&[(1, &[5]), (2, &[6])], &[(1, 0), (2, 1)]), Ok(()));
    }
}
