//! Who fetches what this process has for those that a domain of Landlock keeps away from it.
//!
//! Only who is in the same domain may be reached (pidfd_getfd(2)). So a helper is made in there. It gets what is wanted in
//! messages (unix(7), `SCM_RIGHTS`), which Landlock does not look at, and the others take it from there. Files
//! that they would open are opened by this process.

use crate::ResurrectError;
use crate::calls::{nr, run};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::batch::{Arg, Batch, CallIndex};
use sys::socket::{Outgoing, send};
use sys::tracee::{Lend, Tracee, TraceeError};
use sys::{Errno, Pid, process};

const AT_FDCWD: i32 = -100;
const MSG_CMSG_CLOEXEC: i32 = 0x4000_0000;
const MSG_DONTWAIT: i32 = 0x40;
/// `struct cmsghdr`.
const HEADER: usize = 16;
/// Descriptors of one message; the kernel allows 253.
const AT_ONCE: usize = 128;

/// A helper in a domain. It has the memory of the process that made it.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(super) tracee: Tracee,
    /// Its id, and who has made it.
    pub(super) pid: Pid,
    pub(super) parent: Pid,
    pub(super) sender: OwnedFd,
    /// The number of its end.
    pub(super) receiver: i32,
    /// A pidfd of this process; those in the domain have one of the helper under that number.
    pub(super) own: OwnedFd,
    pub(super) way: i32,
    /// What it has got by now.
    pub(super) lent: Vec<i32>,
}

/// Something that a call of a batch wants.
struct Wanted {
    call: CallIndex,
    file: OwnedFd,
}

impl Lend for Bridge {
    fn lend(&mut self, batch: &Batch) -> Result<Option<Batch>, TraceeError> {
        let wanted = self.wanted(batch)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        self.give_up()?;
        let mut changed = batch.clone();
        for some in wanted.chunks(AT_ONCE) {
            let numbers = self.pass(some)?;
            for (wanted, number) in some.iter().zip(numbers) {
                let args = [self.way.into(), number.into(), 0.into()];
                changed.replace(wanted.call, nr::PIDFD_GETFD, args);
                self.lent.push(number);
            }
        }
        Ok(Some(changed))
    }
}

impl Bridge {
    fn failed(&self, doing: &'static str) -> impl Fn(Errno) -> TraceeError + use<> {
        let tid = self.tracee.tid();
        move |errno| TraceeError::Request { tid, doing, errno }
    }

    /// What a batch takes from this process, and files that it opens.
    fn wanted(&self, batch: &Batch) -> Result<Vec<Wanted>, TraceeError> {
        let mut wanted = Vec::new();
        for (call, args) in batch.calls_of(nr::PIDFD_GETFD) {
            let [way, Arg::Value(fd), ..] = args else {
                continue;
            };
            if way != Arg::from(self.way) {
                continue;
            }
            let file = process::pidfd_getfd(self.own.as_fd(), fd as i32);
            let file = file.map_err(self.failed("taking a descriptor for it"))?;
            wanted.push(Wanted { call, file });
        }
        for (call, args) in batch.calls_of(nr::OPENAT) {
            let [from, Arg::Data(path), Arg::Value(flags), ..] = args else {
                continue;
            };
            if from != Arg::from(AT_FDCWD) {
                continue;
            }
            let path = batch.input(path);
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            let flags = OFlag::from_bits_truncate(flags as i32) | OFlag::O_CLOEXEC;
            let file = open(OsStr::from_bytes(path), flags, Mode::empty());
            // Where it cannot be opened the call says so.
            wanted.extend(file.ok().map(|file| Wanted { call, file }));
        }
        Ok(wanted)
    }

    /// Passes descriptors to the helper, and returns which numbers they have there.
    fn pass(&mut self, wanted: &[Wanted]) -> Result<Vec<i32>, TraceeError> {
        const DOING: &str = "passing descriptors to a helper";
        let fds: Vec<_> = wanted.iter().map(|wanted| wanted.file.as_fd()).collect();
        let message = Outgoing {
            data: &[0],
            fds: &fds,
            ..Outgoing::default()
        };
        let sent = send(self.sender.as_fd(), &message, MSG_DONTWAIT);
        sent.map_err(self.failed(DOING))?;
        let mut batch = Batch::new();
        let byte = batch.space(1);
        let part = batch.data(&[0_u64, 1].map(u64::to_ne_bytes).concat());
        batch.pointer(part, 0, byte);
        let len = (HEADER + 4 * fds.len()).next_multiple_of(8);
        let control = batch.space(len);
        // Name, its length, parts, their number, control data, its length, flags.
        let words = [0, 0, 0, 1, 0, len as u64, 0];
        let header = batch.data(&words.map(u64::to_ne_bytes).concat());
        batch.pointer(header, 16, part);
        batch.pointer(header, 32, control);
        let flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT;
        let args = [self.receiver.into(), header.into(), flags.into()];
        batch.call(DOING, nr::RECVMSG, args);
        let output = self.tracee.run_raw(&batch)?;
        if let Some(failure) = batch.failure(&output) {
            return Err(self.failed(DOING)(failure.errno));
        }
        if output.u64(control, 0) != (HEADER + 4 * fds.len()) as u64 {
            return Err(self.failed(DOING)(Errno::EMFILE));
        }
        let numbers = (0..fds.len()).map(|at| output.u32(control, HEADER / 4 + at));
        Ok(numbers.map(u32::cast_signed).collect())
    }

    /// Has the helper close what it got before.
    fn give_up(&mut self) -> Result<(), TraceeError> {
        if self.lent.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for fd in self.lent.drain(..) {
            batch.try_call("closing what was lent", nr::CLOSE, [fd.into()]);
        }
        self.tracee.run_raw(&batch).map(drop)
    }

    /// Ends the helper; `parent` waits for it.
    pub(super) fn end(&mut self, parent: &mut Tracee) -> Result<(), ResurrectError> {
        const DOING: &str = "ending a helper in its domain of Landlock";
        const WALL: i32 = 0x4000_0000;
        let mut batch = Batch::new();
        batch.call(DOING, nr::EXIT, [0.into()]);
        match self.tracee.run_raw(&batch) {
            Err(TraceeError::Ended { .. }) => {}
            Err(cause) => return Err(ResurrectError::tracee(self.parent, DOING)(cause)),
            Ok(_) => return Err(ResurrectError::call(self.parent, DOING)(Errno::EBUSY)),
        }
        let mut batch = Batch::new();
        let args = [self.pid.0.into(), 0.into(), WALL.into(), 0.into()];
        batch.call(DOING, nr::WAIT4, args);
        run(self.parent, DOING, parent, &batch).map(drop)
    }
}
