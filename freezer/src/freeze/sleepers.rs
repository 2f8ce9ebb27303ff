//! Since when threads sleep: what remains of their time-outs is only known to the kernel.

use super::calls;
use crate::kernel::{self, Place, PutOff};
use crate::proc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use std::collections::BTreeMap;
use std::path::Path;
use sys::{Pid, Tid};

const POLL: i64 = 7;
const NANOSLEEP: i64 = 35;
const FUTEX: i64 = 202;
const RESTART_SYSCALL: i64 = 219;
const CLOCK_NANOSLEEP: i64 = 230;
const FUTEX_WAIT: i64 = 455;

/// Tries to read a scheduler's clock without being put off the CPU meanwhile.
const TRIES: usize = 5;
const SOON_NS: u64 = 20_000;

/// The schedulers' clocks, one for each CPU: they leave out what interrupts and the hypervisor took,
/// so they differ.
#[derive(Debug)]
pub(super) struct SchedulerClocks {
    /// CPU, and its clock minus CLOCK_MONOTONIC.
    offsets: BTreeMap<i64, i64>,
    /// They are not needed for calls whose rest the kernel keeps: that can be read.
    rest_is_readable: bool,
}

impl SchedulerClocks {
    /// Compares them with CLOCK_MONOTONIC by going to each CPU.
    pub(super) fn measure() -> SchedulerClocks {
        let this = nix::unistd::Pid::from_raw(0);
        let mut offsets = BTreeMap::new();
        let rest_is_readable = crate::capture::rest_is_readable();
        let Ok(before) = sched_getaffinity(this) else {
            return SchedulerClocks {
                offsets,
                rest_is_readable,
            };
        };
        for (cpu, number) in (0..CpuSet::count()).zip(0..) {
            let mut one = CpuSet::new();
            if one.set(cpu).is_err() || sched_setaffinity(this, &one).is_err() {
                // Not there; numbers without a CPU are at the end, but for those taken offline.
                if !Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}")).exists() {
                    break;
                }
                continue;
            }
            if let Some(offset) = offset_here() {
                offsets.insert(number, offset);
            }
        }
        // Fails only when those CPUs have gone meanwhile.
        let _ = sched_setaffinity(this, &before);
        SchedulerClocks {
            offsets,
            rest_is_readable,
        }
    }

    /// CLOCK_MONOTONIC when a thread was put off its processor.
    fn monotonic(&self, put_off: PutOff) -> Option<u64> {
        let offset = self.offsets.get(&i64::from(put_off.cpu))?;
        u64::try_from(put_off.at?.cast_signed() - offset).ok()
    }

    /// The sleep that a thread is in.
    fn sleep(&self, pid: Pid, tid: Tid) -> Option<Asleep> {
        const PROCESSOR: usize = 39;
        let record = Record::read(&format!("/proc/{pid}/task/{tid}/sched"))?;
        let stat = proc::Stat::read(pid, &format!("task/{tid}/stat")).ok()?;
        let offset = self.offsets.get(&stat.field(PROCESSOR));
        let since = offset.map(|offset| record.start.cast_signed() - offset);
        Some(Asleep {
            since_ns: since.and_then(|since| u64::try_from(since).ok()),
            switches: Some(record.switches),
            ends_ns: None,
            moved_to: None,
        })
    }
}

/// This CPU's scheduler clock minus CLOCK_MONOTONIC: at most what it is, so that nobody seems to have
/// slept longer than it did.
fn offset_here() -> Option<i64> {
    let mut best = None;
    for _ in 0..TRIES {
        let before = monotonic_ns();
        // Makes our own last start on the CPU recent. Somebody else may run in between.
        std::thread::yield_now();
        let start = Record::read("/proc/thread-self/sched")?.start;
        let after = monotonic_ns();
        let offset = start.cast_signed() - after.cast_signed();
        best = best.max(Some(offset));
        if after - before < SOON_NS {
            break;
        }
    }
    best
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    // The clock is always there.
    sys::clock::read_ns(ClockId::CLOCK_MONOTONIC).map_or(0, i64::cast_unsigned)
}

/// How a thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sleeper {
    /// In which call.
    pub(super) nr: i64,
    /// Where it has a relative time-out and the kernel tells.
    pub(super) asleep: Option<Asleep>,
    /// It has one whose rest is read from the kernel, so that nobody needs to know since when it sleeps.
    pub(super) rest_is_kept: bool,
    /// The futex that the call names.
    pub(super) futex: Option<u64>,
    /// When it went to sleep, where others may wait for the same, by a clock that is the same for all.
    pub(super) waits_since: Option<u64>,
}

/// One sleep of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asleep {
    /// CLOCK_MONOTONIC when it went to sleep, where the kernel tells.
    since_ns: Option<u64>,
    /// How often it has gone to sleep, this time included. None when it is known to be the one that it was stopped in.
    switches: Option<u64>,
    /// CLOCK_MONOTONIC when a timer ends it, where that can be read.
    ends_ns: Option<u64>,
    /// The futex it waits at when that is another one than its call names.
    moved_to: Option<u64>,
}

/// What is known of the sleep in which a thread was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stopped {
    /// CLOCK_MONOTONIC when it began.
    pub(super) since_ns: Option<u64>,
    /// CLOCK_MONOTONIC when a timer would have ended it.
    pub(super) ends_ns: Option<u64>,
    /// Where it waited when that is another futex than its call names.
    pub(super) moved_to: Option<u64>,
}

impl Asleep {
    /// Of the sleep in which a thread was stopped; this is the one it was in when it was looked at. It may have
    /// ended since, and another one begun: that has just begun then.
    pub(super) fn of_stopped(self, pid: Pid, tid: Tid) -> Stopped {
        // Being stopped counts as going to sleep, too.
        let most = self.switches.map(|before| before.saturating_add(1));
        let same = most.is_none_or(|most| {
            let record = Record::read(&format!("/proc/{pid}/task/{tid}/sched"));
            record.is_none_or(|record| record.switches <= most)
        });
        match same {
            true => Stopped {
                since_ns: self.since_ns,
                ends_ns: self.ends_ns,
                moved_to: self.moved_to,
            },
            false => Stopped {
                since_ns: Some(monotonic_ns()),
                ..Stopped::default()
            },
        }
    }
}

/// A thread that does not sleep: it runs, or waits for a processor, on a busy machine for long after it was woken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awake {
    /// None when it runs, or that is not known.
    put_off: Option<PutOff>,
    /// CLOCK_MONOTONIC when it was put off its processor.
    since_ns: Option<u64>,
}

impl Awake {
    /// Of one that has just been asked to stop: since when it is in the call that it will be stopped in, if it is in
    /// one. When it has not run since it was looked at it comes to nothing else, and it was in that call when it was put
    /// off its processor.
    pub(super) fn asleep(self, tid: Tid) -> Asleep {
        let has_run = |put_off: PutOff| {
            let times = kernel::look(|kernel| kernel.times_run(&[tid]));
            times.ok().and_then(|times| times[0]) != Some(put_off.times_run)
        };
        let waits = self.put_off.is_some_and(|put_off| !has_run(put_off));
        Asleep {
            since_ns: self.since_ns.filter(|_| waits).or(Some(monotonic_ns())),
            switches: None,
            ends_ns: None,
            moved_to: None,
        }
    }
}

/// Looks at threads of a process that do not sleep.
pub(super) fn look_at_awake(
    clocks: &SchedulerClocks,
    tids: impl Iterator<Item = Tid>,
) -> BTreeMap<Tid, Awake> {
    let tids: Vec<Tid> = tids.collect();
    if tids.is_empty() {
        return BTreeMap::new();
    }
    let read = kernel::look(|kernel| kernel.put_off(&tids));
    let all = read.unwrap_or_else(|why| {
        log::debug!("since when threads wait for a processor: {why}");
        vec![None; tids.len()]
    });
    let awake = |put_off: Option<PutOff>| Awake {
        put_off,
        since_ns: put_off.and_then(|put_off| clocks.monotonic(put_off)),
    };
    tids.into_iter().zip(all.into_iter().map(awake)).collect()
}

/// What is to be found out about the time-out of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeOut {
    /// None, or an absolute one.
    Nothing,
    /// Since when the thread sleeps.
    Since,
    /// Nothing where the rest that the kernel keeps can be read (`capture/restart.rs`).
    Kept,
}

/// Looks at threads of a process that sleep in calls. To be asked before they are stopped, which wakes them.
pub(super) fn look_at(
    clocks: &SchedulerClocks,
    pid: Pid,
    tids: impl Iterator<Item = Tid>,
) -> BTreeMap<Tid, Sleeper> {
    let looked = tids.filter_map(|tid| Some((tid, look(clocks, pid, tid)?)));
    let mut found: BTreeMap<Tid, Sleeper> = looked.collect();
    let of_interest =
        |(_, sleeper): &(&Tid, &Sleeper)| sleeper.asleep.is_some() || sleeper.futex.is_some();
    let some = found.iter().filter(of_interest);
    let some: Vec<(Tid, Option<u64>)> = some.map(|(tid, s)| (*tid, s.futex)).collect();
    let mut moved = Vec::new();
    for (one, waits) in some.iter().zip(waits(&some)) {
        let Some(sleeper) = found.get_mut(&one.0) else {
            continue;
        };
        if sleeper.futex.is_some() && waits.place.is_some() {
            moved.push(*one);
        }
        if let Some(asleep) = &mut sleeper.asleep {
            asleep.ends_ns = waits.ends_ns;
        }
    }
    find_moved(clocks, pid, &moved, &mut found);
    find_turns(clocks, pid, &mut found);
    found
}

/// Since when threads wait that have to wait in line, as far as the kernel tells.
fn find_turns(clocks: &SchedulerClocks, pid: Pid, found: &mut BTreeMap<Tid, Sleeper>) {
    let in_line = found
        .iter()
        .filter(|(_, sleeper)| waits_in_line(sleeper.nr));
    let tids: Vec<Tid> = in_line.map(|(tid, _)| *tid).collect();
    if tids.is_empty() {
        return;
    }
    let read = kernel::look(|kernel| kernel.asleep_since(&tids));
    let since = read.unwrap_or_else(|_| {
        let each = tids.iter().map(|tid| clocks.sleep(pid, *tid));
        each.map(|asleep| asleep?.since_ns).collect()
    });
    for (tid, since) in tids.iter().zip(since) {
        if let Some(sleeper) = found.get_mut(tid) {
            sleeper.waits_since = since;
        }
    }
}

/// Whether threads in this call come to their turn one after the other when they wait for the same thing.
fn waits_in_line(nr: i64) -> bool {
    // read, write, readv, writev, connect, accept, sendto, recvfrom, sendmsg, recvmsg, semop, msgsnd, msgrcv, fcntl, flock
    matches!(nr, 0 | 1 | 19 | 20 | 42..=47 | 65 | 69 | 70 | 72 | 73)
        // futex, restart_syscall, semtimedop, epoll_wait, mq_timedsend, mq_timedreceive, epoll_pwait, accept4
        || matches!(nr, FUTEX | RESTART_SYSCALL | 220 | 232 | 242 | 243 | 281 | 288)
        // recvmmsg, sendmmsg, epoll_pwait2, futex_waitv, futex_wait
        || matches!(nr, 299 | 307 | 441 | 449 | FUTEX_WAIT)
}

/// Where threads wait that seem to have been moved. Such a thread may also have gone on to another call since it was
/// asked for its first one: so the record of its sleep is read first, and counts for where it waits after that.
fn find_moved(
    clocks: &SchedulerClocks,
    pid: Pid,
    threads: &[(Tid, Option<u64>)],
    found: &mut BTreeMap<Tid, Sleeper>,
) {
    for (tid, futex) in threads {
        let named = || {
            let text = proc::read_text(pid, &format!("task/{tid}/syscall")).ok()?;
            first(&text)
        };
        let asleep = clocks.sleep(pid, *tid).filter(|_| named() == *futex);
        if let Some(sleeper) = found.get_mut(tid) {
            sleeper.asleep = asleep;
        }
    }
    for ((tid, _), waits) in threads.iter().zip(waits(threads)) {
        let asleep = found.get_mut(tid).and_then(|one| one.asleep.as_mut());
        if let Some(asleep) = asleep {
            asleep.ends_ns = waits.ends_ns;
            asleep.moved_to = waits.place.and_then(|place| address(pid, place));
        }
    }
}

/// What the kernel's memory tells of a sleep.
#[derive(Clone, Copy, Default)]
struct Told {
    ends_ns: Option<u64>,
    place: Option<Place>,
}

/// Of threads, with the futexes that their calls name. Nothing where that cannot be read.
fn waits(threads: &[(Tid, Option<u64>)]) -> Vec<Told> {
    if threads.is_empty() {
        return Vec::new();
    }
    let read = kernel::look(|kernel| {
        let tids: Vec<Tid> = threads.iter().map(|(tid, _)| *tid).collect();
        let offset = kernel.clock_offsets()?[0];
        let tasks = kernel.tasks(&tids)?;
        let expected = threads.iter().map(|(_, futex)| *futex);
        let asked: Vec<_> = tasks.into_iter().zip(expected).collect();
        let told = |waits: kernel::Waits| Told {
            ends_ns: waits
                .end
                .and_then(|end| u64::try_from(end.saturating_sub(offset)).ok()),
            place: waits.futex,
        };
        Ok(kernel.waits(&asked)?.into_iter().map(told).collect())
    });
    read.unwrap_or_else(|why| {
        log::debug!("when sleeps end: {why}");
        vec![Told::default(); threads.len()]
    })
}

/// The address of a futex in a process's memory. One in a file must be mapped once, or it would not be known
/// which one is meant.
fn address(pid: Pid, place: Place) -> Option<u64> {
    let at = match place {
        Place::Address(at) => return Some(at),
        Place::File(at) => at,
    };
    let maps = proc::read_text(pid, "maps").ok()?;
    let mut found = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let shared = words.next()?.ends_with('s');
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, offset) = (number(start)?, number(end)?, number(words.next()?)?);
        let address = start.checked_add(at.checked_sub(offset)?)?;
        (shared && address < end).then_some(address)
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Looks at one of them.
fn look(clocks: &SchedulerClocks, pid: Pid, tid: Tid) -> Option<Sleeper> {
    let text = proc::read_text(pid, &format!("task/{tid}/syscall")).ok()?;
    let (nr, timeout) = parse(&text)?;
    let rest_is_kept = timeout == TimeOut::Kept && clocks.rest_is_readable;
    let look = timeout != TimeOut::Nothing
        && !rest_is_kept
        && (!calls::is_for_files(nr) || has_timeout((pid, tid), &text));
    let asleep = look.then(|| clocks.sleep(pid, tid)).flatten();
    Some(Sleeper {
        nr,
        asleep,
        rest_is_kept,
        futex: first(&text).filter(|_| matches!(nr, FUTEX | FUTEX_WAIT)),
        waits_since: None,
    })
}

/// The first argument of a call.
fn first(text: &str) -> Option<u64> {
    let first = text.split_ascii_whitespace().nth(1)?;
    u64::from_str_radix(first.trim_start_matches("0x"), 16).ok()
}

/// Whether the first argument of a call is the number of a socket or a terminal, which may have time-outs.
fn has_timeout((pid, tid): (Pid, Tid), text: &str) -> bool {
    const KINDS: [&[u8]; 4] = [b"socket:", b"/dev/pts/", b"/dev/tty", b"/dev/console"];
    first(text).is_some_and(|fd| {
        proc::link(pid, &format!("task/{tid}/fd/{fd}"))
            .is_ok_and(|file| KINDS.iter().any(|kind| file.starts_with(kind)))
    })
}

/// `/proc/PID/syscall` (proc(5)): the number, six arguments, stack and instruction pointer; `running`
/// for a thread that runs. Returns the number and what there is to find out.
fn parse(text: &str) -> Option<(i64, TimeOut)> {
    // A worker of the kernel has no stack and no place in the program; it seems to be in the call it was made in.
    if text.trim_end().ends_with(" 0x0 0x0") {
        return None;
    }
    let mut words = text.split_ascii_whitespace();
    let nr = words.next()?.parse().ok()?;
    let timeout = match nr {
        POLL | NANOSLEEP => TimeOut::Kept,
        // CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI: others end in ways of their own.
        CLOCK_NANOSLEEP if matches!(words.next(), Some("0x0" | "0x1" | "0x7" | "0xb")) => {
            TimeOut::Kept
        }
        // Which call it was shows only later.
        CLOCK_NANOSLEEP | RESTART_SYSCALL => TimeOut::Since,
        // The fourth argument is the time-out.
        FUTEX if words.nth(3).is_some_and(|timeout| timeout != "0x0") => TimeOut::Kept,
        FUTEX => TimeOut::Nothing,
        other if calls::has_timeout(other) => TimeOut::Since,
        _ => TimeOut::Nothing,
    };
    Some((nr, timeout))
}

/// What a scheduler records of a thread (`/proc/PID/task/TID/sched`, kernel/sched/debug.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    /// `se.exec_start`: when it last began to run or was found running, in nanoseconds.
    start: u64,
    /// `nr_voluntary_switches`
    switches: u64,
}

impl Record {
    fn read(path: &str) -> Option<Record> {
        let text = proc::read_path(path).ok()?;
        Record::parse(&String::from_utf8_lossy(&text))
    }

    /// Times are in milliseconds with six decimals.
    fn parse(text: &str) -> Option<Record> {
        let value = |name| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.rsplit(':').next()?.trim())
        };
        let (whole, fraction) = value("se.exec_start")?.split_once('.')?;
        let (whole, fraction): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
        Some(Record {
            start: whole * 1_000_000 + fraction,
            switches: value("nr_voluntary_switches")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_with_a_relative_timeout_are_looked_at() {
        let parse = |text: &str| parse(&format!("{text} 0x0 0x0 0x7ffc 0x7f11\n"));
        assert_eq!(parse("35 0x7ffd 0x0 0x0 0x0"), Some((35, TimeOut::Kept)));
        assert_eq!(parse("230 0x1 0x0 0x0 0x0"), Some((230, TimeOut::Kept)));
        assert_eq!(parse("230 0x9 0x0 0x0 0x0"), Some((230, TimeOut::Since)));
        assert_eq!(parse("219 0x1 0x0 0x0 0x0"), Some((219, TimeOut::Since)));
        assert_eq!(parse("232 0x3 0x0 0x1 0x9"), Some((232, TimeOut::Since)));
        let futex = parse("202 0x7ffd 0x80 0x0 0x7ff0");
        assert_eq!(futex, Some((202, TimeOut::Kept)));
        let forever = parse("202 0x7ffd 0x80 0x0 0x0");
        assert_eq!(forever, Some((202, TimeOut::Nothing)));
        assert_eq!(parse("0 0x3 0x0 0x0 0x0"), Some((0, TimeOut::Since)));
        assert_eq!(parse("61 0x3 0x0 0x0 0x0"), Some((61, TimeOut::Nothing)));
        assert_eq!(parse("running"), None);
        assert_eq!(super::parse("426 0x3 0x1 0x0 0x0 0x0 0x0 0x0 0x0\n"), None);
    }

    #[test]
    fn the_schedulers_record_is_read() {
        let text = "x (1, #threads: 1)\n---\nse.exec_start          :      6543.000021\n\
                    nr_switches    :   9\nnr_voluntary_switches                :                    7\n";
        let (start, switches) = (6_543_000_021, 7);
        assert_eq!(Record::parse(text), Some(Record { start, switches }));
        assert!(Record::read("/proc/thread-self/sched").is_some());
    }

    #[test]
    fn a_sleep_that_has_ended_is_not_taken_for_the_next_one() {
        let (pid, tid) = (
            Pid(std::process::id() as i32),
            Tid(nix::unistd::gettid().as_raw()),
        );
        let record = Record::read("/proc/thread-self/sched").unwrap();
        let asleep = |switches| Asleep {
            since_ns: Some(1),
            switches: Some(switches),
            ends_ns: Some(2),
            moved_to: None,
        };
        let same = asleep(record.switches + 1).of_stopped(pid, tid);
        assert_eq!((same.since_ns, same.ends_ns), (Some(1), Some(2)));
        std::thread::sleep(std::time::Duration::from_millis(2));
        std::thread::sleep(std::time::Duration::from_millis(2));
        let other = asleep(record.switches).of_stopped(pid, tid);
        assert!(other.since_ns > Some(1) && other.ends_ns.is_none());
    }
}
