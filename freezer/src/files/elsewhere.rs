//! Terminals, FIFOs and tunnels that processes outside of the tree hold an end of, and processes outside that
//! pidfds stand for.
//!
//! Asked before any descriptor is copied: after that this process holds them all.

use super::{O_PATH, pidfd};
use crate::proc::{self, FdInfo};
use crate::{Externals, FreezerError, Frozen, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use sys::Pid;

/// A thing that has two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// A FIFO by device and inode.
    Fifo(u64, u64),
    /// The master of the pseudo terminal with this index.
    Master(u64),
    /// Its slave.
    Slave(u64),
    /// A pidfd of this process.
    Process(Pid),
    /// An interface of `/dev/net/tun`, by its name.
    Tunnel([u8; 16]),
}

/// Refuses what a process outside of the tree holds as well: its end would be cut off.
pub(crate) fn refuse(frozen: &Frozen, externals: &Externals) -> Result<(), FreezerError> {
    let inside: Vec<Pid> = frozen
        .pids()
        .chain(frozen.zombies().iter().copied())
        .collect();
    let found = externals.excuse(refusals(&inside));
    if found.is_empty() {
        Ok(())
    } else {
        Err(FreezerError::Refused(found))
    }
}

/// Everything of a tree that has an end outside.
pub(crate) fn refusals(inside: &[Pid]) -> Vec<Refusal> {
    let mut ours: BTreeMap<End, (Pid, i32)> = BTreeMap::new();
    for &pid in inside {
        for (fd, end) in ends(pid) {
            ours.entry(end).or_insert((pid, fd));
        }
    }
    let mut theirs: BTreeMap<End, Pid> = BTreeMap::new();
    let me = Pid(nix::unistd::getpid().as_raw());
    for pid in others(inside).filter(|pid| *pid != me) {
        let shared = ends(pid).into_iter().map(|(_, end)| end);
        let shared: Vec<End> = shared.filter(|end| meets(&ours, end)).collect();
        // The tree may have grown since it was listed, or this one have ended.
        if !shared.is_empty() && lives_outside(pid, inside) {
            theirs.extend(shared.into_iter().map(|end| (end, pid)));
        }
    }
    let members: BTreeSet<Pid> = inside.iter().copied().collect();
    let mut found = Vec::new();
    for (end, &(pid, fd)) in &ours {
        let reason = match end {
            End::Fifo(..) | End::Tunnel(_) => theirs.get(end).map(|other| held_by(*other)),
            End::Master(index) => theirs
                .get(&End::Slave(*index))
                .map(|other| format!("{}: its slave, /dev/pts/{index}", held_by(*other))),
            End::Slave(index) if !ours.contains_key(&End::Master(*index)) => {
                let other = theirs.get(&End::Master(*index)).copied();
                let FreezerError::Refused(more) = master_elsewhere(pid, fd, *index, other) else {
                    continue;
                };
                found.extend(more);
                None
            }
            End::Process(target) if !members.contains(target) => Some(format!(
                "it stands for process {target} ({}), which is not part of the tree",
                proc::comm(*target)
            )),
            End::Slave(_) | End::Process(_) => None,
        };
        found.extend(reason.map(|reason| Refusal {
            pid,
            comm: proc::comm(pid),
            resource: resource(pid, fd),
            reason,
        }));
    }
    found
}

/// Whether somebody else's end has to do with the tree.
fn meets(ours: &BTreeMap<End, (Pid, i32)>, end: &End) -> bool {
    match end {
        End::Master(index) => ours.contains_key(&End::Slave(*index)),
        End::Slave(index) => ours.contains_key(&End::Master(*index)),
        End::Fifo(..) | End::Process(_) | End::Tunnel(_) => ours.contains_key(end),
    }
}

/// Whether a process is there and none of its ancestors is part of the tree.
fn lives_outside(pid: Pid, inside: &[Pid]) -> bool {
    let mut pid = pid;
    while pid.0 > 1 {
        let Ok(stat) = proc::Stat::read(pid, "stat") else {
            return false;
        };
        pid = stat.pid(4);
        if inside.contains(&pid) {
            return false;
        }
    }
    true
}

fn held_by(other: Pid) -> String {
    let comm = proc::comm(other);
    format!("process {other} ({comm}), which is not part of the tree, holds it too")
}

fn resource(pid: Pid, fd: i32) -> String {
    let link = proc::link(pid, &format!("fd/{fd}")).unwrap_or_default();
    format!("fd {fd} ({})", String::from_utf8_lossy(&link))
}

/// A slave whose master nobody in the tree has: the tree's terminal.
pub(super) fn master_elsewhere(pid: Pid, fd: i32, index: u64, other: Option<Pid>) -> FreezerError {
    let whose = other.map_or_else(
        || "nobody in the tree holds its master".to_owned(),
        |other| {
            let comm = proc::comm(other);
            format!("process {other} ({comm}), which is not part of the tree, holds its master")
        },
    );
    let reason = format!("a terminal, /dev/pts/{index}, whose other end lies outside: {whose}");
    FreezerError::refuse(pid, resource(pid, fd), reason)
}

fn others(inside: &[Pid]) -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid));
    pids.filter(|pid| !inside.contains(pid))
}

/// The ends a process holds; none when it has ended.
fn ends(pid: Pid) -> Vec<(i32, End)> {
    let fds = proc::numbers(pid, "fd").unwrap_or_default().into_iter();
    fds.filter_map(|fd| Some((fd, end(pid, fd)?))).collect()
}

/// The interface it is open on, if any.
fn tunnel(info: &FdInfo) -> Option<End> {
    let name = info.value("iff")?.as_bytes();
    let mut padded = [0; 16];
    padded.get_mut(..name.len())?.copy_from_slice(name);
    (!name.is_empty()).then_some(End::Tunnel(padded))
}

fn end(pid: Pid, fd: i32) -> Option<End> {
    let link = proc::link(pid, &format!("fd/{fd}")).ok()?;
    let text = String::from_utf8_lossy(&link);
    if text.starts_with("pidfd:") || text == "anon_inode:[pidfd]" {
        return pidfd::target(&FdInfo::read(pid, fd).ok()?)?.map(End::Process);
    }
    if !text.starts_with('/') {
        return None;
    }
    if let Some(index) = text.strip_prefix("/dev/pts/").and_then(|n| n.parse().ok()) {
        return Some(End::Slave(index));
    }
    if text.ends_with("ptmx") {
        let info = FdInfo::read(pid, fd).ok()?;
        return info.number("tty-index", 10).map(End::Master);
    }
    if text.ends_with("/tun") {
        return tunnel(&FdInfo::read(pid, fd).ok()?);
    }
    let file = proc::metadata(pid, &format!("fd/{fd}")).ok()?;
    let opened = || FdInfo::read(pid, fd).ok()?.number("flags", 8);
    (file.file_type().is_fifo() && opened()? & u64::from(O_PATH) == 0)
        .then(|| End::Fifo(file.dev(), file.ino()))
}
