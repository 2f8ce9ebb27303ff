//! Batches of calls, made by a loop in the scratch mapping.

use super::{Scratch, Tracee, TraceeError, all_but};
use crate::batch::{self, Batch, EXIT_ROOM, EXITS, Exit, Output, RESUME_ROOM, Resume};
use crate::regs::{NO_SYSCALL, Regs};
use crate::wait::Status;
use crate::{PAGE_SIZE, PAGE_SIZE_U64, Tid, ptrace};

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

impl Tracee {
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
        let begun = self.mask(all_but(self.marker)).and_then(|()| {
            let go_on = self.how_to_go_on();
            go_on(self.tid, 0).map_err(self.failed("running a batch in it"))
        });
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
        let ran = self.wait_for_mark(DOING, running.mark);
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

    fn how_to_go_on(&self) -> fn(Tid, i32) -> crate::Result<()> {
        match self.mute {
            true => ptrace::cont_to_syscall,
            false => ptrace::cont,
        }
    }

    /// Waits until it has sent itself the signal that ends a batch, or is kept from that.
    fn wait_for_mark(&mut self, doing: &'static str, mark: u64) -> Result<(), TraceeError> {
        let (marker, go_on) = (self.marker, self.how_to_go_on());
        if !self.mute {
            return self.wait_for(doing, go_on, |tracee, status| {
                status == Status::Signal(marker) && tracee.regs().is_ok_and(|regs| regs.rip == mark)
            });
        }
        loop {
            self.wait_for(doing, go_on, |_, status| status == Status::Syscall)?;
            let regs = self.regs()?;
            let sends = regs.rip == mark;
            if sends {
                // At the entry of that call: none is made. A security module would write a denied one to its log.
                let orig_rax = NO_SYSCALL;
                self.load(&Regs { orig_rax, ..regs })?;
            }
            go_on(self.tid, 0).map_err(self.failed(doing))?;
            if sends {
                break;
            }
        }
        self.wait_for(doing, go_on, |_, status| status == Status::Syscall)
    }

    /// Runs a batch and leaves registers as the loop left them and the signal mask as it is: for
    /// threads that are being built. SIGTRAP should not be blocked: the kernel forgets its
    /// disposition when a breakpoint meets that.
    ///
    /// # Errors
    /// As [`Tracee::run`], but failed calls are left to the caller ([`Batch::failure`]).
    pub fn run_raw(&mut self, batch: &Batch) -> Result<Output, TraceeError> {
        if batch.is_empty() {
            return Ok(batch.decode(batch.encode(0)));
        }
        let lent = self.lent(batch)?;
        let batch = lent.as_ref().unwrap_or(batch);
        let regs = self.regs()?;
        let table = self.prepare_raw(batch, 0, regs)?;
        self.go(|_, status| status == Status::Signal(libc::SIGTRAP))?;
        self.read_batch(batch, table)
    }

    /// Writes a batch with its table `used` bytes from where tables may lie, and aims the registers at it: `regs`
    /// but for those that the loop uses. Returns the table's address.
    pub(super) fn prepare_raw(
        &mut self,
        batch: &Batch,
        used: usize,
        regs: Regs,
    ) -> Result<u64, TraceeError> {
        self.at_rest = None;
        let scratch = self.room_for(batch, used)?;
        let table = scratch.address + PAGE_SIZE_U64 + used as u64;
        self.write_batch(batch, table)?;
        self.start(batch, scratch, table, &Regs { r14: 0, ..regs })?;
        Ok(table)
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
        let regs = self.regs()?;
        let table = self.prepare_raw(batch, 0, regs)?;
        self.go(|_, status| {
            matches!(
                status,
                Status::Event(libc::PTRACE_EVENT_VFORK) | Status::Signal(libc::SIGTRAP)
            )
        })?;
        // The message tells only in the stop of an event.
        let mark = table - PAGE_SIZE_U64 + batch::mark();
        if self.regs()?.rip == mark {
            return self.read_batch(batch, table).map(Err);
        }
        let born = ptrace::event_message(self.tid).map_err(self.failed(DOING))?;
        Ok(Ok(Tid(i32::try_from(born).unwrap_or(0))))
    }

    /// Has the thread load flags by `popfq`, in the scratch mapping. So it gets those that ptrace(2) does not set
    /// (`FLAG_MASK` in arch/x86/kernel/ptrace.c), and keeps them: no later request changes them. Its process must not
    /// have an action for SIGTRAP yet: the kernel forgets one that ignores it.
    ///
    /// # Errors
    /// When it ends or stops elsewhere.
    pub fn pop_flags(&mut self, flags: u64) -> Result<(), TraceeError> {
        const DOING: &str = "having it load its flags";
        let (saved, mask) = self.rest()?;
        let scratch = self.room_for(&Batch::new(), EXIT_ROOM + size_of::<u64>())?;
        let place = scratch.address + PAGE_SIZE_U64 + EXIT_ROOM as u64;
        self.mem
            .write(place, &flags.to_le_bytes())
            .map_err(self.failed(DOING))?;
        let regs = Regs {
            rip: scratch.address + batch::mark(),
            rbp: place,
            orig_rax: NO_SYSCALL,
            ..saved.without_steps()
        };
        self.load(&regs)?;
        let done = self.mask(all_but(libc::SIGTRAP)).and_then(|()| {
            for _ in 0..batch::UNTIL_FLAGS {
                ptrace::step(self.tid, 0).map_err(self.failed(DOING))?;
                self.wait_for(DOING, ptrace::step, |_, status| {
                    status == Status::Signal(libc::SIGTRAP)
                })?;
            }
            Ok(0)
        });
        self.put_back(&saved, mask, done).map(drop)
    }

    pub(super) fn room_for(&self, batch: &Batch, more: usize) -> Result<Scratch, TraceeError> {
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

    pub(super) fn read_batch(&self, batch: &Batch, table: u64) -> Result<Output, TraceeError> {
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
            ..regs.without_steps()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::find_gate;
    use super::*;
    use crate::vm::ProcMem;
    use crate::{Errno, Pid, process, wait};
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
    fn a_mute_thread_sends_itself_nothing() {
        let child = Child::start();
        let mut tracee = child.stop();
        ptrace::set_options(tracee.tid(), ptrace::options::TRACESYSGOOD).unwrap();
        let before = tracee.regs().unwrap();
        let gate = gate(&child);
        tracee.map_scratch(gate, 64 << 10).unwrap();
        tracee.set_mute();
        for _ in 0..2 {
            let mut batch = Batch::new();
            let pid = batch.call("getpid", libc::SYS_getpid, []);
            let bad = batch.try_call("close", libc::SYS_close, [999.into()]);
            let out = tracee.run(&batch).unwrap();
            assert_eq!(out.result(pid), Ok(child.0.0 as u64));
            assert_eq!(out.result(bad), Err(Errno::EBADF));
        }
        tracee.unmap_scratch(gate).unwrap();
        assert_eq!(tracee.regs().unwrap(), before);
        // The marker would end it, were it sent.
        ptrace::detach(tracee.tid(), 0).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(wait::poll(child.0.leader()).unwrap(), None);
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
