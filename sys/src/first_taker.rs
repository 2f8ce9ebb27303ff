//! Who takes a signal that comes for a process while all its threads are stopped by a tracer: nobody is chosen then,
//! so whoever goes on first has it (kernel/signal.c, `complete_signal`, `recalc_sigpending_tsk`). In a process that
//! was never stopped it is the leader, unless that blocks it or is about to take another one.

use crate::{Pid, Result, Tid, procdir, ptrace};
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How long leaders that go on may take to be on a processor again, all of them together.
const WITHIN: Duration = Duration::from_millis(20);

/// A stopped leader, which is to go on before the other threads of its process do.
#[derive(Debug)]
pub struct Leader {
    tid: Tid,
    /// `/proc/PID/schedstat`: the last number tells how often it was on a processor. None where the kernel does not
    /// count that.
    runs: Option<(File, Vec<u8>)>,
    /// Another stopped thread, through which can be seen what waits for the process.
    other: Tid,
}

impl Leader {
    /// Looks at it before it is let go. `other` is another stopped thread of its process. Nothing is waited for when
    /// that one is not stopped.
    #[must_use]
    pub fn of(leader: Tid, other: Tid) -> Leader {
        let runs = procdir::open(Pid(leader.0), "schedstat", OFlag::O_RDONLY);
        let runs = runs
            .ok()
            .and_then(|file| text(&file).map(|text| (file, text)));
        Leader {
            tid: leader,
            runs: runs.filter(|(_, text)| text != NOT_COUNTED),
            other,
        }
    }

    /// Whether it has gone on and taken what it can, or will not.
    fn is_on(&self) -> bool {
        let ran = match &self.runs {
            Some((file, before)) => text(file).as_ref() != Some(before),
            None => true,
        };
        ran && self.has_taken() || self.is_stopped()
    }

    /// What it blocks just now, in a call that blocks more for its time for instance, others take.
    fn has_taken(&self) -> bool {
        match pending(self.other) {
            Ok(0) | Err(_) => true,
            Ok(waiting) => waiting & !blocked(self.tid) == 0,
        }
    }

    /// By a signal, with its whole process.
    fn is_stopped(&self) -> bool {
        let stat = procdir::read(Pid(self.tid.0), "stat").unwrap_or_default();
        // Behind the name, which may hold anything (proc(5)).
        let name_ends = stat.iter().rposition(|byte| *byte == b')');
        name_ends.and_then(|at| stat.get(at + 2)) == Some(&b'T')
    }
}

/// Waits until leaders that were let go have gone on, and have taken what had come for them. Then the others may go
/// on.
pub fn wait_for_all(leaders: &[Leader]) {
    let begun = Instant::now();
    for leader in leaders {
        while !leader.is_on() {
            if begun.elapsed() > WITHIN {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// What `/proc/PID/schedstat` shows where nothing is counted (fs/proc/base.c, proc_pid_schedstat).
const NOT_COUNTED: &[u8] = b"0 0 0\n";

fn text(schedstat: &File) -> Option<Vec<u8>> {
    let mut text = [0; 64];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    Some(text[..len].to_vec())
}

/// The signals that wait for the process of a stopped thread, a bit each.
///
/// # Errors
/// As ptrace(2).
pub fn pending(tid: Tid) -> Result<u64> {
    queued(tid, true)
}

/// The signals that a stopped thread handles when it goes on: those that wait for it, or for its process, and are not
/// blocked.
///
/// # Errors
/// As ptrace(2).
pub fn to_handle(tid: Tid) -> Result<u64> {
    let waiting = queued(tid, false)? | queued(tid, true)?;
    match waiting {
        0 => Ok(0),
        _ => Ok(waiting & !ptrace::get_sigmask(tid)?),
    }
}

fn queued(tid: Tid, shared: bool) -> Result<u64> {
    let queued = ptrace::peek_siginfo(tid, shared)?;
    let numbers = queued.iter().filter_map(|info| info.first_chunk::<4>());
    let bits = numbers.filter_map(|number| {
        let number = u32::from_ne_bytes(*number);
        1u64.checked_shl(number.checked_sub(1)?)
    });
    Ok(bits.fold(0, |all, bit| all | bit))
}

/// The signals that a thread blocks, a bit each; all of them when it is gone.
fn blocked(tid: Tid) -> u64 {
    let status = procdir::read(Pid(tid.0), "status").unwrap_or_default();
    let text = String::from_utf8_lossy(&status);
    let mask = text.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use crate::wait::{Status, wait_for_at_most};
    use std::cell::Cell;
    use std::io::Read;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::sync::atomic::{AtomicI32, Ordering};

    static TELL: AtomicI32 = AtomicI32::new(-1);

    /// Writes the number of the thread that it runs in.
    extern "C" fn tell(_: i32) {
        // SAFETY: neither takes a lock; the number is a live local.
        unsafe {
            let tid = libc::gettid();
            libc::write(TELL.load(Ordering::SeqCst), (&raw const tid).cast(), 4);
        }
    }

    /// Two threads that sleep, and where they tell their numbers.
    struct Pair {
        leader: Tid,
        other: Tid,
        told: File,
    }

    impl Pair {
        /// A child that is made while a thread of another test has the allocator's lock never gets its second
        /// thread: another one is made then.
        fn start() -> Pair {
            (0..20).find_map(|_| Pair::try_to_start()).unwrap()
        }

        fn try_to_start() -> Option<Pair> {
            const SOON: i32 = 1000;
            let (told, write) = nix::unistd::pipe().unwrap();
            let child = process::spawn(0, &[], || sleep(&write)).unwrap();
            drop(write);
            let mut asked = libc::pollfd {
                fd: told.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: the structure is one, and a live local.
            if unsafe { libc::poll(&raw mut asked, 1, SOON) } != 1 {
                process::kill(child, libc::SIGKILL).unwrap();
                wait_for_at_most(child.leader(), Duration::from_secs(5)).unwrap();
                return None;
            }
            let mut told = File::from(told);
            let other = Tid(number(&mut told));
            Some(Pair {
                leader: child.leader(),
                other,
                told,
            })
        }

        fn stop(&self) -> [Option<Status>; 2] {
            [self.other, self.leader].map(|tid| {
                ptrace::seize(tid, 0).unwrap();
                ptrace::interrupt(tid).unwrap();
                wait_for_at_most(tid, Duration::from_secs(5)).unwrap()
            })
        }

        /// A signal comes while both are stopped. Who takes it when they go on one after the other?
        fn who_takes(&mut self, go_on: impl Fn(Tid, Tid)) -> Tid {
            for status in self.stop() {
                assert_eq!(status, Some(Status::Trap));
            }
            process::kill(Pid(self.leader.0), libc::SIGUSR1).unwrap();
            go_on(self.leader, self.other);
            Tid(number(&mut self.told))
        }
    }

    impl Drop for Pair {
        fn drop(&mut self) {
            let _ = process::kill(Pid(self.leader.0), libc::SIGKILL);
            // The leader can be waited for when the other is gone.
            for tid in [self.other, self.leader] {
                let _ = wait_for_at_most(tid, Duration::from_secs(5));
            }
        }
    }

    fn number(from: &mut File) -> i32 {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes).unwrap();
        i32::from_ne_bytes(bytes)
    }

    fn sleep(write: &OwnedFd) -> i32 {
        TELL.store(write.as_raw_fd(), Ordering::SeqCst);
        // SAFETY: zeros are a valid structure; see the handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tell as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        std::thread::spawn(|| {
            tell(0);
            loop {
                std::thread::park();
            }
        });
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }

    #[test]
    fn what_came_meanwhile_is_the_leaders() {
        let mut pair = Pair::start();
        let (leader, other) = (pair.leader, pair.other);
        let taker = pair.who_takes(|leader, other| {
            ptrace::detach(other, 0).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            ptrace::detach(leader, 0).unwrap();
        });
        assert_eq!(taker, other, "the first one that goes on takes it");
        let waited = Cell::new(Duration::ZERO);
        let mut in_time = 0;
        for _ in 0..100 {
            let taker = pair.who_takes(|leader, other| {
                let first = Leader::of(leader, other);
                ptrace::detach(leader, 0).unwrap();
                let begun = Instant::now();
                wait_for_all(&[first]);
                waited.set(begun.elapsed());
                ptrace::detach(other, 0).unwrap();
            });
            // On a busy host it may get no processor for so long.
            if waited.get() < WITHIN {
                assert_eq!(taker, leader);
                in_time += 1;
            }
        }
        assert!(in_time > 50, "{in_time} times of 100");
    }

    #[test]
    fn leaders_that_do_not_go_on_are_waited_for_together() {
        let pairs: Vec<Pair> = (0..10).map(|_| Pair::start()).collect();
        for pair in &pairs {
            pair.stop();
        }
        let all: Vec<Leader> = pairs
            .iter()
            .map(|pair| Leader::of(pair.leader, pair.other))
            .collect();
        // Whoever waits may stand still as well.
        let shortest = (0..5).map(|_| {
            let begun = Instant::now();
            wait_for_all(&all);
            begun.elapsed()
        });
        let shortest = shortest.min().unwrap();
        assert!(shortest >= WITHIN, "they are stopped");
        assert!(shortest < WITHIN * 5, "{shortest:?}");
    }

    #[test]
    fn a_job_that_is_stopped_is_not_waited_for() {
        let pair = Pair::start();
        process::kill(Pid(pair.leader.0), libc::SIGSTOP).unwrap();
        let begun = Instant::now();
        while procdir::read(Pid(pair.leader.0), "stat").is_ok_and(|stat| !stat.contains(&b'T')) {
            assert!(begun.elapsed() < Duration::from_secs(5), "it does not stop");
        }
        pair.stop();
        let leader = Leader::of(pair.leader, pair.other);
        ptrace::detach(pair.leader, 0).unwrap();
        // It stops again at once.
        let stopped = (0..5000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            leader.is_stopped() && leader.is_on()
        });
        assert!(stopped);
    }
}
