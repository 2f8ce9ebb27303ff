//! The ends that processes outside of a tree hold.
//!
//! They are looked for before the tree is stopped, and once more when it stands still. A process gets
//! descriptors only by running, so that the second look leaves out who has not run since the first: the
//! scheduler counts (`/proc/PID/task/TID/schedstat`).

use super::apart;
use super::ends::{self, End};
use crate::proc::{self, Stat};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use sys::{Pid, Tid};

/// Threads that are watched at most: each takes a descriptor of ours.
const MOST: usize = 4096;

/// What processes outside of a tree hold.
#[derive(Debug, Default)]
pub(crate) struct Outsiders {
    all: BTreeMap<Pid, Outsider>,
}

#[derive(Debug)]
struct Outsider {
    ends: Vec<End>,
    /// None when it runs, or cannot be watched.
    watch: Option<Watch>,
}

impl Outsiders {
    /// Looks at everybody but the processes of the tree. To be called before descriptors are copied:
    /// afterwards this process has them, too.
    #[must_use]
    pub(crate) fn look(inside: &[Pid]) -> Outsiders {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let mut room = MOST.min(usize::try_from(limit / 4).unwrap_or(MOST));
        let one = |pid: Pid| {
            // Before its descriptors are listed.
            let watch = Watch::begin(pid, room);
            room -= watch.as_ref().map_or(0, |watch| watch.threads.len());
            let ends = ends_of(pid);
            (pid, Outsider { ends, watch })
        };
        let all = everybody_but(inside).into_iter().map(one).collect();
        Outsiders { all }
    }

    /// Looks again at who is new or has run, once the tree has stopped.
    pub(crate) fn look_again(&mut self, inside: &[Pid]) {
        let me = Pid(nix::unistd::getpid().as_raw());
        let mut known = core::mem::take(&mut self.all);
        for pid in everybody_but(inside) {
            let outsider = match known.remove(&pid) {
                // What we have got since are copies of the tree's.
                Some(before) if pid == me => before,
                Some(before) if before.watch.as_ref().is_some_and(Watch::has_not_run) => before,
                _ => Outsider {
                    ends: ends_of(pid),
                    watch: None,
                },
            };
            self.all.insert(pid, outsider);
        }
    }

    /// Who holds what.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (Pid, &[End])> {
        let all = self.all.iter();
        all.map(|(pid, outsider)| (*pid, outsider.ends.as_slice()))
    }
}

fn ends_of(pid: Pid) -> Vec<End> {
    let tables = apart::tables_of(pid).into_iter();
    tables.flat_map(ends::of).map(|(_, end)| end).collect()
}

fn everybody_but(inside: &[Pid]) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid));
    pids.filter(|pid| !inside.contains(pid)).collect()
}

/// Whether a process is there and none of its ancestors is part of the tree.
pub(crate) fn lives_outside(pid: Pid, inside: &[Pid]) -> bool {
    has_ancestor(pid, inside) == Some(false)
}

/// None when it is gone, or one of its ancestors is.
fn has_ancestor(pid: Pid, inside: &[Pid]) -> Option<bool> {
    let mut pid = pid;
    while pid.0 > 1 {
        pid = Stat::read(pid, "stat").ok()?.pid(4);
        if inside.contains(&pid) {
            return Some(true);
        }
    }
    Some(false)
}

/// Tells whether a sleeping process has run.
#[derive(Debug)]
struct Watch {
    /// The `schedstat` of each thread, and what it said.
    threads: Vec<(File, Account)>,
}

/// Nanoseconds run, nanoseconds waited, times it was put on a processor; as text.
type Account = [u8; 64];

impl Watch {
    /// None when one of its threads runs, there are more of them than `most`, or the kernel does not
    /// count.
    fn begin(pid: Pid, most: usize) -> Option<Watch> {
        let tids = proc::threads(pid).ok()?;
        if tids.len() > most {
            return None;
        }
        let threads: Vec<_> = tids
            .iter()
            .map(|tid| {
                let file = File::open(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
                let account = account(&file)?;
                counts(&account).then_some((file, account))
            })
            .collect::<Option<_>>()?;
        // The counters of one that runs may lag behind. The list is looked at last, since whoever is on
        // it would have to run to make another.
        let sleeps = |tid: &Tid| {
            Stat::read(pid, &format!("task/{tid}/stat")).is_ok_and(|stat| stat.state() != 'R')
        };
        let same = tids.iter().all(sleeps) && proc::threads(pid).ok()? == tids;
        same.then_some(Watch { threads })
    }

    fn has_not_run(&self) -> bool {
        let mut threads = self.threads.iter();
        threads.all(|(file, before)| account(file).as_ref() == Some(before))
    }
}

/// None when the thread has ended.
fn account(schedstat: &File) -> Option<Account> {
    let mut text = [0; 64];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    (0 < len && len < text.len()).then_some(text)
}

/// Everybody has been put on a processor once, where that is counted.
fn counts(account: &Account) -> bool {
    let text = String::from_utf8_lossy(account);
    let times = text.trim_end_matches(['\0', '\n']).rsplit(' ').next();
    times.is_some_and(|times| times != "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Child, Command, Stdio};

    fn sleeping(child: &Child) -> Pid {
        let pid = Pid(child.id().cast_signed());
        while Stat::read(pid, "stat").unwrap().state() != 'S'
            || proc::comm(pid) != "cat"
            || std::fs::read_to_string(format!("/proc/{pid}/syscall"))
                .is_ok_and(|call| !call.starts_with("0 "))
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        pid
    }

    #[test]
    fn who_runs_is_noticed() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = sleeping(&child);
        let watch = Watch::begin(pid, 1).unwrap();
        assert!(watch.has_not_run());
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut tries = 0..1000;
        while watch.has_not_run() && tries.next().is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!watch.has_not_run());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!watch.has_not_run(), "it has ended");
        let me = Pid(std::process::id().cast_signed());
        assert!(Watch::begin(me, 1000).is_none(), "it runs");
    }

    #[test]
    fn what_has_come_in_between_is_found() {
        let me = Pid(std::process::id().cast_signed());
        let mut outsiders = Outsiders::look(&[me]);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = sleeping(&child);
        assert!(!outsiders.all.contains_key(&pid));
        outsiders.look_again(&[me]);
        let ends = &outsiders.all[&pid].ends;
        assert!(ends.iter().any(|end| matches!(end, End::Pipe(_))));
        child.kill().unwrap();
        child.wait().unwrap();
        outsiders.look_again(&[me]);
        assert!(!outsiders.all.contains_key(&pid));
    }

    #[test]
    fn descendants_are_not_outside() {
        let me = Pid(std::process::id().cast_signed());
        let parent = Pid(nix::unistd::getppid().as_raw());
        assert!(!lives_outside(me, &[parent]));
        assert!(lives_outside(parent, &[me]));
        assert!(!lives_outside(Pid(i32::MAX), &[me]), "it does not exist");
    }
}
