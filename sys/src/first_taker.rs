//! Who takes a signal that comes for a process while all its threads are stopped by a tracer: nobody is chosen then,
//! so whoever goes on first has it (kernel/signal.c, `complete_signal`, `recalc_sigpending_tsk`). In a process that
//! was never stopped it is the leader, unless that blocks it.

use crate::{Pid, Result, Tid, procdir, ptrace};
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How long a leader that goes on may take to be on a processor again.
const WITHIN: Duration = Duration::from_millis(20);

/// A stopped leader, which is to go on before the other threads of its process do.
#[derive(Debug)]
pub struct Leader {
    /// Signals that it takes.
    takes: u64,
    /// `/proc/PID/schedstat`: the last number tells how often it was on a processor.
    runs: Option<(File, Vec<u8>)>,
    /// Another stopped thread, through which can be seen what waits for the process.
    other: Tid,
}

impl Leader {
    /// Looks at it before it is let go. `other` is another stopped thread of its process. Nothing is waited for when
    /// one of them is not stopped.
    #[must_use]
    pub fn of(leader: Tid, other: Tid) -> Leader {
        let blocked = ptrace::get_sigmask(leader).unwrap_or(u64::MAX);
        let runs = procdir::open(Pid(leader.0), "schedstat", OFlag::O_RDONLY);
        let runs = runs.ok().filter(|_| blocked != u64::MAX);
        Leader {
            takes: !blocked,
            runs: runs.and_then(|file| text(&file).map(|text| (file, text))),
            other,
        }
    }

    /// Waits until it has gone on and taken what has come for it. Then the others may go on.
    pub fn wait(&self) {
        let begun = Instant::now();
        while !self.is_on() && begun.elapsed() < WITHIN {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn is_on(&self) -> bool {
        let ran = match &self.runs {
            Some((file, before)) => text(file).as_ref() != Some(before),
            None => true,
        };
        ran && pending(self.other).unwrap_or(0) & self.takes == 0
    }
}

fn text(schedstat: &File) -> Option<Vec<u8>> {
    let mut text = [0; 64];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    Some(text[..len].to_vec())
}

/// The signals that wait for the process of a stopped thread, a bit each.
fn pending(tid: Tid) -> Result<u64> {
    let queued = ptrace::peek_siginfo(tid, true)?;
    let numbers = queued.iter().filter_map(|info| info.first_chunk::<4>());
    let bits = numbers.filter_map(|number| {
        let number = u32::from_ne_bytes(*number);
        1u64.checked_shl(number.checked_sub(1)?)
    });
    Ok(bits.fold(0, |all, bit| all | bit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use crate::wait::{Status, wait_for, wait_for_at_most};
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
        fn start() -> Pair {
            let (told, write) = nix::unistd::pipe().unwrap();
            let child = process::spawn(0, &[], || sleep(&write)).unwrap();
            drop(write);
            let mut told = File::from(told);
            let other = Tid(number(&mut told));
            Pair {
                leader: child.leader(),
                other,
                told,
            }
        }

        /// A signal comes while both are stopped. Who takes it when they go on one after the other?
        fn who_takes(&mut self, go_on: impl Fn(Tid, Tid)) -> Tid {
            for tid in [self.other, self.leader] {
                ptrace::seize(tid, 0).unwrap();
                ptrace::interrupt(tid).unwrap();
                let stop = wait_for_at_most(tid, Duration::from_secs(5)).unwrap();
                assert_eq!(stop, Some(Status::Trap));
            }
            process::kill(Pid(self.leader.0), libc::SIGUSR1).unwrap();
            go_on(self.leader, self.other);
            Tid(number(&mut self.told))
        }
    }

    impl Drop for Pair {
        fn drop(&mut self) {
            let _ = process::kill(Pid(self.leader.0), libc::SIGKILL);
            let _ = wait_for(self.leader);
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
        for _ in 0..100 {
            let taker = pair.who_takes(|leader, other| {
                let first = Leader::of(leader, other);
                ptrace::detach(leader, 0).unwrap();
                first.wait();
                ptrace::detach(other, 0).unwrap();
            });
            assert_eq!(taker, leader);
        }
    }
}
