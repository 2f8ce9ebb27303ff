//! A wait on a socket whose time-out is an option of the socket (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
//!
//! The kernel reads the option when the call begins. So a call that is to begin with what remains of its
//! time is begun with that as the option, which is put back as soon as the thread sleeps in the call.

use crate::procdir;
use crate::process::pidfd_getfd;
use crate::regs::NO_SYSCALL;
use crate::{Errno, Pid, Result, Tid, ptrace};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the thread may take to get to its call.
const SOON: Duration = Duration::from_secs(2);
/// The kernel counts these time-outs in ticks (`HZ`), the one under way among them: one more, in microseconds,
/// so that two parts of a wait together are not shorter than the whole would have been.
const TICK: i64 = 4_000;
/// With less than this the thread is not let go before its time is over: it might be back before the option is.
const NEAR: Duration = Duration::from_millis(50);

/// connect(2)
const CONNECT: u64 = 42;

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

    /// The call of the thread, stopped before it is restarted, waits so long. True: let it go at once and call
    /// [`SocketWait::end`] then. False when it returns at once, because there is something or its time is over.
    ///
    /// # Errors
    /// As setsockopt(2), ptrace(2).
    pub fn begin(&self, tid: Tid, left_ns: u64) -> Result<bool> {
        let left = Duration::from_nanos(left_ns);
        let mut regs = ptrace::get_regs(tid)?;
        // A TCP connection under way is told by another error then, and nobody waits for the same one again.
        let connects = regs.orig_rax == CONNECT;
        let near = left < NEAR;
        let within = if near && !connects {
            left
        } else {
            Duration::ZERO
        };
        let found = self.ready(within)?;
        // A unix socket that is to be connected could be written to, but for that (net/unix/af_unix.c, unix_poll).
        let unconnected = connects && found.contains(PollFlags::POLLHUP);
        if !found.is_empty() && !unconnected {
            return Ok(false);
        }
        if near && (unconnected || !connects) {
            if unconnected {
                std::thread::sleep(left);
            }
            regs.rax = (-(Errno::EAGAIN as i64)).cast_unsigned();
            regs.orig_rax = NO_SYSCALL;
            ptrace::set_regs(tid, &regs)?;
            return Ok(false);
        }
        let microseconds = i64::try_from(left_ns.div_ceil(1000)).unwrap_or(i64::MAX);
        self.set(TimeVal::microseconds(microseconds.saturating_add(TICK)))?;
        Ok(true)
    }

    /// What the call finds within some time; nothing when it would wait.
    fn ready(&self, within: Duration) -> Result<PollFlags> {
        let event = if self.sends {
            PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        let mut asked = [PollFd::new(self.socket.as_fd(), event)];
        ppoll(&mut asked, Some(TimeSpec::from_duration(within)), None)?;
        Ok(asked[0].revents().unwrap_or(PollFlags::empty()))
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
