//! Control groups of processes and threads (cgroups(7)), and their settings.
//!
//! Threads with the same `css_set` are in the same groups of all hierarchies: one file is read for each of
//! them. Where the kernel's memory cannot be read, one for each thread.

use crate::kernel;
use crate::{FreezerError, Frozen, proc};
use persist_mem::manifest::{Access, Cgroup, Live, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use sys::cgroups::{FREEZE, Hierarchies};
use sys::{Pid, Tid};

/// Files that are no settings, or are handled by name.
const NO_SETTINGS: [&str; 9] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.type",
    "cgroup.subtree_control",
    "cpu.weight.nice",
    "memory.reclaim",
    "memory.peak",
    "memory.swap.peak",
];
/// Triggers of pressure stall information, which belong to descriptors.
const TRIGGERS: [&str; 4] = [
    "cpu.pressure",
    "io.pressure",
    "irq.pressure",
    "memory.pressure",
];

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Groups of every thread.
    of: BTreeMap<Tid, Vec<Membership>>,
    /// Nice values of the autogroups of sessions.
    autogroups: BTreeMap<Pid, i32>,
    /// The groups themselves and those above them, these first; of a whole host also those that nobody is in.
    pub(super) groups: Vec<Cgroup>,
}

impl Found {
    /// Says of a process and its threads where they were.
    pub(super) fn tell(&mut self, pid: Pid, sid: Pid, live: &mut Live) {
        let of = |tid| self.of.get(&tid).cloned().unwrap_or_default();
        let first = live.all_threads().next().map(|thread| thread.tid);
        live.cgroups = first.map_or_else(Vec::new, of);
        for thread in live.threads.iter_mut().skip(1) {
            let its = of(thread.tid);
            thread.cgroups = (its != live.cgroups).then_some(its);
        }
        let nice = || autogroup_nice(pid);
        live.autogroup_nice = *self.autogroups.entry(sid).or_insert_with(nice);
    }
}

/// Looks at everybody who is stopped, and at groups that nobody is in where the whole host goes.
pub(super) fn capture(frozen: &Frozen, host: bool) -> Result<Found, FreezerError> {
    let threads: Vec<(Pid, Tid)> = frozen
        .pids()
        .flat_map(|pid| {
            frozen
                .threads(pid)
                .into_iter()
                .map(move |(tid, _)| (pid, tid))
        })
        .collect();
    let sets = sets(&threads);
    let mut known: BTreeMap<u64, Vec<Membership>> = BTreeMap::new();
    let mut found = Found::default();
    for (n, (pid, tid)) in threads.into_iter().enumerate() {
        let set = sets.get(n).copied().flatten();
        let groups = match set.and_then(|set| known.get(&set)) {
            Some(groups) => groups.clone(),
            None => memberships(pid, tid)?,
        };
        if let Some(set) = set {
            known.entry(set).or_insert_with(|| groups.clone());
        }
        found.of.insert(tid, groups);
    }
    let all: BTreeSet<&Membership> = found.of.values().flatten().collect();
    let mut groups = with_those_above(all);
    let mounted = Hierarchies::find();
    if host && let Some(root) = mounted.directory(b"", b"/") {
        below(&root, b"", &mut groups);
    }
    found.groups = groups
        .into_iter()
        .map(|place| group(frozen, &mounted, place))
        .collect();
    Ok(found)
}

/// `task_struct.cgroups` of threads, None where it is not known.
fn sets(threads: &[(Pid, Tid)]) -> Vec<Option<u64>> {
    let tids: Vec<Tid> = threads.iter().map(|(_, tid)| *tid).collect();
    let found = kernel::look(|kernel| {
        let field = kernel.btf().field("task_struct", "cgroups")?.offset;
        let tasks = kernel.tasks(&tids)?;
        kernel.words_within(&tasks, field)
    });
    found.unwrap_or_default()
}

fn memberships(pid: Pid, tid: Tid) -> Result<Vec<Membership>, FreezerError> {
    let what = format!("task/{tid}/cgroup");
    match proc::read(pid, &what) {
        Ok(text) => Ok(parse(&text)),
        // A kernel without control groups.
        Err(FreezerError::Proc { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Err(other) => Err(other),
    }
}

/// Lines `number:controllers:path`.
fn parse(text: &[u8]) -> Vec<Membership> {
    let line = |line: &[u8]| {
        let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
        Some(Membership {
            hierarchy: parts.next()?.to_vec(),
            path: parts.next()?.to_vec(),
        })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Groups and all above them but the roots of version 1, upper ones first.
fn with_those_above(groups: BTreeSet<&Membership>) -> BTreeSet<Membership> {
    let mut all = BTreeSet::new();
    for group in groups.into_iter().filter(|group| group.path != b"/") {
        for (at, _) in group.path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let above = if at == 0 { 1 } else { at };
            all.insert(Membership {
                hierarchy: group.hierarchy.clone(),
                path: group.path[..above].to_vec(),
            });
        }
        all.insert(group.clone());
    }
    all.retain(|group| group.path != b"/" || group.hierarchy.is_empty());
    all
}

/// Adds the groups of version 2 below a directory, upper ones first.
fn below(directory: &Path, path: &[u8], groups: &mut BTreeSet<Membership>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = [path, b"/", entry.file_name().as_bytes()].concat();
            groups.insert(Membership {
                hierarchy: Vec::new(),
                path: path.clone(),
            });
            below(&entry.path(), &path, groups);
        }
    }
}

/// With the settings of those of version 2, and who may use them.
fn group(frozen: &Frozen, mounted: &Hierarchies, place: Membership) -> Cgroup {
    let directory = match place.hierarchy.is_empty() {
        true => mounted.directory(&place.hierarchy, &place.path),
        false => None,
    };
    let root = place.path == b"/";
    let mut group = Cgroup {
        settings: Vec::new(),
        access: Vec::new(),
        attributes: Vec::new(),
        place,
    };
    if let Some(directory) = directory {
        group.settings = settings(&directory, root);
        if frozen.is_held_by(&directory) {
            let held = |(name, _): &&mut (String, String)| name == FREEZE;
            let setting = group.settings.iter_mut().find(held);
            setting
                .into_iter()
                .for_each(|(_, text)| *text = "1\n".into());
        }
        if !root {
            group.access = access(&directory);
            group.attributes = attributes(&directory);
        }
    }
    group
}

/// Of the directory, and of files that are not as the kernel makes them: delegated ones (cgroups(7)).
fn access(directory: &Path) -> Vec<Access> {
    let of = |name: String, meta: &std::fs::Metadata| Access {
        name,
        uid: meta.uid(),
        gid: meta.gid(),
        mode: meta.mode() & 0o7777,
    };
    let mut found = Vec::new();
    if let Ok(meta) = std::fs::metadata(directory) {
        found.push(of(String::new(), &meta));
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) else {
            continue;
        };
        let ordinary = (meta.uid(), meta.gid()) == (0, 0)
            && matches!(meta.mode() & 0o7777, 0o444 | 0o644 | 0o200);
        if meta.is_file() && !ordinary {
            found.push(of(name, &meta));
        }
    }
    found
}

fn attributes(directory: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let names = sys::xattr::list(directory).unwrap_or_default();
    let value = |name: std::ffi::CString| {
        let value = sys::xattr::get(directory, &name).ok()?;
        Some((name.into_bytes(), value))
    };
    names.into_iter().filter_map(value).collect()
}

/// What a group's files hold that can be written; of the root only which controllers are on below it.
fn settings(directory: &Path, root: bool) -> Vec<(String, String)> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    let mut found = Vec::new();
    if read("cgroup.type").trim() == "threaded" {
        found.push(("cgroup.type".to_owned(), "threaded".to_owned()));
    }
    let on: Vec<String> = read("cgroup.subtree_control")
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    if !on.is_empty() {
        found.push(("cgroup.subtree_control".to_owned(), on.join(" ")));
    }
    if root {
        return found;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let writable = entry
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o200 != 0);
        if writable && !NO_SETTINGS.contains(&&*name) && !TRIGGERS.contains(&&*name) {
            let text = read(&name);
            found.push((name, text));
        }
    }
    found
}

/// The nice value of the autogroup (sched(7)) that a process is in, which is its session's.
fn autogroup_nice(pid: Pid) -> i32 {
    // Empty where a process is in none, not there on a kernel without them.
    let text = proc::read_text(pid, "autogroup").unwrap_or_default();
    let nice = text
        .rsplit(' ')
        .next()
        .and_then(|word| word.trim().parse().ok());
    nice.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(hierarchy: &[u8], path: &[u8]) -> Membership {
        Membership {
            hierarchy: hierarchy.to_vec(),
            path: path.to_vec(),
        }
    }

    #[test]
    fn lines_with_colons_in_paths() {
        let found = parse(b"4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/x/y\n");
        assert_eq!(
            found,
            [
                place(b"cpu,cpuacct", b"/a:b"),
                place(b"name=systemd", b"/"),
                place(b"", b"/x/y")
            ]
        );
    }

    #[test]
    fn upper_groups_come_first() {
        let groups = [place(b"", b"/a/b"), place(b"", b"/"), place(b"cpu", b"/c")];
        let all: Vec<_> = with_those_above(groups.iter().collect())
            .into_iter()
            .collect();
        assert_eq!(
            all,
            [
                place(b"", b"/"),
                place(b"", b"/a"),
                place(b"", b"/a/b"),
                place(b"cpu", b"/c")
            ]
        );
        let nothing = [place(b"", b"/"), place(b"cpu", b"/")];
        assert!(with_those_above(nothing.iter().collect()).is_empty());
    }
}
