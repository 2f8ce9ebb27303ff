//! The ends that processes outside of a tree hold.
//!
//! They are looked for before the tree is stopped, and once more when it stands still. A process gets
//! descriptors only by running, so that the second look leaves out who has not run since the first: the
//! scheduler counts (`/proc/PID/task/TID/schedstat`). Where the kernel's memory can be read that tells both: whether
//! somebody is new, and who has run.

use super::apart;
use super::ends::{self, End};
use crate::kernel::{self, Kernel};
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
    /// What [`Kernel::numbers_given`] told before they were listed.
    given: Option<[u32; 2]>,
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
        let given = kernel::look(Kernel::numbers_given).ok();
        let mut room = MOST.min(usize::try_from(limit / 4).unwrap_or(MOST));
        let one = |pid: Pid| {
            // Before its descriptors are listed.
            let watch = Watch::begin(pid, room);
            room -= watch.as_ref().map_or(0, |watch| watch.threads.len());
            let ends = ends_of(pid);
            (pid, Outsider { ends, watch })
        };
        let all = everybody_but(inside).into_iter().map(one).collect();
        let outsiders = Outsiders { all, given };
        // So that they are found faster later on.
        outsiders.times_run();
        outsiders
    }

    /// Looks again at who is new or has run, once the tree has stopped.
    pub(crate) fn look_again(&mut self, inside: &[Pid]) {
        let me = Pid(nix::unistd::getpid().as_raw());
        let given = kernel::look(Kernel::numbers_given).ok();
        let pids = match self.given.is_some() && self.given == given {
            true => self.all.keys().copied().collect(),
            false => everybody_but(inside),
        };
        let times = self.times_run();
        let mut known = core::mem::take(&mut self.all);
        for pid in pids {
            let has_not_run = |watch: &Watch| watch.has_not_run(times.as_ref());
            let outsider = match known.remove(&pid) {
                // What we have got since are copies of the tree's.
                Some(before) if pid == me => before,
                Some(before) if before.watch.as_ref().is_some_and(has_not_run) => before,
                _ => Outsider {
                    ends: ends_of(pid),
                    watch: None,
                },
            };
            self.all.insert(pid, outsider);
        }
    }

    /// How often threads that are watched were put on a processor, where the kernel's memory tells.
    fn times_run(&self) -> Option<BTreeMap<Tid, u64>> {
        let watches = self.all.values().filter_map(|one| one.watch.as_ref());
        let tids: Vec<Tid> = watches
            .flat_map(|watch| watch.threads.iter().map(|thread| thread.tid))
            .collect();
        let times = kernel::look(|kernel| kernel.times_run(&tids)).ok()?;
        let all = tids.into_iter().zip(times);
        Some(all.filter_map(|(tid, times)| Some((tid, times?))).collect())
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
    threads: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    tid: Tid,
    /// Its `schedstat`, and what that said.
    file: File,
    account: Account,
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
                let watched = Watched {
                    tid: *tid,
                    file,
                    account,
                };
                // Everybody has been put on a processor once, where that is counted.
                (times_in(&account)? > 0).then_some(watched)
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

    /// `times` is how often threads have run by now, where that is known.
    fn has_not_run(&self, times: Option<&BTreeMap<Tid, u64>>) -> bool {
        let same = |thread: &Watched| match times {
            Some(times) => times.get(&thread.tid).copied() == times_in(&thread.account),
            None => account(&thread.file) == Some(thread.account),
        };
        self.threads.iter().all(same)
    }
}

/// None when the thread has ended.
fn account(schedstat: &File) -> Option<Account> {
    let mut text = [0; 64];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    (0 < len && len < text.len()).then_some(text)
}

/// How often it was put on a processor.
fn times_in(account: &Account) -> Option<u64> {
    let text = String::from_utf8_lossy(account);
    let times = text.trim_end_matches(['\0', '\n']).rsplit(' ').next();
    times?.parse().ok()
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
        let outsider = Outsider {
            ends: Vec::new(),
            watch: Some(watch),
        };
        let outsiders = Outsiders {
            all: BTreeMap::from([(pid, outsider)]),
            given: None,
        };
        let watch = outsiders.all[&pid].watch.as_ref().unwrap();
        // By the kernel's memory, where that can be read.
        let sleeps = || watch.has_not_run(outsiders.times_run().as_ref());
        assert!(watch.has_not_run(None) && sleeps());
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut tries = 0..1000;
        while watch.has_not_run(None) && tries.next().is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!watch.has_not_run(None) && !sleeps());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!watch.has_not_run(None) && !sleeps(), "it has ended");
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
