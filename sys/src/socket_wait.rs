//! A wait on a socket whose time-out is an option of the socket (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
//!
//! The kernel reads the option when the call begins. So a call that is to begin with what remains of its
//! time is begun with that as the option, which is put back as soon as the thread sleeps in the call.

use crate::procdir;
use crate::process::pidfd_getfd;
use crate::{Pid, Result, Tid};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the thread may take to get to its call.
const SOON: Duration = Duration::from_secs(2);
/// The shortest time-out that is set, in microseconds: the thread must not be back before the option is.
const LEAST: i64 = 20_000;

/// A socket of another process, and which of its time-outs is meant.
#[derive(Debug)]
pub struct SocketWait {
    socket: OwnedFd,
    sends: bool,
    whole: TimeVal,
}

impl SocketWait {
    /// Looks at descriptor `fd` of the process that `pidfd` stands for. None when there is no time-out.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`.
    pub fn of(pidfd: BorrowedFd<'_>, fd: i32, sends: bool) -> Result<Option<SocketWait>> {
        let socket = pidfd_getfd(pidfd, fd)?;
        let whole = if sends {
            getsockopt(&socket, sockopt::SendTimeout)?
        } else {
            getsockopt(&socket, sockopt::ReceiveTimeout)?
        };
        let wait = SocketWait {
            socket,
            sends,
            whole,
        };
        Ok((wait.whole_ns() > 0).then_some(wait))
    }

    /// The time-out in nanoseconds.
    #[must_use]
    pub fn whole_ns(&self) -> u64 {
        u64::try_from(self.whole.num_nanoseconds()).unwrap_or(0)
    }

    fn set(&self, value: TimeVal) -> Result<()> {
        if self.sends {
            setsockopt(&self.socket, sockopt::SendTimeout, &value)
        } else {
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &value)
        }
    }

    /// The next call waits so long, or a little longer. Let the thread go at once and call
    /// [`SocketWait::end`] then. False when there is nothing to wait for: the call returns at once, and the
    /// thread's next one has all its time.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn begin(&self, left_ns: u64) -> Result<bool> {
        if self.ready()? {
            return Ok(false);
        }
        let microseconds = i64::try_from(left_ns.div_ceil(1000)).unwrap_or(i64::MAX);
        self.set(TimeVal::microseconds(microseconds.max(LEAST)))?;
        Ok(true)
    }

    fn ready(&self) -> Result<bool> {
        let event = if self.sends {
            PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        let mut asked = [PollFd::new(self.socket.as_fd(), event)];
        Ok(poll(&mut asked, PollTimeout::ZERO)? > 0)
    }

    /// Waits until the thread sleeps, and puts the option back.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn end(&self, pid: Pid, tid: Tid) -> Result<()> {
        let begun = Instant::now();
        while !sleeps(pid, tid) && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.set(self.whole)
    }
}

/// State `S`, behind the name, which may hold anything. A thread that is gone waits for nothing.
fn sleeps(pid: Pid, tid: Tid) -> bool {
    let Ok(stat) = procdir::read(pid, &format!("task/{tid}/stat")) else {
        return true;
    };
    let close = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
    stat.get(close + 2) == Some(&b'S')
}
