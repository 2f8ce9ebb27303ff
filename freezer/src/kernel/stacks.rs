//! What lies on the kernel stacks of threads that sleep: timers that wake them, and the futex they wait at.
//!
//! A thread that sleeps is off the processor, so its stack stands still from `thread.sp` up. What is looked for is
//! told from other words by its pointers to the thread and to a function, and from what earlier calls have left
//! there by being queued. Where that is not clear, nothing is found.

use super::{Kernel, Unreadable, half, word};

/// `THREAD_SIZE` (arch/x86/include/asm/page_64_types.h).
const SIZE: u64 = 16384;
/// A system call that sleeps does not use more.
const USED: u64 = 4096;
const PAGE: u64 = 4096;
/// Its own addresses begin there or higher.
const KERNEL: u64 = 1 << 63;
/// The lower bits of a key's offset (include/linux/futex.h): of a file, or of memory that processes may share.
const OF_FILE: u32 = 1;
const LOW_BITS: u32 = 3;

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    stack: u64,
    sp: u64,
    mm: u64,
    /// In `struct hrtimer_sleeper`: task, function, when it expires, whether it is queued.
    precise: [u64; 4],
    /// In `struct process_timer`: the same.
    ticks: [u64; 4],
    /// In `struct futex_q`: task; the three parts of the key; the queue, and its lock.
    futex: [u64; 6],
    /// `hrtimer_wakeup`, `process_timeout`.
    functions: [Option<u64>; 2],
}

/// Where a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An address in its own memory.
    Address(u64),
    /// An offset in a file that is mapped shared.
    File(u64),
}

/// What looks like a thread's place in the queue of a futex. What an earlier call has left on the stack may look so,
/// too, where later ones have overwritten some of it: its neighbour does not point back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queued {
    place: Place,
    /// The address of its link, and what comes after it in the queue.
    link: u64,
    next: u64,
}

/// What a sleeping thread's stack tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    /// When the timer expires that wakes it, in nanoseconds of the first time namespace's CLOCK_MONOTONIC.
    pub(crate) end: Option<i64>,
    /// The futex it is queued at.
    pub(crate) futex: Option<Place>,
}

impl Layout {
    fn find(kernel: &mut Kernel) -> Result<Layout, Unreadable> {
        let field = |structure, path: &str| Ok(kernel.btf.field(structure, path)?.offset);
        let precise = |path: &str| field("hrtimer_sleeper", path);
        let ticks = |path: &str| field("process_timer", path);
        let futex = |path: &str| field("futex_q", path);
        let mut layout = Layout {
            stack: field("task_struct", "stack")?,
            sp: field("task_struct", "thread.sp")?,
            mm: field("task_struct", "mm")?,
            precise: [
                precise("task")?,
                precise("timer.function")?,
                precise("timer._softexpires")?,
                precise("timer.state").or_else(|_| precise("timer.is_queued"))?,
            ],
            ticks: [
                ticks("task")?,
                ticks("timer.function")?,
                ticks("timer.expires")?,
                ticks("timer.entry.pprev")?,
            ],
            futex: [
                futex("task")?,
                futex("key.both.ptr")?,
                futex("key.both.word")?,
                futex("key.both.offset")?,
                futex("list.node_list.next")?,
                futex("lock_ptr")?,
            ],
            functions: [None; 2],
        };
        layout.functions = ["hrtimer_wakeup", "process_timeout"].map(|name| kernel.symbol(name));
        Ok(layout)
    }

    /// When the timer that is on a thread's stack expires; the second is true for a number of ticks.
    fn timer(&self, stack: &[u8], task: u64) -> Option<(i64, bool)> {
        let found = |[owner, function, end, _]: [u64; 4], expected: Option<u64>, at: u64| {
            let is = word(stack, at + owner)? == task && word(stack, at + function) == expected;
            word(stack, at + end).filter(|_| is && expected.is_some())
        };
        let mut all = (0..stack.len() as u64).step_by(8).filter_map(|at| {
            let queued = || byte(stack, at + self.precise[3]).is_some_and(|state| state & 1 != 0);
            let linked = || word(stack, at + self.ticks[3]).is_some_and(|link| link != 0);
            let precise = found(self.precise, self.functions[0], at).filter(|_| queued());
            let ticks = || found(self.ticks, self.functions[1], at).filter(|_| linked());
            let precise = precise.map(|end| (end.cast_signed(), false));
            precise.or_else(|| Some((ticks()?.cast_signed(), true)))
        });
        let first = all.next()?;
        all.all(|other| other == first).then_some(first)
    }

    /// Where a thread may be queued, whose stack begins at address `sp`.
    fn futexes(&self, (stack, sp): (&[u8], u64), task: u64, mm: u64) -> Vec<Queued> {
        let [owner, pointer, first, offset, queue, lock] = self.futex;
        let key = |at: u64| {
            let (pointer, first) = (word(stack, at + pointer)?, word(stack, at + first)?);
            let offset = half(stack, at + offset)?;
            let within = u64::from(offset & !LOW_BITS);
            let next = word(stack, at + queue)?;
            let link = sp + at + queue;
            let queued = next != link && next >= KERNEL;
            let queued = queued && word(stack, at + lock)? >= KERNEL;
            let queued_at = |place| Queued { place, link, next };
            if word(stack, at + owner)? != task || within >= PAGE || !queued {
                return None;
            }
            if offset & OF_FILE != 0 {
                // A number of an inode, and a page.
                let plausible = (1..1 << 48).contains(&pointer) && first < 1 << 40;
                return plausible.then(|| queued_at(Place::File(first * PAGE + within)));
            }
            let own = (pointer == mm || pointer == 0) && first % PAGE == 0;
            let plausible = own && first != 0 && first < 1 << 56;
            plausible.then(|| queued_at(Place::Address(first + within)))
        };
        let places = (0..stack.len() as u64).step_by(8);
        places.filter_map(key).collect()
    }
}

fn byte(bytes: &[u8], at: u64) -> Option<u8> {
    bytes.get(usize::try_from(at).ok()?).copied()
}

impl Kernel {
    /// What the stacks of sleeping threads tell, by their `task_struct`; of those that are not found, nothing.
    /// `expected` is the futex that a thread waits at if it has not been moved.
    pub(crate) fn waits(
        &mut self,
        threads: &[(Option<u64>, Option<u64>)],
    ) -> Result<Vec<Waits>, Unreadable> {
        let layout = Layout::find(self)?;
        let tasks: Vec<u64> = threads.iter().map(|(task, _)| task.unwrap_or(0)).collect();
        let at = |field: u64| tasks.iter().map(move |task| task.wrapping_add(field));
        let heads: Vec<u64> = [layout.stack, layout.sp, layout.mm]
            .into_iter()
            .flat_map(at)
            .collect();
        let heads = self.words(&heads)?;
        let count = tasks.len();
        let head = |field: usize, thread: usize| {
            let read = heads.get(field * count + thread).copied().flatten();
            read.filter(|_| tasks[thread] != 0)
        };
        let used = |thread| {
            let (stack, sp) = (head(0, thread)?, head(1, thread)?);
            let used = stack.checked_add(SIZE)?.checked_sub(sp)?;
            (used <= SIZE).then(|| (sp, used.min(USED) as usize))
        };
        let requests: Vec<(u64, usize)> = (0..count).map(|n| used(n).unwrap_or((0, 0))).collect();
        let stacks = self.read(&requests)?;
        let places = self.futexes(&layout, &stacks, &requests, &tasks, |n| head(2, n))?;
        let mut clock = None;
        let all = stacks.into_iter().zip(threads).enumerate();
        Ok(all
            .map(|(n, (stack, (_, expected)))| {
                let Some(stack) = stack else {
                    return Waits::default();
                };
                let end = match layout.timer(&stack, tasks[n]) {
                    Some((end, false)) => Some(end),
                    Some((end, true)) => {
                        let clock = *clock.get_or_insert_with(|| self.ticks());
                        clock.map(|clock| clock.moment(end))
                    }
                    None => None,
                };
                let places = &places[n];
                let stays = expected.is_some_and(|at| places.contains(&Place::Address(at)));
                let futex = match places[..] {
                    [place] if !stays => Some(place),
                    _ => None,
                };
                Waits { end, futex }
            })
            .collect())
    }

    /// The futexes that threads are queued at.
    fn futexes(
        &mut self,
        layout: &Layout,
        stacks: &[Option<Vec<u8>>],
        requests: &[(u64, usize)],
        tasks: &[u64],
        mm: impl Fn(usize) -> Option<u64>,
    ) -> Result<Vec<Vec<Place>>, Unreadable> {
        /// In `struct list_head`.
        const PREV: u64 = 8;
        let of = |(n, stack): (usize, &Option<Vec<u8>>)| match (stack, mm(n)) {
            (Some(stack), Some(mm)) => layout.futexes((stack, requests[n].0), tasks[n], mm),
            _ => Vec::new(),
        };
        let seen: Vec<Vec<Queued>> = stacks.iter().enumerate().map(of).collect();
        let all = seen.iter().flatten();
        let behind: Vec<u64> = all.map(|one| one.next.wrapping_add(PREV)).collect();
        Ok(linked(&seen, self.words(&behind)?))
    }

    /// Nanoseconds from one tick to the next.
    pub(super) fn length_of_ticks(&mut self) -> Option<i64> {
        Some(self.ticks()?.length)
    }

    fn ticks(&mut self) -> Option<Ticks> {
        let (count, now) = self.memory.ticks().ok()?;
        let (count, now) = (count.cast_signed(), now.cast_signed());
        let length = 1_000_000_000 / rate(count, now)?;
        Some(Ticks { count, now, length })
    }
}

/// The kernel's count of ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    count: i64,
    /// The first time namespace's CLOCK_MONOTONIC at that count.
    now: i64,
    /// Nanoseconds from one to the next.
    length: i64,
}

impl Ticks {
    /// CLOCK_MONOTONIC at another count that is still to come, or now.
    fn moment(self, count: i64) -> i64 {
        let left = count.saturating_sub(self.count).max(0);
        self.now.saturating_add(left.saturating_mul(self.length))
    }
}

/// Where threads really are queued: `behind` has what the neighbours of all that was seen point back to, in turn.
fn linked(seen: &[Vec<Queued>], behind: Vec<Option<u64>>) -> Vec<Vec<Place>> {
    let mut behind = behind.into_iter();
    let mut is_linked = |one: &&Queued| behind.next().flatten() == Some(one.link);
    let mut places = |seen: &Vec<Queued>| {
        let found = seen.iter().filter(&mut is_linked);
        found.map(|one| one.place).collect()
    };
    seen.iter().map(&mut places).collect()
}

/// Ticks in a second (`HZ`), from their number and the first time namespace's CLOCK_MONOTONIC in nanoseconds: they
/// are counted from five minutes before 2^32 on (include/linux/jiffies.h, `INITIAL_JIFFIES`). None when that is not
/// clear.
fn rate(ticks: i64, now: i64) -> Option<i64> {
    const FROM: i64 = 1 << 32;
    const EARLIER: i64 = 300;
    /// Seconds by which the two may differ: the clock starts later, and they are read one after the other.
    const NEAR: i64 = 5;
    let up = now / 1_000_000_000;
    let is = |rate: &i64| ((ticks - FROM) / rate + EARLIER - up).abs() <= NEAR;
    let mut found = [100, 250, 300, 1000].into_iter().filter(is);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;
    use nix::time::ClockId;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;
    use sys::Tid;

    #[test]
    fn the_rate_of_ticks_shows() {
        let second = 1_000_000_000;
        assert_eq!(rate(4_309_084_061, 56_767 * second), Some(250));
        assert_eq!(rate((1 << 32) - 200 * 1000, 101 * second), Some(1000));
        assert_eq!(rate((1 << 32) + 100, 301 * second), None);
        assert_eq!(rate(7, 50 * second), None);
    }

    #[test]
    fn ticks_to_come_have_a_moment() {
        let ticks = Ticks {
            count: 100,
            now: 7,
            length: 4_000_000,
        };
        assert_eq!([103, 100, 9].map(|at| ticks.moment(at)), [12_000_007, 7, 7]);
    }

    #[test]
    fn leftovers_are_in_no_queue() {
        let queued = |at: u64| Queued {
            place: Place::Address(at),
            link: KERNEL + at,
            next: KERNEL + 4096 + at,
        };
        let seen = [vec![queued(8), queued(16)], vec![], vec![queued(24)]];
        let behind = vec![Some(KERNEL), Some(KERNEL + 16), None];
        let found = linked(&seen, behind);
        assert_eq!(found, [vec![Place::Address(16)], vec![], vec![]]);
    }

    #[test]
    fn a_sleeping_thread_is_read() {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let sleeper = Arc::clone(&shared);
        let (send, receive) = channel();
        let sleeper = std::thread::spawn(move || {
            let guard = sleeper.0.lock().unwrap();
            send.send(Tid(nix::unistd::gettid().as_raw())).unwrap();
            let woken = |over: &mut bool| !*over;
            drop(
                sleeper
                    .1
                    .wait_timeout_while(guard, Duration::from_secs(5), woken),
            );
        });
        let tid = receive.recv().unwrap();
        let call = || std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"));
        while !call().is_ok_and(|call| call.starts_with("202 ")) {
            std::thread::yield_now();
        }
        let found = look(|kernel| {
            let tasks = kernel.tasks(&[tid])?;
            let waits = kernel.waits(&[(tasks[0], None)])?[0];
            let Some(Place::Address(at)) = waits.futex else {
                panic!("{waits:?}");
            };
            Ok((waits, at, kernel.waits(&[(tasks[0], Some(at))])?[0]))
        });
        *shared.0.lock().unwrap() = true;
        shared.1.notify_all();
        sleeper.join().unwrap();
        let Some((waits, at, expected)) = readable(found) else {
            return;
        };
        let place = &raw const shared.1 as u64;
        assert!((place..place + size_of::<Condvar>() as u64).contains(&at));
        assert_eq!(
            expected,
            Waits {
                futex: None,
                ..waits
            }
        );
        let now = sys::clock::read_ns(ClockId::CLOCK_MONOTONIC).unwrap();
        let Some(end) = waits.end else {
            panic!("{waits:?}");
        };
        let offset = look(|kernel| kernel.clock_offsets()).unwrap()[0];
        assert!((0..=5_000_000_000).contains(&(end - offset - now)));
    }
}
