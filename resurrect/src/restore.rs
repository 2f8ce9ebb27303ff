//! A restore from its beginning to the thaw.

use crate::ResurrectError;
use crate::calls::run_together;
use crate::files::Files;
use crate::files::uring::layout::{self, Moved};
use crate::ipc;
use crate::memory::{Families, Kernel};
use crate::numbers;
use crate::objects::Objects;
use crate::process::cgroups::Held;
use crate::processor::OneProcessor;
use crate::room::Room;
use crate::scratch::{self, BATCH_LEN};
use crate::stages::STAGES;
use crate::task::Task;
use crate::thaw::World;
use crate::thread::landlock::{self, Bridges, Rulesets};
use nix::sched::{CloneFlags, setns};
use persist_mem::manifest::{FileTable, Live, Manifest, State};
use persist_mem::store::PageStore;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use sys::batch::{Batch, Output};
use sys::cgroups::Hierarchies;
use sys::scratch::OwnScratch;
use sys::tracee::Tracee;
use sys::{Errno, Pid, Tid, process, wait};

/// What is called with the first process, as this process sees its id.
pub type Born<'a> = &'a dyn Fn(Pid) -> Result<(), String>;

/// What is called with what is rebuilt, and the ids that this process knows the processes by.
pub type Filled<'a> = &'a dyn Fn(&Manifest, &BTreeMap<Pid, Pid>) -> Result<(), String>;

/// How to restore.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Time that has passed on CLOCK_MONOTONIC since the manifest's clocks were read; time-outs are
    /// that much shorter.
    pub elapsed: Duration,
    /// Flags of clone3(2) for the first process (`CLONE_NEWPID`), beside SIGCHLD.
    pub root_flags: u64,
    /// Called when the first process is there as a stopped shell: what must be done inside its namespaces before files
    /// are opened. Where a restore begins again ([`crate::restore_most`]), once more.
    pub born: Option<Born<'a>>,
    /// Called once, when every process has its memory and nothing has run on it yet: the moment to compare
    /// pages. Later the kernel writes into some (what remains of sleeps, rseq areas).
    pub filled: Option<Filled<'a>>,
    /// What is handed over in place of open files that were external, by number.
    pub externals: Option<&'a BTreeMap<i32, OwnedFd>>,
}

impl core::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Options")
            .field("elapsed", &self.elapsed)
            .field("root_flags", &self.root_flags)
            .field("born", &self.born.is_some())
            .finish()
    }
}

/// A process under construction that makes calls, and which of its threads, where it is not the one that acts for it.
pub(crate) type Actor = (Pid, Option<Tid>);

/// What stages work on.
pub(crate) struct Restore<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) store: &'a dyn PageStore,
    pub(crate) options: Options<'a>,
    pub(crate) scratch: OwnScratch,
    /// Processes that are there, by the ids they have in their namespace.
    pub(crate) tasks: BTreeMap<Pid, Task>,
    /// Those that have their seccomp filters already.
    pub(crate) confined: BTreeSet<Pid>,
    /// Those that have acted as other users: theirs are not those they were made with.
    pub(crate) acted: BTreeSet<Pid>,
    pub(crate) files: Files,
    pub(crate) objects: Objects,
    pub(crate) hierarchies: Hierarchies,
    /// Control groups that hold their threads still when these go on.
    pub(crate) held: Held,
    pub(crate) kernel: Option<Rc<Kernel>>,
    pub(crate) families: Option<Rc<Families<'a>>>,
    pub(crate) moved_rings: Moved,
    /// A pidfd of this process; every process under construction has it under the same number.
    pub(crate) self_pidfd: OwnedFd,
    /// Rulesets that processes have taken and not enforced yet.
    pub(crate) rulesets: Rulesets,
    /// What AppArmor confines this process by.
    pub(crate) confined_by: Vec<u8>,
    /// Helpers in domains of Landlock.
    pub(crate) bridges: Bridges,
    pub(crate) processor: Option<OneProcessor>,
    _room: Room,
    started: Instant,
}

impl<'a> Restore<'a> {
    fn new(
        manifest: &'a Manifest,
        store: &'a dyn PageStore,
        options: Options<'a>,
    ) -> Result<Restore<'a>, ResurrectError> {
        let started = Instant::now();
        let me = Pid(nix::unistd::getpid().as_raw());
        let room = Room::make(manifest);
        let own = own_ranges(me)?;
        let address = scratch::find(manifest, &own).ok_or_else(|| ResurrectError::Own {
            subject: None,
            doing: "looking for an address range that all processes have free".into(),
            errno: Errno::ENOMEM,
        })?;
        let len = usize::try_from(BATCH_LEN).unwrap_or(0);
        let scratch = OwnScratch::map(address, len)
            .map_err(ResurrectError::own("mapping room for batches"))?;
        let pidfd = process::pidfd_open(me).map_err(ResurrectError::own("opening a pidfd"))?;
        Ok(Restore {
            manifest,
            store,
            options,
            scratch,
            tasks: BTreeMap::new(),
            confined: BTreeSet::new(),
            acted: BTreeSet::new(),
            files: Files::default(),
            objects: Objects::default(),
            hierarchies: Hierarchies::default(),
            held: Held::default(),
            kernel: None,
            families: None,
            moved_rings: Moved::new(),
            self_pidfd: numbers::copy(manifest, &pidfd)?,
            rulesets: Rulesets::new(),
            confined_by: Vec::new(),
            bridges: Bridges::new(),
            processor: OneProcessor::hold(),
            _room: room,
            started,
        })
    }

    /// Whether this may be another kernel, which does not make up all files that the old one did: what cannot be had
    /// must not cost the others their lives.
    pub(crate) fn is_upgrade(&self) -> bool {
        self.options.root_flags != 0
    }

    /// Time since the manifest's clocks were read.
    pub(crate) fn elapsed(&self) -> Duration {
        self.options.elapsed + self.started.elapsed()
    }

    /// Live processes of the manifest, parents before children.
    pub(crate) fn lives(&self) -> impl Iterator<Item = (Pid, &'a Live)> + use<'a> {
        let processes = self.manifest.processes.iter();
        processes.filter_map(|process| Some((process.pid, process.live()?)))
    }

    /// A process under construction.
    pub(crate) fn task(&mut self, pid: Pid) -> Result<&mut Task, ResurrectError> {
        self.tasks
            .get_mut(&pid)
            .ok_or_else(|| ResurrectError::Impossible {
                pid,
                why: "it was not made".into(),
            })
    }

    /// The thread that acts in a table of descriptors.
    pub(crate) fn keeper(&mut self, table: FileTable<'_>) -> Result<&mut Tracee, ResurrectError> {
        let task = self.task(table.pid)?;
        let Some(tid) = table.thread else {
            return Ok(&mut task.first);
        };
        let thread = task.threads.get_mut(&tid);
        thread.ok_or_else(|| ResurrectError::Impossible {
            pid: table.pid,
            why: format!("its thread {tid} was not made"),
        })
    }

    /// Makes calls in several processes side by side: a batch for each of them, or for a thread of it. What each
    /// has returned.
    pub(crate) fn together(
        &mut self,
        doing: &str,
        mut batches: BTreeMap<Actor, Batch>,
    ) -> Result<BTreeMap<Actor, Output>, ResurrectError> {
        batches.retain(|_, batch| !batch.is_empty());
        let actors: Vec<Actor> = batches.keys().copied().collect();
        let mut work = Vec::new();
        for (pid, task) in &mut self.tasks {
            let threads = task.threads.iter_mut();
            let threads = threads.map(|(tid, tracee)| (Some(*tid), tracee));
            for (tid, tracee) in [(None, &mut task.first)].into_iter().chain(threads) {
                if let Some(batch) = batches.remove(&(*pid, tid)) {
                    work.push((*pid, tracee, batch));
                }
            }
        }
        match batches.into_keys().next() {
            None => {
                run_together(doing, work).map(|outputs| actors.into_iter().zip(outputs).collect())
            }
            Some((pid, tid)) => Err(ResurrectError::Impossible {
                pid,
                why: match tid {
                    None => "it was not made".into(),
                    Some(tid) => format!("its thread {tid} was not made"),
                },
            }),
        }
    }

    /// Makes a child of this process in the namespace of the restored ones, where ids are theirs; with an id
    /// there, if one is given. Returns its id in this process's namespace.
    pub(crate) fn spawn_among(
        &self,
        id: Option<Pid>,
        body: impl FnOnce() -> i32,
    ) -> sys::Result<Pid> {
        let first = self.manifest.processes.first();
        let first = first.and_then(|process| self.tasks.get(&process.pid));
        let Some(first) = first.filter(|_| self.options.root_flags != 0) else {
            return process::spawn(0, id.as_slice(), body);
        };
        let namespace = process::pidfd_open(first.host_pid())?;
        setns(&namespace, CloneFlags::CLONE_NEWPID)?;
        let child = process::spawn(0, id.as_slice(), body);
        setns(&self.self_pidfd, CloneFlags::CLONE_NEWPID)?;
        child
    }

    /// What stands for those that are lost.
    pub(crate) fn take_lost(&mut self) -> Vec<Task> {
        let all = self.manifest.processes.iter();
        let lost = all.filter(|process| matches!(process.state, State::Lost { .. }));
        lost.filter_map(|process| self.tasks.remove(&process.pid))
            .collect()
    }

    fn end_all(&mut self) {
        // Orphans among them come to this process, which may need their ids again.
        let reaper = nix::sys::prctl::get_child_subreaper().unwrap_or(false);
        let _ = nix::sys::prctl::set_child_subreaper(true);
        landlock::kill_bridges(&self.bridges);
        for task in self.tasks.values_mut() {
            // What is gone already is what is wanted.
            let _ = process::end_traced(task.host_pid(), task.first.tid());
        }
        for task in self.tasks.values_mut() {
            // The leader can be waited for when the others are gone.
            let rest = task.threads.values().map(|thread| thread.tid());
            let ending = task.ending.as_ref().map(|leader| leader.tid());
            let waiting = task.in_vfork.values().map(Tracee::tid);
            let last = ending.into_iter().chain(waiting);
            for tid in rest.chain([task.first.tid()]).chain(last) {
                let _ = wait::wait_for_at_most(tid, Duration::from_secs(2));
            }
        }
        self.tasks.clear();
        while let Ok(Some(_)) = wait::poll_children() {}
        ipc::remove_all(self);
        let _ = nix::sys::prctl::set_child_subreaper(reaper);
    }
}

fn own_ranges(me: Pid) -> Result<Vec<(u64, u64)>, ResurrectError> {
    let text = sys::procdir::read(me, "maps").map_err(ResurrectError::own("reading own maps"))?;
    Ok(crate::memory::ranges(&text))
}

/// From this time on whoever looks at the console may ask what takes so long.
const LONG: Duration = Duration::from_millis(500);

/// Rebuilds every process of `manifest`, stopped.
///
/// Must be called by a process with one thread, which stays the tracer until the thaw.
///
/// # Errors
/// What was built is ended again.
pub fn restore(
    manifest: &Manifest,
    store: &dyn PageStore,
    options: Options<'_>,
) -> Result<World, ResurrectError> {
    let laid_out = layout::laid_out(manifest)?;
    let (manifest, moved_rings) = match laid_out {
        Some((ref laid_out, moved)) => (laid_out, moved),
        None => (manifest, Moved::new()),
    };
    let mut restore = Restore::new(manifest, store, options)?;
    restore.moved_rings = moved_rings;
    for (name, stage) in STAGES {
        let begun = Instant::now();
        if let Err(error) = stage(&mut restore) {
            log::debug!("stage `{name}` failed: {error}");
            restore.end_all();
            return Err(error);
        }
        let level = match begun.elapsed() {
            long if long >= LONG => log::Level::Info,
            _ => log::Level::Debug,
        };
        log::log!(level, "stage `{name}`: {:?}", begun.elapsed());
    }
    World::of(&mut restore).inspect_err(|_| restore.end_all())
}
