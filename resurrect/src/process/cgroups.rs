//! Control groups (cgroups(7)): those that are gone are made again, and who was in them enters them.
//!
//! A process enters as soon as it is there, so that its memory counts where it did. What cannot be made or entered
//! is told and is no reason to give up who was in it.

use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{Cgroup, Live, Membership};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::{Pid, Tid, procdir};

/// Where hierarchies are mounted: type, options of the file system, place.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hierarchies(Vec<(String, String, PathBuf)>);

impl Hierarchies {
    fn find() -> Hierarchies {
        let me = Pid(nix::unistd::getpid().as_raw());
        let text = procdir::read(me, "mountinfo").unwrap_or_default();
        Hierarchies::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(mountinfo: &str) -> Hierarchies {
        let mount = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            let (root, place) = (fields.next()?, fields.next()?);
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            let whole = root == "/" && kind.starts_with("cgroup");
            whole.then(|| (kind.to_owned(), options.to_owned(), place.into()))
        };
        Hierarchies(mountinfo.lines().filter_map(mount).collect())
    }

    /// The directory of a group, None when its hierarchy is not mounted.
    fn directory(&self, of: &Membership) -> Option<PathBuf> {
        let is = |(kind, options, _): &&(String, String, PathBuf)| {
            let has = |what: &[u8]| options.split(',').any(|option| option.as_bytes() == what);
            match of.hierarchy.as_slice() {
                b"" => kind == "cgroup2",
                names => kind == "cgroup" && names.split(|byte| *byte == b',').all(has),
            }
        };
        let (_, _, place) = self.0.iter().find(is)?;
        let below = of.path.strip_prefix(b"/").unwrap_or(&of.path);
        Some(place.join(OsStr::from_bytes(below)))
    }
}

/// Makes the groups that are not there, with their settings.
pub(crate) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    restore.hierarchies = Hierarchies::find();
    let groups = &restore.manifest.cgroups;
    let place = |group: &Cgroup| restore.hierarchies.directory(&group.place);
    if groups.iter().filter_map(place).all(|path| path.is_dir()) {
        return Ok(());
    }
    for group in groups {
        let Some(directory) = place(group) else {
            continue;
        };
        let new = !directory.is_dir();
        if new && let Err(why) = std::fs::create_dir(&directory) {
            let place = directory.display();
            log::warn!("the control group {place} is not there again: {why}");
            continue;
        }
        for (name, wanted) in &group.settings {
            // Of groups that are there only what those below need.
            if new || name == "cgroup.subtree_control" {
                set(&directory.join(name), wanted);
            }
        }
    }
    Ok(())
}

/// Writes a file of a group, line by line, unless it says so already. What a kernel or a device does not have is
/// told.
fn set(file: &Path, wanted: &str) {
    let now = std::fs::read_to_string(file).unwrap_or_default();
    if now == wanted {
        return;
    }
    for line in wanted.lines() {
        if let Err(why) = write(file, line) {
            log::warn!("{} is not set to {line} again: {why}", file.display());
        }
    }
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(file)?;
    file.write_all(text.as_bytes())
}

/// A new process, made by `by`, enters the groups that it was in.
pub(crate) fn enter(restore: &Restore<'_>, pid: Pid, by: Option<Pid>) {
    let live = |wanted: Pid| restore.lives().find(|(pid, _)| *pid == wanted);
    let groups = |pid| live(pid).map(|(_, live): (Pid, &Live)| &live.cgroups);
    let (wanted, task) = (groups(pid), restore.tasks.get(&pid));
    if let (Some(wanted), Some(task)) = (wanted, task)
        && by.and_then(groups) != Some(wanted)
    {
        let host = task.host_pid().leader();
        move_to(restore, host, wanted, ["cgroup.procs"; 2]);
    }
}

/// Threads that were in other groups than their process enter them.
pub(crate) fn enter_threads(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let others = live
            .threads
            .iter()
            .filter(|thread| thread.cgroups.is_some());
        for thread in others {
            let Some(wanted) = &thread.cgroups else {
                continue;
            };
            let task = restore.task(pid)?;
            let of = task.threads.get(&thread.tid).unwrap_or(&task.first);
            let host = of.tid();
            move_to(restore, host, wanted, ["cgroup.threads", "tasks"]);
        }
    }
    Ok(())
}

/// Moves a process or thread to where it is not yet. `files`: what to write its number to in hierarchies of
/// version 2 and 1.
fn move_to(restore: &Restore<'_>, host: Tid, wanted: &[Membership], files: [&str; 2]) {
    let Ok(now) = procdir::read(Pid(host.0), "cgroup") else {
        return;
    };
    for group in wanted {
        let line = [b":", &*group.hierarchy, b":", &*group.path].concat();
        if now
            .split(|byte| *byte == b'\n')
            .any(|now| now.ends_with(&line))
        {
            continue;
        }
        let Some(directory) = restore.hierarchies.directory(group) else {
            log::warn!(
                "a control group of the hierarchy {} cannot be entered: it is not mounted",
                String::from_utf8_lossy(&group.hierarchy)
            );
            continue;
        };
        let [second, first] = files;
        let file = directory.join(if group.hierarchy.is_empty() {
            second
        } else {
            first
        });
        if let Err(why) = write(&file, &host.to_string()) {
            log::warn!("{} does not take a thread: {why}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

    #[test]
    fn groups_have_directories() {
        let mounts = Hierarchies::parse(MOUNTS);
        let place = |hierarchy: &str, path: &str| {
            mounts.directory(&Membership {
                hierarchy: hierarchy.into(),
                path: path.into(),
            })
        };
        let found = |path: &str| Some(PathBuf::from(path));
        assert_eq!(place("", "/a/b"), found("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(
            place("cpu,cpuacct", "/a"),
            found("/sys/fs/cgroup/cpu,cpuacct/a")
        );
        assert_eq!(place("name=systemd", "/"), found("/sys/fs/cgroup/systemd/"));
        assert_eq!(place("memory", "/a"), None);
    }
}
