//! The `task_struct` of a thread, by its number in the PID namespace of this process.
//!
//! A namespace has a radix tree from numbers to `struct pid` (kernel/pid.c, lib/xarray.c); that one has a
//! list of the threads with the number, which is one. Everything found is compared with what it should
//! point back to.

use super::{Kernel, Unreadable, half, word};
use sys::Tid;

/// Marks a pointer to a node of the tree (include/linux/xarray.h, `xa_is_internal`).
const INTERNAL: u64 = 2;
const TAG: u64 = 3;
/// The tree of all 32-bit numbers is not higher.
const LEVELS: usize = 12;

/// Where things are, and the namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks {
    /// `pid_namespace` of this process, the root of its tree, and how deep it is nested.
    namespace: u64,
    root: u64,
    level: u64,
    node: Node,
    pid: PidFields,
    task: TaskFields,
}

/// Where a thread was found: its `task_struct`, and its number's `struct pid`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    task: u64,
    pid: u64,
}

/// A thread that was put off its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PutOff {
    /// When that was, by the scheduler's clock of the processor. None for one that waits for another processor since.
    pub(crate) at: Option<u64>,
    pub(crate) cpu: u32,
    /// How often it had been put on one.
    pub(crate) times_run: u64,
}

/// `struct xa_node`.
#[derive(Clone, Copy, Debug)]
struct Node {
    shift: u64,
    slots: u64,
    count: u64,
}

/// `struct pid`.
#[derive(Clone, Copy, Debug)]
struct PidFields {
    level: u64,
    tasks: u64,
    numbers: u64,
    number_size: u64,
    number: u64,
    namespace: u64,
}

/// `struct task_struct`.
#[derive(Clone, Copy, Debug)]
struct TaskFields {
    thread_pid: u64,
    links: u64,
}

impl Tasks {
    fn find(kernel: &mut Kernel) -> Result<Tasks, Unreadable> {
        let field = |structure, path| Ok(kernel.btf.field(structure, path)?.offset);
        let slots = kernel.btf.field("xa_node", "slots")?;
        let node = Node {
            shift: field("xa_node", "shift")?,
            slots: slots.offset,
            count: slots.elements,
        };
        let pid = PidFields {
            level: field("pid", "level")?,
            tasks: field("pid", "tasks")?,
            numbers: field("pid", "numbers")?,
            number_size: kernel.btf.size_of("upid")?,
            number: field("upid", "nr")?,
            namespace: field("upid", "ns")?,
        };
        let task = TaskFields {
            thread_pid: field("task_struct", "thread_pid")?,
            links: field("task_struct", "pid_links")?,
        };
        let root = field("pid_namespace", "idr.idr_rt.xa_head")?;
        if !node.count.is_power_of_two() {
            return Err(Unreadable::Inconsistent("a node of the tree of numbers"));
        }
        let own = kernel.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let own_pid = kernel.word(own.wrapping_add(task.thread_pid), "the own thread")?;
        let level = kernel.word(own_pid.wrapping_add(pid.level), "the own number")? & 0xffff_ffff;
        let number = own_pid.wrapping_add(pid.numbers + level * pid.number_size);
        let namespace = kernel.word(number.wrapping_add(pid.namespace), "the own number")?;
        let tasks = Tasks {
            namespace,
            root: namespace.wrapping_add(root),
            level,
            node,
            pid,
            task,
        };
        // What is known must be found: this thread itself.
        let me = Tid(nix::unistd::gettid().as_raw());
        match tasks.look_up(kernel, &[me])?[..] {
            [Some(found)] if found.task == own => Ok(tasks),
            _ => Err(Unreadable::Inconsistent("the tree of numbers")),
        }
    }

    /// The threads with these numbers, None for those that are not found.
    fn look_up(&self, kernel: &mut Kernel, tids: &[Tid]) -> Result<Vec<Option<Place>>, Unreadable> {
        let root = kernel.word(self.root, "the tree of numbers")?;
        let mut entries = vec![Some(root); tids.len()];
        for _ in 0..LEVELS {
            if !entries.iter().flatten().any(|entry| is_node(*entry)) {
                break;
            }
            self.descend(kernel, tids, &mut entries)?;
        }
        // A single leaf at the root would be number 0.
        let pids = entries
            .iter()
            .map(|entry| entry.filter(|at| *at != root && at & TAG == 0));
        let pids: Vec<u64> = pids.map(Option::unwrap_or_default).collect();
        let requests: Vec<_> = pids.iter().map(|pid| (*pid, self.pid_len())).collect();
        let found = kernel.read(&requests)?;
        let places: Vec<Option<Place>> = found
            .iter()
            .zip(tids.iter().zip(pids))
            .map(|(bytes, (tid, pid))| {
                let task = self.thread(bytes.as_ref()?, *tid).filter(|_| pid != 0)?;
                Some(Place { task, pid })
            })
            .collect();
        let task = |place: &Option<Place>| place.map_or(0, |place| place.task);
        let back: Vec<u64> = places
            .iter()
            .map(|place| task(place).wrapping_add(self.task.thread_pid))
            .collect();
        let back = kernel.words(&back)?;
        let all = places.into_iter().zip(back);
        Ok(all
            .map(|(place, back)| place.filter(|place| back == Some(place.pid)))
            .collect())
    }

    /// Whether all of these threads are still where they were found.
    fn still(&self, kernel: &mut Kernel, all: &[(Tid, Place)]) -> Result<bool, Unreadable> {
        let requests: Vec<_> = all
            .iter()
            .flat_map(|(_, place)| {
                let back = place.task.wrapping_add(self.task.thread_pid);
                [(place.pid, self.pid_len()), (back, 8)]
            })
            .collect();
        let found = kernel.read(&requests)?;
        let pairs = found.as_chunks::<2>().0.iter();
        Ok(pairs.zip(all).all(|([pid, back], (tid, place))| {
            let task = pid.as_ref().and_then(|bytes| self.thread(bytes, *tid));
            let back = back.as_ref().and_then(|bytes| word(bytes, 0));
            task == Some(place.task) && back == Some(place.pid)
        }))
    }

    /// Length of a `struct pid` of this namespace.
    fn pid_len(&self) -> usize {
        (self.pid.numbers + (self.level + 1) * self.pid.number_size) as usize
    }

    /// The thread of a `struct pid`, when it has this number here.
    fn thread(&self, pid: &[u8], tid: Tid) -> Option<u64> {
        let number = self.pid.numbers + self.level * self.pid.number_size;
        let same = half(pid, number + self.pid.number)? == tid.0.cast_unsigned()
            && word(pid, number + self.pid.namespace)? == self.namespace;
        // The first list is that of threads (PIDTYPE_PID).
        let link = word(pid, self.pid.tasks).filter(|_| same)?;
        link.checked_sub(self.task.links)
    }

    /// One level further down in the tree.
    fn descend(
        &self,
        kernel: &mut Kernel,
        tids: &[Tid],
        entries: &mut [Option<u64>],
    ) -> Result<(), Unreadable> {
        let len = self.node.slots + self.node.count * 8;
        let nodes: Vec<_> = entries
            .iter()
            .map(|entry| match entry {
                Some(entry) if is_node(*entry) => (entry - INTERNAL, len as usize),
                _ => (0, 0),
            })
            .collect();
        let found = kernel.read(&nodes)?;
        for ((entry, bytes), tid) in entries.iter_mut().zip(found).zip(tids) {
            if entry.is_some_and(is_node) {
                *entry = bytes.and_then(|bytes| self.slot(&bytes, *tid));
            }
        }
        Ok(())
    }

    /// The entry of a node for a number.
    fn slot(&self, node: &[u8], tid: Tid) -> Option<u64> {
        let shift = u32::from(*node.get(usize::try_from(self.node.shift).ok()?)?);
        let index = u64::try_from(tid.0).ok()?.checked_shr(shift)? & (self.node.count - 1);
        word(node, self.node.slots + index * 8).filter(|entry| *entry != 0)
    }
}

fn is_node(entry: u64) -> bool {
    entry & TAG == INTERNAL && entry > 4096
}

impl Kernel {
    /// Addresses of threads' `task_struct`, None for those that are not there.
    pub(crate) fn tasks(&mut self, tids: &[Tid]) -> Result<Vec<Option<u64>>, Unreadable> {
        let tasks = self.namespace()?;
        let place = |tid: &Tid| Some((*tid, *self.places_of_tasks.get(tid)?));
        let known: Option<Vec<(Tid, Place)>> = tids.iter().map(place).collect();
        if let Some(known) = known
            && tasks.still(self, &known)?
        {
            return Ok(known.iter().map(|(_, place)| Some(place.task)).collect());
        }
        let found = tasks.look_up(self, tids)?;
        let here = tids.iter().zip(&found);
        let here = here.filter_map(|(tid, place)| Some((*tid, (*place)?)));
        self.places_of_tasks.extend(here);
        Ok(found.iter().map(|place| Some((*place)?.task)).collect())
    }

    /// The number of the `struct pid` at this address, whose thread may have ended.
    pub(crate) fn number(&mut self, pid: u64) -> Result<Tid, Unreadable> {
        let tasks = self.namespace()?;
        let number = pid.wrapping_add(tasks.pid.numbers + tasks.level * tasks.pid.number_size);
        let bytes = self.read(&[(number, tasks.pid.number_size as usize)])?;
        let bytes = bytes.into_iter().next().flatten();
        let number = bytes.and_then(|bytes| {
            let here = word(&bytes, tasks.pid.namespace)? == tasks.namespace;
            half(&bytes, tasks.pid.number).filter(|_| here)
        });
        let number = number.ok_or(Unreadable::Inconsistent("the number of a thread"))?;
        Ok(Tid(number.cast_signed()))
    }

    /// How often each of these threads was put on a processor; None for those that are not there.
    pub(crate) fn times_run(&mut self, tids: &[Tid]) -> Result<Vec<Option<u64>>, Unreadable> {
        let at = self.btf.field("task_struct", "sched_info.pcount")?.offset;
        let tasks = self.tasks(tids)?;
        let at: Vec<u64> = tasks
            .iter()
            .map(|task| task.map_or(0, |task| task.wrapping_add(at)))
            .collect();
        self.words(&at)
    }

    /// When threads went to sleep, by a clock of the scheduler that runs on whatever processors do: when each was put on
    /// one last, and how long it was there. The clock is the same on all of them, but where their TSCs do not go alike:
    /// there it differs by up to a tick (kernel/sched/clock.c). None for those that are not there.
    pub(crate) fn asleep_since(&mut self, tids: &[Tid]) -> Result<Vec<Option<u64>>, Unreadable> {
        let field = |path| Ok(self.btf.field("task_struct", path)?.offset);
        let fields = [
            field("sched_info.last_arrival")?,
            field("se.sum_exec_runtime")?,
            field("se.prev_sum_exec_runtime")?,
        ];
        let tasks = self.tasks(tids)?;
        let all = tasks
            .iter()
            .flat_map(|task| fields.map(|at| task.map_or(0, |task| task.wrapping_add(at))));
        let words = self.words(&all.collect::<Vec<_>>())?;
        let since = |[arrived, ran, before]: &[Option<u64>; 3]| {
            let arrived = arrived.filter(|at| *at != 0)?;
            arrived.checked_add((*ran)?.saturating_sub((*before)?))
        };
        Ok(words.as_chunks::<3>().0.iter().map(since).collect())
    }

    /// What the scheduler records of threads that wait for a processor; None for those that run, or are not there.
    pub(crate) fn put_off(&mut self, tids: &[Tid]) -> Result<Vec<Option<PutOff>>, Unreadable> {
        // Asked first: whoever runs in between has run once more by the next time that this is asked.
        let times_run = self.times_run(tids)?;
        let field = |path| Ok(self.btf.field("task_struct", path)?.offset);
        let fields = [
            field("on_cpu")?,
            field("se.exec_start")?,
            field("thread_info.cpu")?,
        ];
        let tasks = self.tasks(tids)?;
        let requests = tasks
            .iter()
            .flat_map(|task| fields.map(|at| (task.map_or(0, |task| task.wrapping_add(at)), 8)));
        let requests: Vec<_> = requests.collect();
        let found = self.read(&requests)?;
        let each = found.as_chunks::<3>().0.iter().zip(times_run);
        let put_off = |([on_cpu, start, cpu], times_run): (&[Option<Vec<u8>>; 3], _)| {
            let waits = half(on_cpu.as_ref()?, 0)? == 0;
            let found = PutOff {
                at: word(start.as_ref()?, 0).filter(|at| *at != 0),
                cpu: half(cpu.as_ref()?, 0)?,
                times_run: times_run?,
            };
            waits.then_some(found)
        };
        Ok(each.map(put_off).collect())
    }

    /// What changes when a process or thread comes to this PID namespace, and when one is gone: where it looks for the
    /// next free number, and how many are in use.
    pub(crate) fn numbers_given(&mut self) -> Result<[u32; 2], Unreadable> {
        const WHAT: &str = "the numbers of processes";
        let field = |path| Ok(self.btf.field("pid_namespace", path)?.offset);
        let (next, used) = (field("idr.idr_next")?, field("pid_allocated")?);
        let namespace = self.namespace()?.namespace;
        let wanted = [next, used].map(|at| (namespace.wrapping_add(at), 4));
        let found = self.read(&wanted)?;
        let number = |bytes: &Option<Vec<u8>>| half(bytes.as_ref()?, 0);
        match found.iter().map(number).collect::<Option<Vec<u32>>>() {
            Some(found) if found.len() == 2 && found[1] > 0 => Ok([found[0], found[1]]),
            _ => Err(Unreadable::Inconsistent(WHAT)),
        }
    }

    fn namespace(&mut self) -> Result<Tasks, Unreadable> {
        let tasks = match self.tasks {
            Some(tasks) => tasks,
            None => Tasks::find(self)?,
        };
        self.tasks = Some(tasks);
        Ok(tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;

    #[test]
    fn threads_are_found_by_their_numbers() {
        let tids: Vec<Tid> = (0..5)
            .map(|_| {
                let (send, receive) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    send.send(Tid(nix::unistd::gettid().as_raw())).unwrap();
                    std::thread::park();
                });
                receive.recv().unwrap()
            })
            .chain([Tid(1), Tid(nix::unistd::gettid().as_raw()), Tid(0x3f_fff0)])
            .collect();
        let found = look(|kernel| {
            let pid = kernel.btf().field("task_struct", "pid")?.offset;
            let tasks = kernel.tasks(&tids)?;
            let known: Vec<u64> = tasks.iter().flatten().map(|task| task + pid).collect();
            Ok((tasks, kernel.words(&known)?))
        });
        let Some((tasks, mut numbers)) = readable(found) else {
            return;
        };
        assert_eq!(tasks.iter().flatten().count(), tids.len() - 1);
        assert_eq!(tasks.last(), Some(&None));
        // The first namespace's numbers, all different.
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), tids.len() - 1);
    }

    #[test]
    fn who_is_new_and_who_has_run_is_seen() {
        let (send, receive) = std::sync::mpsc::channel();
        let (again, wait) = std::sync::mpsc::channel::<()>();
        let given = || readable(look(Kernel::numbers_given));
        let Some(before) = given() else { return };
        let thread = std::thread::spawn(move || {
            loop {
                send.send(Tid(nix::unistd::gettid().as_raw())).unwrap();
                if wait.recv().is_err() {
                    return;
                }
            }
        });
        let tid = receive.recv().unwrap();
        assert_ne!(given(), Some(before));
        let times = || {
            // Until it sleeps.
            std::thread::sleep(std::time::Duration::from_millis(100));
            look(|kernel| kernel.times_run(&[tid, Tid(0x3f_fff0)])).unwrap()
        };
        let asleep = times();
        assert_eq!(times(), asleep);
        assert_eq!(asleep[1], None);
        again.send(()).unwrap();
        receive.recv().unwrap();
        assert!(times()[0] > asleep[0]);
        drop(again);
        thread.join().unwrap();
    }
}
