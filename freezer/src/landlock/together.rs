//! Domains that several processes or threads are in.
//!
//! A new domain is nobody else's, so such ones come back as they came about: the first process enforces its layers
//! before it makes the others. What follows has to be done in the domain then, and some of it cannot be.

use super::{Found, nodes, patiently, refuse};
use crate::{Refusal, proc};
use persist_mem::manifest::{LayerObject, LayerRule};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use sys::{Pid, Tid};

/// The field of `/proc/PID/stat`.
const PPID: usize = 4;
const SCOPE_ABSTRACT: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;
/// `LANDLOCK_ACCESS_FS_RESOLVE_UNIX`
const RESOLVE_UNIX: u64 = 1 << 16;

/// A look at all processes.
#[derive(Debug, Default)]
pub(super) struct Everybody {
    /// Who has a layer, by its node.
    members: BTreeMap<u64, BTreeSet<Pid>>,
    /// The layers that all threads of a process are in.
    common: BTreeMap<Pid, Vec<u64>>,
    parents: BTreeMap<Pid, Pid>,
    /// Threads that trace others, and whom.
    tracers: BTreeSet<(Tid, Pid)>,
}

impl Everybody {
    pub(super) fn look() -> Everybody {
        let mut found = Everybody::default();
        for pid in proc::everyone().unwrap_or_default() {
            // Who has ended does nothing any more.
            if proc::representative(pid).is_none() {
                continue;
            }
            let threads = proc::threads(pid).unwrap_or_default();
            for tid in &threads {
                let tracer = crate::freeze::traced::tracer_of(pid, *tid);
                found.tracers.extend(tracer.map(|tracer| (tracer, pid)));
            }
            if let Ok(stat) = proc::Stat::read(pid, "stat") {
                let parent = i32::try_from(stat.field(PPID)).unwrap_or(0);
                found.parents.insert(pid, Pid(parent));
            }
            let domains = patiently(|| super::domains_of(&threads)).unwrap_or_default();
            for node in domains.iter().flat_map(|(_, domain)| nodes(domain)) {
                found.members.entry(node).or_default().insert(pid);
            }
            let all = domains.iter().map(|(_, domain)| nodes(domain));
            let common = all.reduce(|mut one, other| {
                one.truncate(alike(&one, &other));
                one
            });
            let complete = domains.len() == threads.len();
            let common = common.filter(|_| complete).unwrap_or_default();
            found.common.insert(pid, common);
        }
        found
    }

    fn common(&self, pid: Pid) -> &[u64] {
        self.common.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Who else has a layer.
    fn others(&self, node: u64, pid: Pid) -> impl Iterator<Item = Pid> {
        let members = self.members.get(&node).into_iter().flatten();
        members.copied().filter(move |other| *other != pid)
    }

    fn is_member(&self, node: u64, pid: Pid) -> bool {
        self.members
            .get(&node)
            .is_some_and(|all| all.contains(&pid))
    }

    /// Whether a member's parent is not one.
    fn is_first(&self, node: u64, pid: Pid) -> bool {
        let parent = self.parents.get(&pid);
        !parent.is_some_and(|parent| self.is_member(node, *parent))
    }

    /// Whether children of a process were made before it was in a domain that an older one is in.
    fn out_of_order(&self, pid: Pid) -> bool {
        let own = self.common(pid);
        let threads = proc::threads(pid).unwrap_or_default().into_iter();
        let children = threads.flat_map(|tid| proc::children_of(pid, tid).into_iter().enumerate());
        // They are made again in this order.
        let children: BTreeSet<(usize, Pid)> = children.collect();
        let alive = children
            .iter()
            .filter_map(|(_, child)| self.common.get(child));
        let both = alive.map(|theirs| alike(own, theirs));
        !both.is_sorted()
    }
}

fn alike(one: &[u64], other: &[u64]) -> usize {
    let both = one.iter().zip(other);
    both.take_while(|(one, other)| one == other).count()
}

/// Whether no program may be executed where these layers are enforced: who has given that up, behind its
/// last open as a rule, has no children to signal from another thread.
fn may_execute_nothing(found: &Found, layers: &[u32]) -> bool {
    const EXECUTE: u64 = 1;
    let mut layers = layers
        .iter()
        .filter_map(|at| found.layers.get(*at as usize));
    layers.any(|layer| {
        let allowed = |rule: &LayerRule| {
            matches!(rule.object, LayerObject::Path(_)) && rule.allowed & EXECUTE != 0
        };
        layer.handled.fs & EXECUTE != 0 && !layer.rules.iter().any(allowed)
    })
}

/// How many of its first layers the threads of a process have to be in together, or why they cannot be.
pub(super) fn examine(
    pid: Pid,
    found: &Found,
    everybody: &Everybody,
    inside: Option<&BTreeSet<Pid>>,
) -> Result<u32, Refusal> {
    // Who is in the same domain, or further in, may be attached to.
    let unreachable = |(tid, nodes, _): &(Tid, Vec<u64>, Vec<u32>)| {
        let mut tracees = everybody.tracers.iter().filter(|(tracer, _)| tracer == tid);
        tracees.any(|(_, pid)| alike(nodes, everybody.common(*pid)) < nodes.len())
    };
    if found.threads.iter().any(unreachable) {
        let why = "it has restricted itself with Landlock and traces another process, which it could not do again";
        return Err(refuse(pid, why));
    }
    let with_processes = with_others(pid, found, everybody, inside)?;
    let scoped = among_threads(pid, found)?;
    let early = with_processes.max(scoped);
    if early > 0 {
        within(pid, found, early)?;
    }
    Ok(u32::try_from(scoped).unwrap_or(0))
}

/// How many of its first layers a process is in with others.
fn with_others(
    pid: Pid,
    found: &Found,
    everybody: &Everybody,
    inside: Option<&BTreeSet<Pid>>,
) -> Result<usize, Refusal> {
    let mut most = 0;
    for (_, nodes, _) in &found.threads {
        for (at, node) in nodes.iter().enumerate() {
            let Some(other) = everybody.others(*node, pid).next() else {
                continue;
            };
            most = most.max(at + 1);
            let together = |other: Pid| {
                let comm = proc::comm(other);
                format!(
                    "it has restricted itself with Landlock, together with process {other} ({comm})"
                )
            };
            let beyond = |other: &Pid| inside.is_some_and(|inside| !inside.contains(other));
            if let Some(other) = everybody.others(*node, pid).find(beyond) {
                let why = format!("{}, which is not saved", together(other));
                return Err(refuse(pid, why));
            }
            if !everybody.common(pid).contains(node) {
                let why = format!("{}, and not all its threads have", together(other));
                return Err(refuse(pid, why));
            }
            let mut others = everybody.others(*node, pid);
            if everybody.is_first(*node, pid)
                && let Some(other) = others.find(|other| everybody.is_first(*node, *other))
            {
                let why = format!("{}, and who has made both is gone", together(other));
                return Err(refuse(pid, why));
            }
        }
    }
    if most > 0 && everybody.out_of_order(pid) {
        let why = "it has restricted itself with Landlock, and children of it that are not in all the same domains are not in the order in which it would make them again";
        return Err(refuse(pid, why));
    }
    Ok(most)
}

/// How many of its first layers the threads of a process have to be in together.
fn among_threads(pid: Pid, found: &Found) -> Result<usize, Refusal> {
    let threads = || found.threads.iter();
    let scoped = |layer: &u32| {
        let layer = found.layers.get(*layer as usize);
        layer.is_some_and(|layer| layer.handled.scope != 0)
    };
    let having = |node: &u64| {
        let has = threads().filter(|(_, nodes, _)| nodes.contains(node));
        has.count()
    };
    let all = proc::threads(pid).map_or(0, |all| all.len());
    let mut most = 0;
    for (_, nodes, layers) in threads() {
        let both = nodes.iter().zip(layers).enumerate();
        for (at, (node, _)) in both.filter(|(_, (_, layer))| scoped(layer)) {
            if having(node) <= 1 || may_execute_nothing(found, layers) {
                continue;
            }
            if having(node) < all {
                let why = "some of its threads have scoped their signals or sockets together with Landlock (LANDLOCK_SCOPE_*) and may start programs: what they and their children may do to each other cannot be made again";
                return Err(refuse(pid, why));
            }
            most = most.max(at + 1);
        }
    }
    Ok(most)
}

/// Whether a process can be made within its first layers.
fn within(pid: Pid, found: &Found, early: usize) -> Result<(), Refusal> {
    let first = found.threads.first();
    let layers = first.map_or(&[][..], |(_, _, layers)| layers);
    let layers = layers.iter().take(early);
    let layers = layers.filter_map(|at| found.layers.get(*at as usize));
    let (mut scope, mut files) = (0, 0);
    for layer in layers {
        scope |= layer.handled.scope;
        files |= layer.handled.fs;
    }
    let reach = scope & SCOPE_ABSTRACT != 0 || files & RESOLVE_UNIX != 0;
    let Ok(links) = proc::Links::open(pid) else {
        return Ok(());
    };
    let pidfd = proc::pidfd(pid).ok();
    for fd in links.numbers() {
        let about = |why: &str| {
            let why =
                format!("{why}, and it is in a domain of Landlock with other processes or threads");
            refuse(pid, format!("descriptor {fd}: {why}"))
        };
        if links
            .read(*fd)
            .is_ok_and(|link| link == b"anon_inode:[io_uring]")
        {
            return Err(about("it is a ring of io_uring"));
        }
        if !reach && scope & SCOPE_SIGNAL == 0 {
            continue;
        }
        let copy = pidfd
            .as_ref()
            .map(|pidfd| sys::process::pidfd_getfd(pidfd.as_fd(), *fd));
        let Some(Ok(copy)) = copy else { continue };
        if reach && may_be_looked_up(&copy) {
            return Err(about(
                "it is a unix socket with a name, or connected to one, which this domain may forbid",
            ));
        }
        if scope & SCOPE_SIGNAL != 0 && sys::files::owner(&copy).is_ok_and(|owner| owner.id != 0) {
            return Err(about(
                "it has an owner of signals, which this domain scopes",
            ));
        }
    }
    Ok(())
}

/// Whether a unix socket has a name, or its peer.
fn may_be_looked_up(socket: &OwnedFd) -> bool {
    const AF_UNIX: [u8; 2] = 1_u16.to_ne_bytes();
    let named = |name: sys::Result<Vec<u8>>| {
        name.is_ok_and(|name| name.starts_with(&AF_UNIX) && name.len() > 2)
    };
    named(sys::socket::name(socket.as_fd())) || named(sys::socket::peer_name(socket.as_fd()))
}
