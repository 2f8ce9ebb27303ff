//! One stopped thread: its registers, its memory, and system calls made inside it.

mod batches;
mod single;
mod together;

pub use batches::{Running, seats};
pub use single::{Foothold, find_gate, unmap_scratches};
pub use together::run_together;

use crate::batch::{self, Batch, CallFailure};
use crate::regs::Regs;
use crate::sigframe::Remaining;
use crate::vm::ProcMem;
use crate::wait::{self, Status};
use crate::{Errno, Pid, Tid, ptrace};
use std::sync::{Arc, Mutex, PoisonError};

/// Why something could not be done in a tracee.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TraceeError {
    /// A ptrace request or an access to its memory failed.
    #[error("thread {tid}: {doing}: {errno}")]
    Request {
        /// The thread.
        tid: Tid,
        /// What was being done.
        doing: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// It ended while work was going on in it.
    #[error("thread {tid} ended while {doing}: {status:?}")]
    Ended {
        /// The thread.
        tid: Tid,
        /// What was being done.
        doing: &'static str,
        /// How it ended.
        status: Status,
    },
    /// It stopped where it should not have.
    #[error("thread {tid} stopped unexpectedly at {rip:#x} while {doing}: {status:?}")]
    Unexpected {
        /// The thread.
        tid: Tid,
        /// What was being done.
        doing: &'static str,
        /// Its stop.
        status: Status,
        /// Where it stopped.
        rip: u64,
    },
    /// A call of a batch that had to succeed failed.
    #[error("thread {tid}: {failure}")]
    Call {
        /// The thread.
        tid: Tid,
        /// Which call, and why.
        #[source]
        failure: Box<CallFailure>,
    },
    /// There is no scratch mapping, or it is too small.
    #[error("thread {tid}: a batch of {need} bytes does not fit the scratch space of {have}")]
    Scratch {
        /// The thread.
        tid: Tid,
        /// Bytes wanted.
        need: usize,
        /// Bytes there.
        have: usize,
    },
}

/// Where batches run in the target: a page of code, and `len - PAGE_SIZE` bytes of data behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Address of the code page.
    pub address: u64,
    /// Length with the code page, a multiple of the page size.
    pub len: usize,
}

/// Who gets for a thread what it cannot reach itself: changes a batch ahead of its run ([`Tracee::run_raw`]).
pub trait Lend: core::fmt::Debug + Send {
    /// The batch to be run in the place of that one, None for itself.
    ///
    /// # Errors
    /// When something cannot be had.
    fn lend(&mut self, batch: &Batch) -> Result<Option<Batch>, TraceeError>;
}

/// One that several threads have.
pub type Lender = Arc<Mutex<dyn Lend>>;

/// A thread stopped under our ptrace. The value does not own the attachment: who seized it
/// detaches it.
#[derive(Debug)]
pub struct Tracee {
    pid: Pid,
    tid: Tid,
    mem: Arc<ProcMem>,
    scratch: Option<Scratch>,
    /// Stop signals that arrived while calls were running in it; to be sent again at the end.
    deferred: Vec<i32>,
    /// Threads or children it made under `PTRACE_O_TRACE{CLONE,FORK}`.
    born: Vec<Tid>,
    foothold: Option<Foothold>,
    /// The signal that ends a batch.
    marker: i32,
    /// It may not be allowed to send itself signals.
    mute: bool,
    /// What remains of the sleep it was interrupted in.
    remaining: Option<Remaining>,
    /// Its registers and signal mask while it is as it was put back last.
    at_rest: Option<(Regs, u64)>,
    lender: Option<Lender>,
}

const fn all_but(signal: i32) -> u64 {
    !(1 << (signal - 1))
}

impl Tracee {
    /// Takes hold of a stopped thread.
    ///
    /// # Errors
    /// When its memory cannot be opened.
    pub fn new(pid: Pid, tid: Tid) -> Result<Tracee, TraceeError> {
        let mem = ProcMem::of_thread(pid, tid).map_err(|errno| TraceeError::Request {
            tid,
            doing: "opening its memory",
            errno,
        })?;
        Ok(Tracee::with_memory(pid, tid, Arc::new(mem)))
    }

    /// Takes hold of a stopped thread whose memory has been opened already.
    #[must_use]
    pub fn with_memory(pid: Pid, tid: Tid, mem: Arc<ProcMem>) -> Tracee {
        Tracee {
            pid,
            tid,
            mem,
            scratch: None,
            deferred: Vec::new(),
            born: Vec::new(),
            foothold: None,
            marker: libc::SIGTRAP,
            mute: false,
            remaining: None,
            at_rest: None,
            lender: None,
        }
    }

    /// Another stopped thread of the same process, with the same memory and scratch mapping.
    #[must_use]
    pub fn sibling(&self, tid: Tid) -> Tracee {
        Tracee {
            pid: self.pid,
            tid,
            mem: Arc::clone(&self.mem),
            scratch: self.scratch,
            deferred: Vec::new(),
            born: Vec::new(),
            foothold: self.foothold,
            marker: self.marker,
            mute: self.mute,
            remaining: None,
            at_rest: None,
            lender: self.lender.clone(),
        }
    }

    /// Says who lends to it.
    pub fn set_lender(&mut self, lender: Option<Lender>) {
        self.lender = lender;
    }

    /// Who lends to it.
    #[must_use]
    pub fn lender(&self) -> Option<Lender> {
        self.lender.clone()
    }

    /// What is to be run in the place of a batch.
    fn lent(&self, batch: &Batch) -> Result<Option<Batch>, TraceeError> {
        let Some(lender) = &self.lender else {
            return Ok(None);
        };
        let mut lender = lender.lock().unwrap_or_else(PoisonError::into_inner);
        lender.lend(batch)
    }

    /// Names the signal that ends its batches ([`Tracee::run`]): one that does nothing to it when it
    /// comes after the tracer's death, that is, one that its process ignores and that is not
    /// queued. It is unblocked while batches run.
    pub fn set_marker(&mut self, signal: i32) {
        self.marker = signal;
    }

    /// Says that a security module may keep it from sending itself the signal that ends its batches (apparmor(7)). It
    /// stops at every call of them then, and at the one that would have sent it. `PTRACE_O_TRACESYSGOOD` must be set.
    pub fn set_mute(&mut self) {
        self.mute = true;
    }

    /// Gives it a way back from calls that are made before it has a scratch mapping.
    pub fn set_foothold(&mut self, foothold: Foothold) {
        self.foothold = Some(foothold);
    }

    /// Tells how long the sleep that it was interrupted in would have gone on; used when the tracer
    /// dies while something else runs in it.
    pub fn set_remaining(&mut self, remaining: Option<Remaining>) {
        self.remaining = remaining;
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Its memory.
    #[must_use]
    pub fn mem(&self) -> &ProcMem {
        &self.mem
    }

    /// Where its batches run.
    #[must_use]
    pub fn scratch(&self) -> Option<Scratch> {
        self.scratch
    }

    /// Tells where a scratch mapping already is (made by other means, or inherited by fork), with
    /// the code in place when `coded`.
    ///
    /// # Errors
    /// When the code cannot be written there.
    pub fn adopt_scratch(&mut self, scratch: Scratch, coded: bool) -> Result<(), TraceeError> {
        if !coded {
            self.mem
                .write(scratch.address, batch::page())
                .map_err(self.failed("writing the batch loop"))?;
        }
        self.scratch = Some(scratch);
        Ok(())
    }

    /// Stop signals that came in between; the caller sends them again when it lets go.
    pub fn take_deferred(&mut self) -> Vec<i32> {
        core::mem::take(&mut self.deferred)
    }

    /// Threads and children it made since the last call, in order.
    pub fn take_born(&mut self) -> Vec<Tid> {
        core::mem::take(&mut self.born)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(Errno) -> TraceeError + use<> {
        let tid = self.tid;
        move |errno| TraceeError::Request { tid, doing, errno }
    }

    /// Its general registers.
    ///
    /// # Errors
    /// When it is not stopped.
    pub fn regs(&self) -> Result<Regs, TraceeError> {
        ptrace::get_regs(self.tid).map_err(self.failed("reading its registers"))
    }

    /// Sets its general registers.
    ///
    /// # Errors
    /// When the kernel refuses the values.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<(), TraceeError> {
        self.at_rest = None;
        self.load(regs)
    }

    fn load(&self, regs: &Regs) -> Result<(), TraceeError> {
        ptrace::set_regs(self.tid, regs).map_err(self.failed("setting its registers"))
    }

    fn go(&mut self, end: impl Fn(&Tracee, Status) -> bool) -> Result<(), TraceeError> {
        const DOING: &str = "running a batch in it";
        ptrace::cont(self.tid, 0).map_err(self.failed(DOING))?;
        self.wait_for(DOING, ptrace::cont, end)
    }

    /// Waits for the stop that `end` looks for, going on over stops that have nothing to do with it.
    fn wait_for(
        &mut self,
        doing: &'static str,
        go_on: impl Fn(Tid, i32) -> crate::Result<()>,
        end: impl Fn(&Tracee, Status) -> bool,
    ) -> Result<(), TraceeError> {
        loop {
            let status = wait::wait_for(self.tid).map_err(self.failed(doing))?;
            if end(self, status) {
                return Ok(());
            }
            match status {
                // Stop signals cannot be blocked, the marker is not; they wait until the work is done.
                Status::Signal(signal) if signal == libc::SIGSTOP || signal == self.marker => {
                    self.deferred.push(signal);
                }
                Status::Event(_) => {
                    let born = ptrace::event_message(self.tid).map_err(self.failed(doing))?;
                    self.born.push(Tid(i32::try_from(born).unwrap_or(0)));
                }
                Status::Trap | Status::GroupStop(_) => {}
                Status::Exited(_) | Status::Killed(_) => {
                    return Err(TraceeError::Ended {
                        tid: self.tid,
                        doing,
                        status,
                    });
                }
                Status::Signal(_) | Status::Syscall | Status::Continued => {
                    let rip = self.regs().map_or(0, |regs| regs.rip);
                    return Err(TraceeError::Unexpected {
                        tid: self.tid,
                        doing,
                        status,
                        rip,
                    });
                }
            }
            go_on(self.tid, 0).map_err(self.failed(doing))?;
        }
    }

    /// Puts registers and mask back after `done`, also when that failed.
    fn put_back(
        &mut self,
        saved: &Regs,
        mask: u64,
        done: Result<i64, TraceeError>,
    ) -> Result<crate::Result<u64>, TraceeError> {
        if let Err(ended @ TraceeError::Ended { .. }) = done {
            return Err(ended);
        }
        // Registers last: until then the way back puts back both.
        let back = self.mask(mask).and_then(|()| self.load(saved));
        if back.is_ok() {
            self.at_rest = Some((*saved, mask));
        }
        let result = done?;
        back?;
        Ok(if (-4095..0).contains(&result) {
            Err(Errno::from_raw(-result as i32))
        } else {
            Ok(result.cast_unsigned())
        })
    }

    /// Registers and signal mask as they are while nothing is being done in it.
    ///
    /// # Errors
    /// When it is not stopped.
    pub fn rest(&mut self) -> Result<(Regs, u64), TraceeError> {
        let known = match self.at_rest {
            Some(known) => known,
            None => (self.regs()?, self.sigmask()?),
        };
        self.at_rest = Some(known);
        Ok(known)
    }

    fn xstate(&self) -> Result<Vec<u8>, TraceeError> {
        ptrace::get_xstate(self.tid).map_err(self.failed("reading its extended state"))
    }

    fn sigmask(&self) -> Result<u64, TraceeError> {
        ptrace::get_sigmask(self.tid).map_err(self.failed("reading its signal mask"))
    }

    /// Blocks every signal but the one that ends batches; returns what was blocked before.
    ///
    /// # Errors
    /// When it is not stopped.
    pub fn block_signals(&mut self) -> Result<u64, TraceeError> {
        let mask = self.sigmask()?;
        self.set_sigmask(all_but(self.marker))?;
        Ok(mask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// When it is not stopped.
    pub fn set_sigmask(&mut self, mask: u64) -> Result<(), TraceeError> {
        self.at_rest = None;
        self.mask(mask)
    }

    fn mask(&self, mask: u64) -> Result<(), TraceeError> {
        ptrace::set_sigmask(self.tid, mask).map_err(self.failed("setting its signal mask"))
    }
}
