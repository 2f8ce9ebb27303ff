//! Terminals, FIFOs, eventfds and tunnels that processes outside of the tree hold an end of, and processes outside that
//! pidfds stand for.

use super::apart;
use super::ends::{End, Ours, of, resource};
use super::outsiders::{Outsiders, lives_outside};
use crate::proc;
use crate::{FreezerError, Refusal};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use sys::Pid;
use sys::process::{KcmpKind, kcmp};

/// Everything of a tree that has an end outside.
pub(crate) fn refusals(ours: &Ours, outsiders: &Outsiders, inside: &[Pid]) -> Vec<Refusal> {
    let mut theirs: BTreeMap<End, Pid> = BTreeMap::new();
    let me = Pid(nix::unistd::getpid().as_raw());
    for (pid, ends) in outsiders.ends().filter(|(pid, _)| *pid != me) {
        let shared: Vec<End> = ends
            .iter()
            .filter(|end| meets(ours, end) && is_the_same(ours, pid, **end))
            .copied()
            .collect();
        // The tree may have grown since it was listed, or this one have ended.
        if !shared.is_empty() && lives_outside(pid, inside) {
            theirs.extend(shared.into_iter().map(|end| (end, pid)));
        }
    }
    let members: BTreeSet<Pid> = inside.iter().copied().filter(|pid| *pid != me).collect();
    let mut found = Vec::new();
    for (end, &(pid, fd)) in ours {
        let reason = match end {
            End::Fifo(..) | End::Tunnel(_) => theirs.get(end).map(|other| held_by(*other)),
            End::Master(index) => theirs.get(end).map(|other| held_by(*other)).or_else(|| {
                let other = theirs.get(&End::Slave(*index))?;
                Some(format!("{}: its slave, /dev/pts/{index}", held_by(*other)))
            }),
            End::Event(_) | End::Ring(_) => theirs.get(end).map(|other| held_by(*other)),
            End::Slave(index) if !ours.contains_key(&End::Master(*index)) => {
                let other = theirs.get(&End::Master(*index)).copied();
                let FreezerError::Refused(more) = master_elsewhere(pid, fd, *index, other) else {
                    continue;
                };
                found.extend(more);
                None
            }
            // A child that came after the tree was listed will be found when it is stopped; one that was waited
            // for meanwhile is gone for the pidfd, too.
            End::Process(target) if !members.contains(target) && lives_outside(*target, inside) => {
                Some(format!(
                    "it stands for process {target} ({}), which is not part of the tree",
                    proc::comm(*target)
                ))
            }
            End::Slave(_) | End::Process(_) | End::Pipe(_) | End::Socket(_) => None,
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
fn meets(ours: &Ours, end: &End) -> bool {
    match end {
        End::Master(index) => ours.contains_key(end) || ours.contains_key(&End::Slave(*index)),
        End::Slave(index) => ours.contains_key(&End::Master(*index)),
        End::Fifo(..) | End::Tunnel(_) | End::Event(_) | End::Ring(_) => ours.contains_key(end),
        // Pipes and sockets: see `outside`. A pidfd of theirs stands for whoever has its number.
        End::Pipe(_) | End::Socket(_) | End::Process(_) => false,
    }
}

/// Whether somebody else's end of a terminal is one of the tree's: other instances of devpts count from 0, too.
fn is_the_same(ours: &Ours, other: Pid, end: End) -> bool {
    let theirs = || {
        let all = apart::tables_of(other).into_iter();
        let all =
            all.flat_map(|table| of(table).into_iter().map(move |(fd, end)| (table, fd, end)));
        all.filter(|(.., found)| *found == end)
    };
    match end {
        // All who have a master have it from who opened it.
        End::Master(_) => ours.get(&end).is_none_or(|(pid, fd)| {
            let same = |(table, theirs, _): (Pid, i32, End)| {
                let order = kcmp(pid.leader(), table.leader(), KcmpKind::File, *fd, theirs);
                order.is_ok_and(|order| order == Ordering::Equal)
            };
            theirs().any(same)
        }),
        End::Slave(_) => {
            let instance = |path: &str| std::fs::metadata(path).map(|at| at.dev()).ok();
            let here = instance("/dev/pts");
            theirs().any(|(table, fd, _)| instance(&format!("/proc/{table}/fd/{fd}")) == here)
        }
        _ => true,
    }
}

fn held_by(other: Pid) -> String {
    let comm = proc::comm(other);
    format!("process {other} ({comm}), which is not part of the tree, holds it too")
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn sleeper(stdin: &OwnedFd) -> std::process::Child {
        std::process::Command::new("sleep")
            .arg("1000")
            .stdin(stdin.try_clone().unwrap())
            .spawn()
            .unwrap()
    }

    fn refused(shared: &OwnedFd) -> Vec<Refusal> {
        let mut children = [sleeper(shared), sleeper(shared)];
        let [one, other] = [0, 1].map(|index| Pid(children[index].id().cast_signed()));
        let found = refusals(
            &crate::files::ends::of_tree(&[one]),
            &Outsiders::look(&[one]),
            &[one],
        );
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = format!("process {other} (");
        found
            .into_iter()
            .filter(|refusal| refusal.resource.starts_with("fd 0 "))
            .filter(|refusal| refusal.reason.starts_with(&text))
            .collect()
    }

    #[test]
    fn a_process_that_ends_meanwhile_is_not_outside() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut target = sleeper(&null);
        let pid = Pid(target.id().cast_signed());
        let mut holder = sleeper(&sys::process::pidfd_open(pid).unwrap());
        let inside = [Pid(holder.id().cast_signed())];
        let ours = crate::files::ends::of_tree(&inside);
        let found = || {
            let all = refusals(&ours, &Outsiders::look(&inside), &inside);
            let named = |refusal: &Refusal| refusal.reason.contains("stands for");
            all.iter().filter(|refusal| named(refusal)).count()
        };
        let before = found();
        target.kill().unwrap();
        target.wait().unwrap();
        let after = found();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!((before, after), (1, 0));
    }

    #[test]
    fn an_eventfd_or_a_master_that_somebody_else_holds_is_named() {
        // Children of other tests are not to have it.
        let flags = nix::sys::eventfd::EfdFlags::EFD_CLOEXEC;
        let eventfd = nix::sys::eventfd::EventFd::from_flags(flags).unwrap();
        let eventfd = OwnedFd::from(eventfd);
        assert_eq!(refused(&eventfd).len(), 1);
        let master = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        assert_eq!(refused(&OwnedFd::from(master)).len(), 1);
        let file = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(refused(&OwnedFd::from(file)).len(), 0);
    }

    #[test]
    fn terminals_of_another_instance_are_others() {
        let master = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        let mut one = sleeper(&OwnedFd::from(master));
        let inside = [Pid(one.id().cast_signed())];
        let ours = crate::files::ends::of_tree(&inside);
        let index = |end: &End| match end {
            End::Master(index) => Some(*index),
            _ => None,
        };
        let most = ours.keys().filter_map(index).max().unwrap();
        let script = format!(
            "mount -t devpts devpts /dev/pts && for i in $(seq 0 {most}); do exec {{fd}}<>/dev/ptmx; done;
             exec sleep 1000"
        );
        let mut other = std::process::Command::new("unshare")
            .args(["--mount", "bash", "-c", &script])
            .spawn()
            .unwrap();
        let other_pid = Pid(other.id().cast_signed());
        let has = || {
            of(other_pid)
                .iter()
                .any(|(_, end)| *end == End::Master(most))
        };
        let begun = std::time::Instant::now();
        while !has() && begun.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let seen = has();
        let found = refusals(&ours, &Outsiders::look(&inside), &inside);
        for child in [&mut one, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = format!("process {other_pid} (");
        let named = found.iter().filter(|one| one.reason.contains(&text));
        assert!(seen && named.count() == 0, "{found:?}");
    }
}
