//! One stopped thread: its registers, its memory, and system calls made inside it.

use crate::batch::{self, Batch, CallFailure, EXIT_ROOM, EXITS, Exit, Output, RESUME_ROOM, Resume};
use crate::gate::{Gate, ReturnSlot};
use crate::regs::{NO_SYSCALL, Regs};
use crate::sigframe::{Context, Remaining, SigFrame};
use crate::vm::ProcMem;
use crate::wait::{self, Status};
use crate::{Errno, PAGE_SIZE, PAGE_SIZE_U64, Pid, Tid, ptrace};
use std::sync::Arc;

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

/// What a thread needs to come back from a call by itself, before there is room of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foothold {
    /// The way in and out.
    pub gate: Gate,
    /// Address of a call of `rt_sigreturn(2)`.
    pub restorer: u64,
    /// The memory right below this address is of no use to anybody: the unused part of a stack.
    pub free_below: u64,
}

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
    /// What remains of the sleep it was interrupted in.
    remaining: Option<Remaining>,
    /// Its registers and signal mask while it is as it was put back last.
    at_rest: Option<(Regs, u64)>,
}

/// A batch that is being run, and what is to be put back when it is over.
#[derive(Debug)]
#[must_use = "the thread runs"]
pub struct Running {
    saved: Regs,
    mask: u64,
    /// Address of the call table.
    table: u64,
    /// Where it stops when it is done.
    mark: u64,
}

/// How many threads can run a batch side by side in a scratch mapping made for `len` bytes
/// ([`Tracee::map_scratch`], [`Tracee::begin`]).
#[must_use]
pub fn seats(batch: &Batch, len: usize) -> usize {
    (len / room(batch)).clamp(1, EXITS)
}

/// Bytes that a batch takes with what its thread goes on with.
fn room(batch: &Batch) -> usize {
    (RESUME_ROOM + batch.size()).next_multiple_of(64)
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
            remaining: None,
            at_rest: None,
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
            remaining: None,
            at_rest: None,
        }
    }

    /// Names the signal that ends its batches ([`Tracee::run`]): one that does nothing to it when it
    /// comes after the tracer's death, that is, one that its process ignores and that is not
    /// queued. It is unblocked while batches run.
    pub fn set_marker(&mut self, signal: i32) {
        self.marker = signal;
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

    /// Makes one system call through the `syscall` instruction at `gate`. Registers and signal mask
    /// are put back. For the first call, before there is a scratch mapping. With a foothold
    /// ([`Tracee::set_foothold`]) the gate is that one's, and the tracer may die at any moment if it
    /// has set `PTRACE_O_TRACESYSGOOD`; without that option the kernel turns a stop that nobody
    /// waits for any more into a SIGTRAP.
    ///
    /// # Errors
    /// When it ends or stops elsewhere. The call's own errno is the inner result.
    pub fn single_call(
        &mut self,
        gate: u64,
        nr: i64,
        args: [u64; 6],
    ) -> Result<crate::Result<u64>, TraceeError> {
        let (saved, mask) = self.rest()?;
        let [rdi, rsi, rdx, r10, r8, r9] = args;
        let rax = nr.cast_unsigned();
        let mut regs = Regs {
            rip: gate,
            rax,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            orig_rax: NO_SYSCALL,
            ..saved
        };
        if let Some(foothold) = self.foothold {
            self.write_way_back(&foothold, &saved, mask, &mut regs)?;
        }
        // From here on the thread finds its way back alone.
        self.load(&regs)?;
        let done = self.mask(u64::MAX).and_then(|()| self.one_call());
        self.put_back(&saved, mask, done)
    }

    /// Writes the frame to go on from and aims the registers at the foothold's gate.
    fn write_way_back(
        &self,
        foothold: &Foothold,
        saved: &Regs,
        sigmask: u64,
        regs: &mut Regs,
    ) -> Result<(), TraceeError> {
        let xstate = self.xstate()?;
        let context = Context {
            regs: saved,
            sigmask,
            xstate: &xstate,
            remaining: self.remaining,
        };
        let frame = SigFrame::below(foothold.free_below, foothold.restorer, &context);
        self.mem
            .write(frame.base, &frame.bytes)
            .map_err(self.failed("writing the frame to go on from"))?;
        regs.rip = foothold.gate.call;
        match foothold.gate.slot {
            ReturnSlot::Stack(offset) => regs.rsp = frame.frame.wrapping_add_signed(-offset),
            ReturnSlot::Frame(offset) => {
                regs.rbp = frame.frame.wrapping_add_signed(-offset);
                regs.rsp = frame.base;
            }
        }
        Ok(())
    }

    /// Runs to the entry and to the exit of the call it stands before.
    fn one_call(&mut self) -> Result<i64, TraceeError> {
        const DOING: &str = "making a system call in it";
        for _ in 0..2 {
            ptrace::cont_to_syscall(self.tid, 0).map_err(self.failed(DOING))?;
            self.wait_for(DOING, ptrace::cont_to_syscall, |_, status| {
                // Without PTRACE_O_TRACESYSGOOD it looks like a signal.
                matches!(status, Status::Syscall | Status::Signal(libc::SIGTRAP))
            })?;
        }
        Ok(self.regs()?.rax.cast_signed())
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

    /// Maps a scratch area for batches of `len` bytes through the gate, wherever the kernel likes.
    ///
    /// # Errors
    /// When the target may not map more (`RLIMIT_AS`), among others.
    pub fn map_scratch(&mut self, gate: u64, len: usize) -> Result<Scratch, TraceeError> {
        let len = (len + EXIT_ROOM + RESUME_ROOM + 64).next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let map = |prot| [0, len as u64, prot, flags, u64::MAX, 0];
        let all = rw | libc::PROT_EXEC as u64;
        if let Ok(address) = self.single_call(gate, libc::SYS_mmap, map(all))? {
            let scratch = Scratch { address, len };
            self.adopt_scratch(scratch, false)?;
            return Ok(scratch);
        }
        // PR_SET_MDWE, or a security module, forbids memory that can be written and run.
        let address = self
            .single_call(gate, libc::SYS_mmap, map(rw))?
            .map_err(self.failed("mapping scratch space"))?;
        // Mapped so, not made so: nor may a mapping become executable.
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let fixed = flags | libc::MAP_FIXED as u64;
        self.single_call(
            gate,
            libc::SYS_mmap,
            [address, PAGE_SIZE_U64, rx, fixed, u64::MAX, 0],
        )?
        .map_err(self.failed("mapping the batch loop"))?;
        let scratch = Scratch { address, len };
        self.adopt_scratch(scratch, false)?;
        Ok(scratch)
    }

    /// Unmaps the scratch area through the gate.
    ///
    /// # Errors
    /// When the call fails.
    pub fn unmap_scratch(&mut self, gate: u64) -> Result<(), TraceeError> {
        let Some(Scratch { address, len }) = self.scratch.take() else {
            return Ok(());
        };
        self.single_call(gate, libc::SYS_munmap, [address, len as u64, 0, 0, 0, 0])?
            .map_err(self.failed("unmapping scratch space"))?;
        Ok(())
    }

    /// Unmaps memory of the process through the gate.
    ///
    /// # Errors
    /// When the call fails.
    pub fn unmap(&mut self, gate: u64, address: u64, len: u64) -> Result<(), TraceeError> {
        self.single_call(gate, libc::SYS_munmap, [address, len, 0, 0, 0, 0])?
            .map_err(self.failed("unmapping memory"))?;
        Ok(())
    }

    /// Runs a batch. Registers and signal mask are put back; calls that may fail are left to the
    /// caller to look at. When the tracer dies meanwhile the thread finishes the batch and goes on
    /// as it was; the scratch mapping is left over then.
    ///
    /// # Errors
    /// When a call that had to succeed failed, the thread ended, or the batch is too large.
    pub fn run(&mut self, batch: &Batch) -> Result<Output, TraceeError> {
        let running = self.begin(batch, 0)?;
        self.end(batch, &running)
    }

    /// Begins to run a batch and does not wait: several threads of a process run the same batch side by
    /// side so, each in a seat of its own ([`seats`]). [`Tracee::end`] must follow before anything else is
    /// done with the thread.
    ///
    /// # Errors
    /// As [`Tracee::run`]; the thread stands still then, as it was.
    pub fn begin(&mut self, batch: &Batch, seat: usize) -> Result<Running, TraceeError> {
        let (saved, mask) = self.rest()?;
        let place = EXIT_ROOM + seat * room(batch);
        let scratch = self.room_for(batch, place + RESUME_ROOM)?;
        let exit = Exit::of(seat).ok_or(TraceeError::Scratch {
            tid: self.tid,
            need: seat,
            have: EXITS,
        })?;
        let data = scratch.address + PAGE_SIZE_U64;
        let base = data + place as u64;
        let table = base + RESUME_ROOM as u64;
        let resume = Resume {
            regs: &saved,
            sigmask: mask,
        };
        let (resume, last) = resume.encode(scratch.address, exit);
        // The call table lies right behind.
        let mut bytes = resume.to_vec();
        bytes.extend_from_slice(&batch.encode(table));
        self.mem
            .write(data + exit.words() as u64, &last)
            .map_err(self.failed("writing where to go on"))?;
        self.mem
            .write(base, &bytes)
            .map_err(self.failed("writing a batch"))?;
        let regs = Regs {
            r14: i64::from(self.marker).cast_unsigned(),
            rbp: base,
            ..saved
        };
        let mark = scratch.address + batch::mark();
        self.start(batch, scratch, table, &regs)?;
        let begun = self
            .mask(all_but(self.marker))
            .and_then(|()| ptrace::cont(self.tid, 0).map_err(self.failed("running a batch in it")));
        if let Err(error) = begun {
            self.put_back(&saved, mask, Err(error))?
                .map_err(self.failed("running a batch in it"))?;
        }
        Ok(Running {
            saved,
            mask,
            table,
            mark,
        })
    }

    /// Waits until a batch is done.
    ///
    /// # Errors
    /// As [`Tracee::run`].
    pub fn end(&mut self, batch: &Batch, running: &Running) -> Result<Output, TraceeError> {
        const DOING: &str = "running a batch in it";
        let (marker, mark) = (self.marker, running.mark);
        let ran = self.wait_for(DOING, ptrace::cont, |tracee, status| {
            status == Status::Signal(marker) && tracee.regs().is_ok_and(|regs| regs.rip == mark)
        });
        let output = ran.and_then(|()| self.read_batch(batch, running.table));
        let done = output.as_ref().map(|_| 0).map_err(Clone::clone);
        let back = self.put_back(&running.saved, running.mask, done);
        let output = output?;
        back?.map_err(self.failed(DOING))?;
        match batch.failure(&output) {
            None => Ok(output),
            Some(failure) => Err(TraceeError::Call {
                tid: self.tid,
                failure: Box::new(failure),
            }),
        }
    }

    /// Runs a batch and leaves registers as the loop left them and the signal mask as it is: for
    /// threads that are being built. SIGTRAP should not be blocked: the kernel forgets its
    /// disposition when a breakpoint meets that.
    ///
    /// # Errors
    /// As [`Tracee::run`], but failed calls are left to the caller ([`Batch::failure`]).
    pub fn run_raw(&mut self, batch: &Batch) -> Result<Output, TraceeError> {
        self.at_rest = None;
        let scratch = self.room_for(batch, 0)?;
        let table = scratch.address + PAGE_SIZE_U64;
        self.write_batch(batch, table)?;
        let regs = Regs {
            r14: 0,
            ..self.regs()?
        };
        self.start(batch, scratch, table, &regs)?;
        self.go(|_, status| status == Status::Signal(libc::SIGTRAP))?;
        self.read_batch(batch, table)
    }

    /// Runs a batch that ends with a clone(2) under `CLONE_VFORK`, up to the stop that tells of the birth
    /// (`PTRACE_O_TRACEVFORK`). Registers may be set there; when the thread is let go it waits for the child.
    /// The child's id, or what the calls returned when there is no child.
    ///
    /// # Errors
    /// As [`Tracee::run_raw`].
    pub fn run_to_vfork(
        &mut self,
        batch: &Batch,
    ) -> Result<core::result::Result<Tid, Output>, TraceeError> {
        const DOING: &str = "making a child to wait for";
        let scratch = self.room_for(batch, 0)?;
        let table = scratch.address + PAGE_SIZE_U64;
        self.write_batch(batch, table)?;
        let regs = Regs {
            r14: 0,
            ..self.regs()?
        };
        self.at_rest = None;
        self.start(batch, scratch, table, &regs)?;
        self.go(|_, status| {
            matches!(
                status,
                Status::Event(libc::PTRACE_EVENT_VFORK) | Status::Signal(libc::SIGTRAP)
            )
        })?;
        // The message tells only in the stop of an event.
        if self.regs()?.rip == scratch.address + batch::mark() {
            return self.read_batch(batch, table).map(Err);
        }
        let born = ptrace::event_message(self.tid).map_err(self.failed(DOING))?;
        Ok(Ok(Tid(i32::try_from(born).unwrap_or(0))))
    }

    fn room_for(&self, batch: &Batch, more: usize) -> Result<Scratch, TraceeError> {
        let (need, tid) = (batch.size() + more, self.tid);
        let scratch = self
            .scratch
            .ok_or(TraceeError::Scratch { tid, need, have: 0 })?;
        let have = scratch.len - PAGE_SIZE;
        if need > have {
            return Err(TraceeError::Scratch { tid, need, have });
        }
        Ok(scratch)
    }

    fn write_batch(&self, batch: &Batch, table: u64) -> Result<(), TraceeError> {
        self.mem
            .write(table, &batch.encode(table))
            .map_err(self.failed("writing a batch"))
    }

    fn read_batch(&self, batch: &Batch, table: u64) -> Result<Output, TraceeError> {
        self.mem
            .read_vec(table, batch.size())
            .map(|bytes| batch.decode(bytes))
            .map_err(self.failed("reading a batch's results"))
    }

    /// Aims the registers at the loop.
    fn start(
        &self,
        batch: &Batch,
        scratch: Scratch,
        table: u64,
        regs: &Regs,
    ) -> Result<(), TraceeError> {
        self.load(&Regs {
            rip: scratch.address,
            rbx: table,
            r12: batch.len() as u64,
            rax: 0,
            orig_rax: NO_SYSCALL,
            ..*regs
        })
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

/// Finds a `syscall` instruction (`0f 05`) in code.
#[must_use]
pub fn find_gate(code: &[u8]) -> Option<usize> {
    memchr::memmem::find(code, &[0x0f, 0x05])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::time::Duration;

    /// A child that waits to be traced, ended when dropped.
    struct Child(Pid);
    impl Child {
        fn start() -> Child {
            Child(
                process::spawn(0, &[], || {
                    loop {
                        std::thread::sleep(Duration::from_secs(3600));
                    }
                })
                .unwrap(),
            )
        }
        fn stop(&self) -> Tracee {
            let tid = self.0.leader();
            ptrace::seize(tid, 0).unwrap();
            ptrace::interrupt(tid).unwrap();
            let status = wait::wait_for_at_most(tid, Duration::from_secs(5)).unwrap();
            assert_eq!(status, Some(Status::Trap));
            Tracee::new(self.0, tid).unwrap()
        }
    }
    impl Drop for Child {
        fn drop(&mut self) {
            let _ = process::kill(self.0, libc::SIGKILL);
            let _ = wait::wait_for(self.0.leader());
        }
    }

    fn gate(child: &Child) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.0)).unwrap();
        let line = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mem = ProcMem::open(child.0).unwrap();
        let code = mem.read_vec(start, (end - start) as usize).unwrap();
        start + find_gate(&code).unwrap() as u64
    }

    #[test]
    fn a_batch_runs_in_another_process_and_leaves_no_trace() {
        let child = Child::start();
        let mut tracee = child.stop();
        let before = tracee.regs().unwrap();
        let gate = gate(&child);
        let maps = std::fs::read(format!("/proc/{}/maps", child.0)).unwrap();
        tracee.map_scratch(gate, 64 << 10).unwrap();
        let mut batch = Batch::new();
        let pid = batch.call("getpid", libc::SYS_getpid, []);
        let path = batch.string(b"/proc/self/comm");
        let cwd = batch.space(256);
        let open = batch.call(
            "open",
            libc::SYS_openat,
            [(-100).into(), path.into(), 0.into()],
        );
        batch.call("close", libc::SYS_close, [open.into()]);
        let bad = batch.try_call("close", libc::SYS_close, [999.into()]);
        batch.call("getcwd", libc::SYS_getcwd, [cwd.into(), 256.into()]);
        let out = tracee.run(&batch).unwrap();
        assert_eq!(out.result(pid), Ok(child.0.0 as u64));
        assert_eq!(out.result(bad), Err(Errno::EBADF));
        assert!(out.bytes(cwd).starts_with(b"/"));
        tracee.unmap_scratch(gate).unwrap();
        assert_eq!(tracee.regs().unwrap(), before);
        assert_eq!(
            std::fs::read(format!("/proc/{}/maps", child.0)).unwrap(),
            maps
        );
    }

    #[test]
    fn a_failing_call_stops_the_batch_and_is_named() {
        let child = Child::start();
        let mut tracee = child.stop();
        tracee.map_scratch(gate(&child), 4096).unwrap();
        let mut batch = Batch::new();
        batch.call("closing what is not open", libc::SYS_close, [999.into()]);
        batch.call("exit", libc::SYS_exit_group, [1.into()]);
        let error = tracee.run(&batch).unwrap_err().to_string();
        assert!(error.contains("closing what is not open"), "{error}");
        assert!(
            wait::poll(child.0.leader()).unwrap().is_none(),
            "it did not exit"
        );
    }
}
