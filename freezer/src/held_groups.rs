//! Threads that a control group holds still (`cgroup.freeze` of cgroups(7)). They can be stopped, but whatever
//! they are to do for us would wait until the group lets them go.
//!
//! So it does, once they are stopped: nobody runs then. Before they go on the group holds them again
//! ([`LetGo`]), and they wait in it before they make another step (kernel/signal.c, get_signal). Only groups are let
//! go of which all threads are stopped.

use crate::kernel;
use crate::{FreezerError, Frozen, Refusal, proc};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::cgroups::{self, Hierarchies};
use sys::{Pid, Tid};

/// A group wants it to stand still (`JOBCTL_TRAP_FREEZE` of linux/sched/jobctl.h).
const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;
const RESOURCE: &str = "cgroup.freeze";

/// A group that holds its threads, and those of all groups below it.
#[derive(Debug)]
struct Held {
    path: Vec<u8>,
    directory: PathBuf,
}

/// The groups of version 2 that do, upper ones first.
#[derive(Debug, Default)]
pub(crate) struct HeldGroups(Vec<Held>);

impl HeldGroups {
    /// Those there are now: few hosts have any.
    pub(crate) fn find() -> HeldGroups {
        let mut found = HeldGroups::default();
        if let Some(root) = Hierarchies::find().directory(b"", b"/") {
            found.look_below(&root, &root);
        }
        found
    }

    fn look_below(&mut self, root: &Path, directory: &Path) {
        if cgroups::holds(directory) {
            let below = directory.strip_prefix(root).unwrap_or(directory);
            self.0.push(Held {
                path: [b"/", below.as_os_str().as_bytes()].concat(),
                directory: directory.to_owned(),
            });
        }
        for below in cgroups::below(directory) {
            self.look_below(root, &below);
        }
    }

    fn hold(&self, group: &[u8]) -> Option<&Held> {
        let above = |held: &&Held| {
            let rest = group.strip_prefix(held.path.as_slice());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.0.iter().find(above)
    }

    /// The uppermost one that holds a thread of a process.
    fn of(&self, pid: Pid) -> Option<&Held> {
        if self.0.is_empty() {
            return None;
        }
        proc::threads(pid).ok()?.into_iter().find_map(|tid| {
            let text = proc::read(pid, &format!("task/{tid}/cgroup")).ok()?;
            let mut lines = text.split(|byte| *byte == b'\n');
            let path = lines.find_map(|line| line.strip_prefix(b"0::"))?;
            self.hold(path)
        })
    }

    /// Why a process cannot be carried, if one of its threads is held. `inside` are those who are stopped with it, None
    /// for everybody.
    pub(crate) fn refusal(&self, pid: Pid, inside: Option<&BTreeSet<Pid>>) -> Option<Refusal> {
        let held = self.of(pid)?;
        let traced = proc::threads(pid).unwrap_or_default().into_iter();
        let mut traced = traced.filter_map(|tid| crate::tracer_of(pid, tid));
        let others = || {
            let threads = cgroups::threads(&held.directory).into_iter();
            let mut owners = threads.filter_map(|tid| proc::tgid(Pid(tid.0)));
            owners.find(|owner| inside.is_some_and(|inside| !inside.contains(owner)))
        };
        let why = match traced.next() {
            Some(tracer) => format!(", and {tracer} traces it"),
            None => format!(", and process {}, which is not part of the tree", others()?),
        };
        let group = String::from_utf8_lossy(&held.path);
        Some(Refusal {
            pid,
            comm: proc::comm(pid),
            resource: RESOURCE.into(),
            reason: format!("the control group {group} holds it still{why}"),
        })
    }
}

/// Groups that have let their stopped threads go for a while.
#[derive(Debug, Default)]
pub(crate) struct LetGo(Vec<PathBuf>);

impl LetGo {
    /// Whether this one has.
    pub(crate) fn has(&self, directory: &Path) -> bool {
        self.0.iter().any(|found| found == directory)
    }

    /// They hold them again, before anybody goes on.
    pub(crate) fn hold_again(&mut self) {
        for directory in self.0.drain(..) {
            if let Err(why) = cgroups::hold(&directory, true) {
                log::warn!(
                    "{} does not hold its threads again: {why}",
                    directory.display()
                );
            }
        }
    }
}

impl Drop for LetGo {
    fn drop(&mut self) {
        self.hold_again();
    }
}

/// Whether threads are held. None where the kernel does not tell.
fn are_held(tids: &[Tid]) -> Option<Vec<bool>> {
    let known = kernel::look(|kernel| {
        let field = kernel.btf().field("task_struct", "jobctl")?.offset;
        let tasks = kernel.tasks(tids)?;
        kernel.words_within(&tasks, field)
    });
    let held = |jobctl: Option<u64>| jobctl.is_some_and(|it| it & JOBCTL_TRAP_FREEZE != 0);
    Some(known.ok()?.into_iter().map(held).collect())
}

/// Has the groups that hold stopped threads let them go.
///
/// # Errors
/// [`FreezerError::Refused`] for groups that hold others, too.
pub(crate) fn let_go(frozen: &Frozen) -> Result<LetGo, FreezerError> {
    let of = |pid: Pid| frozen.threads(pid).into_iter();
    let threads = || frozen.pids().flat_map(of);
    let tids: Vec<Tid> = threads().map(|(tid, _)| tid).collect();
    if are_held(&tids).is_some_and(|held| !held.contains(&true)) {
        return Ok(LetGo::default());
    }
    let groups = HeldGroups::find();
    let inside: BTreeSet<Pid> = frozen
        .pids()
        .chain(frozen.zombies().iter().copied())
        .collect();
    let refused = |pid| groups.refusal(pid, Some(&inside));
    if let Some(why) = frozen.pids().find_map(refused) {
        return Err(FreezerError::Refused(vec![why]));
    }
    let mut found = LetGo::default();
    let upper: BTreeSet<&Path> = frozen
        .pids()
        .filter_map(|pid| Some(&*groups.of(pid)?.directory))
        .collect();
    let all = groups.0.iter().map(|held| &held.directory);
    for directory in all.filter(|it| upper.iter().any(|upper| it.starts_with(upper))) {
        let done = cgroups::hold(directory, false);
        found.0.push(directory.clone());
        if let Err(why) = done {
            let pid = frozen.pids().next().unwrap_or(Pid(0));
            let why = format!("{} does not let its threads go: {why}", directory.display());
            return Err(FreezerError::refuse(pid, RESOURCE, why));
        }
    }
    // Somebody may have changed it meanwhile.
    if are_held(&tids).is_some_and(|held| held.contains(&true)) {
        let pid = frozen.pids().next().unwrap_or(Pid(0));
        return Err(FreezerError::refuse(
            pid,
            RESOURCE,
            "a control group holds threads of it still",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_below_are_held_too() {
        let held = Held {
            path: b"/a/b".to_vec(),
            directory: PathBuf::new(),
        };
        let groups = HeldGroups(vec![held]);
        for held in ["/a/b", "/a/b/c"] {
            assert!(groups.hold(held.as_bytes()).is_some(), "{held}");
        }
        for free in ["/", "/a", "/a/bc", "/b"] {
            assert!(groups.hold(free.as_bytes()).is_none(), "{free}");
        }
    }
}
