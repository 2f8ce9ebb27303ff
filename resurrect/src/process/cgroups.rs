//! Control groups (cgroups(7)): those that are gone are made again, and who was in them enters them.
//!
//! A process enters as soon as it is there, so that its memory counts where it did. What cannot be made or entered
//! is told and is no reason to give up who was in it.

use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{Cgroup, Live, Membership};
use std::ffi::CString;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use sys::cgroups::{self, FREEZE, Hierarchies};
use sys::{Pid, Tid, procdir};

/// Makes the groups that are not there, with their settings.
pub(crate) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    restore.hierarchies = Hierarchies::find();
    restore.held = let_go(restore)?;
    let groups = &restore.manifest.cgroups;
    let place = |group: &Cgroup| directory(restore, &group.place);
    if groups.iter().filter_map(place).all(|path| path.is_dir()) {
        return Ok(());
    }
    let mut held = Vec::new();
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
            if name != FREEZE && (new || name == "cgroup.subtree_control") {
                set(&directory.join(name), wanted);
            }
        }
        if new {
            hand_over(group, &directory);
            if holds(group) {
                held.push(directory);
            }
        }
    }
    restore.held.0.extend(held);
    Ok(())
}

/// Whether a group held its threads still.
fn holds(group: &Cgroup) -> bool {
    let mut settings = group.settings.iter();
    settings.any(|(name, text)| name == FREEZE && text.trim() == "1")
}

/// Has groups that hold their threads still, and are there, let those go that come: they have none yet. Those that hold
/// nobody any more are left so.
fn let_go(restore: &Restore<'_>) -> Result<Held, ResurrectError> {
    let mut held = Held::default();
    let groups = restore.manifest.cgroups.iter().filter(|group| holds(group));
    let directories = groups.filter_map(|group| directory(restore, &group.place));
    for directory in directories.filter(|directory| cgroups::holds(directory)) {
        let others = !cgroups::threads(&directory).is_empty();
        let why = match cgroups::hold(&directory, others) {
            Ok(()) if !others => {
                held.0.push(directory);
                continue;
            }
            Ok(()) => "it holds others".to_owned(),
            Err(why) => why.to_string(),
        };
        let first = restore.manifest.processes.first();
        return Err(ResurrectError::Impossible {
            pid: first.map_or(Pid(0), |process| process.pid),
            why: format!(
                "the control group {} holds it still: {why}",
                directory.display()
            ),
        });
    }
    Ok(held)
}

/// Groups that let their threads go as long as those are stopped. Dropped, they hold them still.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<PathBuf>);

impl Drop for Held {
    fn drop(&mut self) {
        for directory in &self.0 {
            if let Err(why) = cgroups::hold(directory, true) {
                let place = directory.display();
                log::warn!("the control group {place} does not hold its threads again: {why}");
            }
        }
    }
}

/// Gives a new group to whom it belonged, with its attributes. What cannot be is told.
fn hand_over(group: &Cgroup, directory: &Path) {
    for access in &group.access {
        let file = match access.name.as_str() {
            "" => directory.to_owned(),
            name => directory.join(name),
        };
        let mode = Permissions::from_mode(access.mode);
        let done = std::os::unix::fs::lchown(&file, Some(access.uid), Some(access.gid))
            .and_then(|()| std::fs::set_permissions(&file, mode));
        match done {
            // This kernel does not have all files.
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            Err(why) => log::warn!("{} is not handed over again: {why}", file.display()),
            Ok(()) => {}
        }
    }
    for (name, value) in &group.attributes {
        let set =
            CString::new(name.as_slice()).map(|name| sys::xattr::set(directory, &name, value));
        if let Ok(Err(why)) = set {
            log::warn!("{} does not take an attribute: {why}", directory.display());
        }
    }
}

fn directory(restore: &Restore<'_>, of: &Membership) -> Option<PathBuf> {
    restore.hierarchies.directory(&of.hierarchy, &of.path)
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
        let Some(directory) = directory(restore, group) else {
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
