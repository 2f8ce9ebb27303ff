//! Who submits to a ring.

use super::mapped::Mapped;
use crate::ResurrectError;
use crate::calls::{nr, run};
use std::os::fd::BorrowedFd;
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::uring::{self, ENTER_GETEVENTS, ENTER_WAKEUP, register};
use sys::{Errno, Pid};

/// Completions that one call makes at least, of those that wait for it (io_uring/tw.h, `IO_LOCAL_TW_DEFAULT_MAX`; before
/// Linux 6.13 all of them).
const COMPLETED_AT_ONCE: u32 = 20;

/// Who submits to a ring.
pub(super) enum User<'a> {
    This(BorrowedFd<'a>),
    /// A thread of the kernel's takes what is in the ring's memory.
    Poller(BorrowedFd<'a>, &'a Mapped),
    /// A thread that has it under this number.
    Thread(Pid, &'a mut Tracee, i32),
}

impl<'a> User<'a> {
    /// Enables the ring from within its thread.
    pub(super) fn thread(
        pid: Pid,
        tracee: &'a mut Tracee,
        pidfd: i32,
        ours: i32,
    ) -> Result<User<'a>, ResurrectError> {
        User::take(pid, tracee, pidfd, ours, true)
    }

    /// As [`User::thread`], of a ring that is enabled.
    pub(super) fn again(
        pid: Pid,
        tracee: &'a mut Tracee,
        pidfd: i32,
        ours: i32,
    ) -> Result<User<'a>, ResurrectError> {
        User::take(pid, tracee, pidfd, ours, false)
    }

    fn take(
        pid: Pid,
        tracee: &'a mut Tracee,
        pidfd: i32,
        ours: i32,
        enables: bool,
    ) -> Result<User<'a>, ResurrectError> {
        let doing = "enabling its ring of io_uring";
        let mut batch = Batch::new();
        let args = [pidfd.into(), ours.into(), 0.into()];
        let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
        if enables {
            let args = [fd.into(), register::ENABLE_RINGS.into(), 0.into(), 0.into()];
            batch.call(doing, nr::IO_URING_REGISTER, args);
        }
        let output = run(pid, doing, tracee, &batch)?;
        let fd = output.result(fd).map_or(-1, |fd| fd as i32);
        Ok(User::Thread(pid, tracee, fd))
    }

    /// Submits `count` entries, `each` at a time.
    pub(super) fn submit(&mut self, count: u32, each: u32) -> Result<(), ResurrectError> {
        let each = each.max(1);
        let parts = (0..count).step_by(each as usize);
        self.enter(parts.map(|at| each.min(count - at)), 0)
    }

    /// Makes so many completions that wait until they are asked for.
    pub(super) fn complete(&mut self, count: u32) -> Result<(), ResurrectError> {
        let calls = count.div_ceil(COMPLETED_AT_ONCE);
        self.enter((0..calls).map(|_| 0), ENTER_GETEVENTS)
    }

    /// Enters the ring for each of these numbers of entries.
    fn enter(
        &mut self,
        parts: impl Iterator<Item = u32>,
        flags: u32,
    ) -> Result<(), ResurrectError> {
        let doing = "counting requests of io_uring";
        match self {
            User::This(ring) => {
                for part in parts {
                    let taken = uring::enter(*ring, part, 0, flags);
                    if taken.map_err(ResurrectError::own(doing))? != part {
                        return Err(ResurrectError::own(doing)(Errno::EAGAIN));
                    }
                }
                Ok(())
            }
            User::Poller(ring, memory) => {
                for part in parts {
                    let taken = uring::enter(*ring, part, 0, flags | ENTER_WAKEUP);
                    taken.map_err(ResurrectError::own(doing))?;
                }
                memory
                    .wait_until_taken()
                    .map_err(ResurrectError::own(doing))
            }
            User::Thread(pid, tracee, fd) => {
                let mut batch = Batch::new();
                let mut made = Vec::new();
                for part in parts {
                    let args = [(*fd).into(), part.into(), 0.into(), flags.into()];
                    made.push((batch.call(doing, nr::IO_URING_ENTER, args), part));
                }
                let output = run(*pid, doing, tracee, &batch)?;
                let all = made
                    .iter()
                    .all(|(call, part)| output.result(*call) == Ok((*part).into()));
                match all {
                    true => Ok(()),
                    false => Err(ResurrectError::call(*pid, doing)(Errno::EAGAIN)),
                }
            }
        }
    }

    pub(super) fn finish(self) -> Result<(), ResurrectError> {
        let User::Thread(pid, tracee, fd) = self else {
            return Ok(());
        };
        let mut batch = Batch::new();
        batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
        run(pid, "closing a copy of its ring", tracee, &batch).map(drop)
    }
}
