//! Single calls, before there is room for batches, and the mapping that is made for those.

use super::{Scratch, Tracee, TraceeError};
use crate::batch::{EXIT_ROOM, RESUME_ROOM};
use crate::gate::{Gate, ReturnSlot};
use crate::regs::{NO_SYSCALL, Regs};
use crate::sigframe::{Context, SigFrame};
use crate::wait::Status;
use crate::{Errno, PAGE_SIZE, PAGE_SIZE_U64, ptrace};

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

/// Finds a `syscall` instruction (`0f 05`) in code.
#[must_use]
pub fn find_gate(code: &[u8]) -> Option<usize> {
    memchr::memmem::find(code, &[0x0f, 0x05])
}

const DOING: &str = "making a system call in it";
/// A call's entry and its exit.
const STOPS: usize = 2;

/// Registers with which a thread makes a call through the instruction at `gate`.
fn at_gate(saved: &Regs, gate: u64, nr: i64, [rdi, rsi, rdx, r10, r8, r9]: [u64; 6]) -> Regs {
    Regs {
        rip: gate,
        rax: nr.cast_unsigned(),
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        orig_rax: NO_SYSCALL,
        ..saved.without_steps()
    }
}

/// Unmaps the scratch areas of several address spaces side by side, as [`Tracee::unmap_scratch`] does, each through a
/// gate of its own. They must not depend on a way back ([`Tracee::set_foothold`]).
///
/// # Errors
/// As [`Tracee::unmap_scratch`]. Those of the others may stand anywhere in the call then: they are to be ended.
pub fn unmap_scratches(work: Vec<(&mut Tracee, u64)>) -> Result<(), TraceeError> {
    let mut calling = Vec::new();
    for (tracee, gate) in work {
        let Some(Scratch { address, len }) = tracee.scratch.take() else {
            continue;
        };
        let (saved, mask) = tracee.rest()?;
        let args = [address, len as u64, 0, 0, 0, 0];
        tracee.load(&at_gate(&saved, gate, libc::SYS_munmap, args))?;
        tracee.mask(u64::MAX)?;
        calling.push((tracee, saved, mask));
    }
    for _ in 0..STOPS {
        for (tracee, ..) in &calling {
            tracee.go_to_call()?;
        }
        // The last one first: the others have stopped by then.
        for (tracee, ..) in calling.iter_mut().rev() {
            tracee.wait_for_call()?;
        }
    }
    for (tracee, saved, mask) in calling {
        let result = tracee.regs().map(|regs| regs.rax.cast_signed());
        let done = tracee.put_back(&saved, mask, result)?;
        done.map_err(tracee.failed("unmapping scratch space"))?;
    }
    Ok(())
}

impl Tracee {
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
        let mut regs = at_gate(&saved, gate, nr, args);
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
        for _ in 0..STOPS {
            self.go_to_call()?;
            self.wait_for_call()?;
        }
        Ok(self.regs()?.rax.cast_signed())
    }

    fn go_to_call(&self) -> Result<(), TraceeError> {
        ptrace::cont_to_syscall(self.tid, 0).map_err(self.failed(DOING))
    }

    fn wait_for_call(&mut self) -> Result<(), TraceeError> {
        self.wait_for(DOING, ptrace::cont_to_syscall, |_, status| {
            // Without PTRACE_O_TRACESYSGOOD it looks like a signal.
            matches!(status, Status::Syscall | Status::Signal(libc::SIGTRAP))
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
        let mut mapped = self.single_call(gate, libc::SYS_mmap, map(rw))?;
        if mapped == Err(Errno::EACCES) {
            // With READ_IMPLIES_EXEC (personality(2)) what may be read may be run. x86 reads what may be written.
            mapped = self.single_call(gate, libc::SYS_mmap, map(libc::PROT_WRITE as u64))?;
        }
        let address = mapped.map_err(self.failed("mapping scratch space"))?;
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
}
