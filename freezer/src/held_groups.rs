//! Threads that a control group holds still (`cgroup.freeze` of cgroups(7)). They can be stopped, but whatever
//! they are to do for us would wait until the group lets them go.

use crate::kernel;
use crate::{FreezerError, Frozen, Refusal, proc};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::cgroups::Hierarchies;
use sys::{Pid, Tid};

/// A group wants it to stand still (`JOBCTL_TRAP_FREEZE` of linux/sched/jobctl.h).
const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;
const RESOURCE: &str = "cgroup.freeze";

/// The groups of version 2 that hold their threads, by their paths.
#[derive(Debug, Default)]
pub(crate) struct HeldGroups(Vec<Vec<u8>>);

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
        let held = std::fs::read(directory.join("cgroup.freeze")).is_ok_and(|text| text == b"1\n");
        if held {
            let below = directory.strip_prefix(root).unwrap_or(directory);
            let path = [b"/", below.as_os_str().as_bytes()].concat();
            // Those below are held with it.
            self.0.push(path);
            return;
        }
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.look_below(root, &entry.path());
            }
        }
    }

    fn hold(&self, group: &[u8]) -> Option<&[u8]> {
        let above = |held: &&Vec<u8>| {
            let rest = group.strip_prefix(held.as_slice());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.0.iter().find(above).map(Vec::as_slice)
    }

    /// Why a process cannot be carried, if one of its threads is held.
    pub(crate) fn refusal(&self, pid: Pid) -> Option<Refusal> {
        if self.0.is_empty() {
            return None;
        }
        let group = proc::threads(pid).ok()?.into_iter().find_map(|tid| {
            let text = proc::read(pid, &format!("task/{tid}/cgroup")).ok()?;
            let mut lines = text.split(|byte| *byte == b'\n');
            let path = lines.find_map(|line| line.strip_prefix(b"0::"))?;
            self.hold(path).map(<[u8]>::to_vec)
        })?;
        let group = String::from_utf8_lossy(&group);
        Some(Refusal {
            pid,
            comm: proc::comm(pid),
            resource: RESOURCE.into(),
            reason: format!("the control group {group} holds it still"),
        })
    }
}

/// Refuses those who have been held since they were looked at.
pub(crate) fn refuse_held(frozen: &Frozen) -> Result<(), FreezerError> {
    let of = |pid: Pid| {
        frozen
            .threads(pid)
            .into_iter()
            .map(move |(tid, _)| (pid, tid))
    };
    let threads: Vec<(Pid, Tid)> = frozen.pids().flat_map(of).collect();
    let tids: Vec<Tid> = threads.iter().map(|(_, tid)| *tid).collect();
    let known = kernel::look(|kernel| {
        let field = kernel.btf().field("task_struct", "jobctl")?.offset;
        let tasks = kernel.tasks(&tids)?;
        kernel.words_within(&tasks, field)
    });
    if let Ok(known) = known {
        let held = |jobctl: &Option<u64>| jobctl.is_some_and(|it| it & JOBCTL_TRAP_FREEZE != 0);
        let Some(first) = known.iter().position(held) else {
            return Ok(());
        };
        let pid = threads.get(first).map_or(Pid(0), |(pid, _)| *pid);
        let why = "a control group holds it still";
        return Err(FreezerError::refuse(pid, RESOURCE, why));
    }
    let groups = HeldGroups::find();
    match frozen.pids().find_map(|pid| groups.refusal(pid)) {
        Some(refusal) => Err(FreezerError::Refused(vec![refusal])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_below_are_held_too() {
        let groups = HeldGroups(vec![b"/a/b".to_vec()]);
        for held in ["/a/b", "/a/b/c"] {
            assert!(groups.hold(held.as_bytes()).is_some(), "{held}");
        }
        for free in ["/", "/a", "/a/bc", "/b"] {
            assert!(groups.hold(free.as_bytes()).is_none(), "{free}");
        }
    }
}
