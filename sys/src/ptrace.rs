//! Single ptrace requests (ptrace(2)). Every function must be called by the tracee's tracer
//! thread, with the tracee stopped unless said otherwise; the kernel answers `ESRCH` if not.

use crate::regs::Regs;
use crate::xstate::{Component, PKRU};
use crate::{Errno, Pid, Result, Tid};
use core::sync::atomic::{AtomicUsize, Ordering};

const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const LISTEN: u32 = 0x4208;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const SET_SUD_CONFIG: u32 = 0x4210;
const GET_SUD_CONFIG: u32 = 0x4211;

const NT_PRSTATUS: u64 = 1;
const NT_X86_XSTATE: u64 = 0x202;
const PEEKSIGINFO_SHARED: u32 = 1;

/// Options of [`seize`] (`PTRACE_O_*`).
pub mod options {
    /// Mark system call stops.
    pub const TRACESYSGOOD: u64 = 1;
    /// Attach to children made by fork.
    pub const TRACEFORK: u64 = 1 << 1;
    /// Attach to children made by vfork.
    pub const TRACEVFORK: u64 = 1 << 2;
    /// Attach to threads and children made by clone.
    pub const TRACECLONE: u64 = 1 << 3;
    /// Kill the tracee when the tracer ends.
    pub const EXITKILL: u64 = 1 << 20;
    /// Seccomp filters do not apply while the tracee is traced (needs CAP_SYS_ADMIN).
    pub const SUSPEND_SECCOMP: u64 = 1 << 21;
    /// A thread that ends stops before (`PTRACE_O_TRACEEXIT`).
    pub const TRACEEXIT: u64 = 1 << 6;
}

/// Size of the kernel's siginfo as ptrace hands it over.
pub const SIGINFO_SIZE: usize = 128;

/// `siginfo_t` of a signal that the kernel sends and tells nothing else of (`SI_KERNEL`, sigaction(2)).
#[must_use]
pub fn of_kernel(signal: i32) -> [u8; SIGINFO_SIZE] {
    const SI_KERNEL: i32 = 0x80;
    let mut info = [0; SIGINFO_SIZE];
    info[..4].copy_from_slice(&signal.to_le_bytes());
    info[8..12].copy_from_slice(&SI_KERNEL.to_le_bytes());
    info
}

/// A `siginfo_t` byte for byte.
pub type SigInfo = [u8; SIGINFO_SIZE];

/// `struct ptrace_rseq_configuration` (include/uapi/linux/ptrace.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of `struct rseq`, 0 when not registered.
    pub pointer: u64,
    /// Its registered length.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
    pad: u32,
}

/// `struct ptrace_sud_config`: syscall user dispatch (include/uapi/linux/ptrace.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SudConfiguration {
    /// `PR_SYS_DISPATCH_ON` or `_OFF`.
    pub mode: u64,
    /// Address of the selector byte.
    pub selector: u64,
    /// Start of the range whose calls are let through.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// Makes a request whose `data` is a number.
fn request(op: u32, tid: Tid, addr: u64, data: u64) -> Result<()> {
    // SAFETY: only called with requests that take numbers, or pointers to live buffers of the
    // size the request writes.
    unsafe { ptrace(op, tid, addr, data) }.map(drop)
}

/// # Safety
/// `data`, where the request takes a pointer, must be valid for it.
unsafe fn ptrace(op: u32, tid: Tid, addr: u64, data: u64) -> Result<i64> {
    #[cfg(test)]
    death::tick();
    Errno::clear();
    // SAFETY: by contract.
    let r = unsafe { libc::ptrace(op, tid.0, addr, data) };
    #[cfg(test)]
    death::tick();
    if r == -1 && Errno::last_raw() != 0 {
        Err(Errno::last())
    } else {
        Ok(r)
    }
}

/// Attaches without stopping (`PTRACE_SEIZE`). The thread need not be stopped.
///
/// # Errors
/// `EPERM` when it is already traced or may not be; `ESRCH` when it is gone.
pub fn seize(tid: Tid, options: u64) -> Result<()> {
    request(SEIZE, tid, 0, options)
}

/// Asks a running tracee to stop (`PTRACE_INTERRUPT`).
///
/// # Errors
/// `ESRCH`.
pub fn interrupt(tid: Tid) -> Result<()> {
    request(INTERRUPT, tid, 0, 0)
}

/// Leaves a tracee in its group stop but lets SIGCONT wake it (`PTRACE_LISTEN`).
///
/// # Errors
/// `EIO` when it is not in a group stop.
pub fn listen(tid: Tid) -> Result<()> {
    request(LISTEN, tid, 0, 0)
}

/// Lets the tracee run, delivering `signal` if not 0.
///
/// # Errors
/// `ESRCH`.
pub fn cont(tid: Tid, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as u64)
}

/// Lets the tracee run to the next system call entry or exit.
///
/// # Errors
/// `ESRCH`.
pub fn cont_to_syscall(tid: Tid, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as u64)
}

/// Runs one instruction.
///
/// # Errors
/// `ESRCH`.
pub fn step(tid: Tid, signal: i32) -> Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, signal as u64)
}

/// Lets the tracee go, delivering `signal` if not 0.
///
/// # Errors
/// `ESRCH`.
pub fn detach(tid: Tid, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as u64)
}

/// Sends SIGKILL to the process of a tracee (`PTRACE_KILL`), which no security module is asked about.
///
/// # Errors
/// `ESRCH`.
pub fn kill(tid: Tid) -> Result<()> {
    request(libc::PTRACE_KILL, tid, 0, 0)
}

/// Changes the options given to [`seize`].
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn set_options(tid: Tid, options: u64) -> Result<()> {
    request(0x4200, tid, 0, options)
}

/// What the last `PTRACE_EVENT_*` stop tells, such as a new child's id.
///
/// # Errors
/// `ESRCH`.
pub fn event_message(tid: Tid) -> Result<u64> {
    let mut message = 0u64;
    request(0x4201, tid, 0, (&raw mut message) as u64)?;
    Ok(message)
}

/// Reads a regset into `buffer`, returning the bytes filled.
fn get_regset(tid: Tid, kind: u64, buffer: *mut u8, len: usize) -> Result<usize> {
    let mut iov = libc::iovec {
        iov_base: buffer.cast(),
        iov_len: len,
    };
    request(GETREGSET, tid, kind, (&raw mut iov) as u64)?;
    Ok(iov.iov_len)
}

fn set_regset(tid: Tid, kind: u64, buffer: *const u8, len: usize) -> Result<()> {
    let mut iov = libc::iovec {
        iov_base: buffer.cast_mut().cast(),
        iov_len: len,
    };
    request(SETREGSET, tid, kind, (&raw mut iov) as u64)
}

/// General registers.
///
/// # Errors
/// `ESRCH`; `EIO` for a 32-bit thread, whose set has another size.
pub fn get_regs(tid: Tid) -> Result<Regs> {
    let mut regs = Regs::default();
    let len = get_regset(tid, NT_PRSTATUS, (&raw mut regs).cast(), size_of::<Regs>())?;
    if len == size_of::<Regs>() {
        Ok(regs)
    } else {
        Err(Errno::EIO)
    }
}

/// Sets the general registers.
///
/// # Errors
/// `EIO` for values the kernel forbids ([`Regs::has_forbidden_segments`]) and the thread does not have already.
pub fn set_regs(tid: Tid, regs: &Regs) -> Result<()> {
    let set = set_regset(
        tid,
        NT_PRSTATUS,
        core::ptr::from_ref(regs).cast(),
        size_of::<Regs>(),
    );
    match set {
        // Those of segments are the last, and the others are set by then (arch/x86/kernel/ptrace.c, genregs_set).
        Err(Errno::EIO) if get_regs(tid)?.segments() == regs.segments() => Ok(()),
        set => set,
    }
}

/// The whole extended state (x87, SSE, AVX, AVX-512, PKRU, ...) in the non-compacted XSAVE format.
///
/// # Errors
/// `ENODEV` without XSAVE.
pub fn get_xstate(tid: Tid) -> Result<Vec<u8>> {
    // AMX tile data makes it 11 KiB; the kernel's own bound is a few pages.
    const MOST: usize = 64 << 10;
    /// A little more than it was the last time, which is what it is on this kernel.
    static ROOM: AtomicUsize = AtomicUsize::new(MOST);
    loop {
        let room = ROOM.load(Ordering::Relaxed);
        let mut buffer = vec![0u8; room];
        let len = get_regset(tid, NT_X86_XSTATE, buffer.as_mut_ptr(), room)?;
        if len == room && room < MOST {
            ROOM.store(MOST, Ordering::Relaxed);
            continue;
        }
        ROOM.store(MOST.min(len + 64), Ordering::Relaxed);
        buffer.truncate(len);
        return Ok(buffer);
    }
}

/// The register with the rights of protection keys (pkeys(7)) in an extended state; None when the processor
/// has none.
#[must_use]
pub fn pkru(state: &[u8]) -> Option<u32> {
    let rights = Component::of(PKRU);
    let place = state.get(rights.offset..).filter(|_| rights.size >= 4)?;
    Some(u32::from_le_bytes(*place.first_chunk()?))
}

/// Sets the extended state. Its length must be what [`get_xstate`] returns on this kernel.
///
/// # Errors
/// `EFAULT` for another length, `EINVAL` for bits the processor lacks.
pub fn set_xstate(tid: Tid, state: &[u8]) -> Result<()> {
    set_regset(tid, NT_X86_XSTATE, state.as_ptr(), state.len())
}

/// The blocked signals (bit n-1 for signal n).
///
/// # Errors
/// `ESRCH`.
pub fn get_sigmask(tid: Tid) -> Result<u64> {
    let mut mask = 0u64;
    request(GETSIGMASK, tid, 8, (&raw mut mask) as u64)?;
    Ok(mask)
}

/// Sets the blocked signals; SIGKILL and SIGSTOP are left out by the kernel.
///
/// # Errors
/// `ESRCH`.
pub fn set_sigmask(tid: Tid, mask: u64) -> Result<()> {
    request(SETSIGMASK, tid, 8, (&raw const mask) as u64)
}

/// The queued signals of the thread (`shared` false) or its process (true), in order, without
/// taking them off the queue.
///
/// # Errors
/// `ESRCH`.
pub fn peek_siginfo(tid: Tid, shared: bool) -> Result<Vec<SigInfo>> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    const AT_ONCE: usize = 32;
    let mut all = Vec::new();
    loop {
        let flags = if shared { PEEKSIGINFO_SHARED } else { 0 };
        let args = Args {
            off: all.len() as u64,
            flags,
            nr: AT_ONCE as i32,
        };
        let mut found = [[0u8; SIGINFO_SIZE]; AT_ONCE];
        // SAFETY: `found` has room for `nr` entries.
        let n = unsafe {
            ptrace(
                PEEKSIGINFO,
                tid,
                (&raw const args) as u64,
                (&raw mut found) as u64,
            )
        }?;
        let n = usize::try_from(n).unwrap_or(0).min(AT_ONCE);
        all.extend_from_slice(&found[..n]);
        if n < AT_ONCE {
            return Ok(all);
        }
    }
}

/// The siginfo of the signal-delivery stop the tracee is in.
///
/// # Errors
/// `EINVAL` when it is in another kind of stop.
pub fn get_siginfo(tid: Tid) -> Result<SigInfo> {
    let mut info = [0u8; SIGINFO_SIZE];
    request(libc::PTRACE_GETSIGINFO, tid, 0, (&raw mut info) as u64)?;
    Ok(info)
}

/// The thread's rseq registration.
///
/// # Errors
/// `EIO` on a kernel without CONFIG_RSEQ.
pub fn rseq_configuration(tid: Tid) -> Result<RseqConfiguration> {
    let mut found = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>() as u64;
    request(GET_RSEQ_CONFIGURATION, tid, size, (&raw mut found) as u64)?;
    Ok(found)
}

/// Syscall user dispatch settings. Kernels before 6.4 cannot tell and answer `EIO`.
///
/// # Errors
/// `EIO`.
pub fn sud_configuration(tid: Tid) -> Result<SudConfiguration> {
    let mut found = SudConfiguration::default();
    let size = size_of::<SudConfiguration>() as u64;
    request(GET_SUD_CONFIG, tid, size, (&raw mut found) as u64)?;
    Ok(found)
}

/// Sets what [`sud_configuration`] reads.
///
/// # Errors
/// `EINVAL`.
pub fn set_sud_configuration(tid: Tid, wanted: &SudConfiguration) -> Result<()> {
    let size = size_of::<SudConfiguration>() as u64;
    request(
        SET_SUD_CONFIG,
        tid,
        size,
        core::ptr::from_ref(wanted) as u64,
    )
}

/// The instructions (`struct sock_filter`, 8 bytes each) of the thread's seccomp filter `index`,
/// counted from the one installed first (kernel/seccomp.c, get_nth_filter); None past the last one.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN; `EMEDIUMTYPE` for a filter that is not classic BPF.
pub fn seccomp_filter(tid: Tid, index: u64) -> Result<Option<Vec<[u8; 8]>>> {
    // SAFETY: a null buffer asks for the number of instructions.
    let count = match unsafe { ptrace(SECCOMP_GET_FILTER, tid, index, 0) } {
        Ok(n) => usize::try_from(n).unwrap_or(0),
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut code = vec![[0u8; 8]; count];
    // SAFETY: room for `count` instructions, and filters never change.
    unsafe { ptrace(SECCOMP_GET_FILTER, tid, index, code.as_mut_ptr() as u64) }?;
    Ok(Some(code))
}

/// Flags (`SECCOMP_FILTER_FLAG_*`) of the thread's seccomp filter `index`, as [`seccomp_filter`] counts.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN, `ENOENT` past the last one, `EIO` from kernels before 4.16.
pub fn seccomp_flags(tid: Tid, index: u64) -> Result<u64> {
    // struct seccomp_metadata: filter_off, flags.
    let mut found = [index, 0];
    let size = size_of_val(&found) as u64;
    request(SECCOMP_GET_METADATA, tid, size, (&raw mut found) as u64)?;
    Ok(found[1])
}

/// Whether this process may trace `pid` at all is only known by trying; this is the cheapest try:
/// seize and detach at once, without stopping it.
///
/// # Errors
/// As [`seize`].
pub fn probe(pid: Pid) -> Result<()> {
    seize(pid.leader(), 0)?;
    interrupt(pid.leader())?;
    crate::wait::wait_for(pid.leader())?;
    detach(pid.leader(), 0)
}

/// Ends a tracer at a chosen moment, before or after one of its requests.
#[cfg(test)]
pub(crate) mod death {
    use std::sync::atomic::{AtomicI64, Ordering};

    /// Moments left to live; negative for ever.
    pub(crate) static LEFT: AtomicI64 = AtomicI64::new(-1);

    pub(super) fn tick() {
        if LEFT.load(Ordering::Relaxed) >= 0 && LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
            // SAFETY: ends this process at once, as SIGKILL would.
            unsafe { libc::_exit(77) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{process, wait};
    use std::time::Duration;

    /// A child, ended when dropped.
    struct Child(Tid);

    impl Child {
        /// Stands still, with this base of gs.
        fn stopped(base: u64) -> Child {
            let child = process::spawn(0, &[], move || {
                // SAFETY: nothing uses gs in this program, and the processor has the instruction.
                unsafe { core::arch::asm!("wrgsbase {0}", in(reg) base) };
                loop {
                    std::thread::sleep(Duration::from_secs(3600));
                }
            });
            let pid = child.unwrap();
            let child = Child(pid.leader());
            let asleep = crate::asleep::Asleep::of(pid, child.0);
            while !asleep.is() {
                std::thread::sleep(Duration::from_millis(1));
            }
            seize(child.0, 0).unwrap();
            interrupt(child.0).unwrap();
            wait::wait_for_at_most(child.0, Duration::from_secs(5)).unwrap();
            child
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = process::kill(crate::Pid(self.0.0), libc::SIGKILL);
            let _ = wait::wait_for(self.0);
        }
    }

    #[test]
    fn segments_that_a_thread_has_are_no_obstacle() {
        const FSGSBASE: u64 = 1 << 1;
        // SAFETY: it only looks a number up.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & FSGSBASE == 0 {
            return;
        }
        let kernels_half = 0xffff_8000_0000_1000;
        let (with, without) = (Child::stopped(kernels_half), Child::stopped(0));
        let regs = Regs {
            rbx: 77,
            ..get_regs(with.0).unwrap()
        };
        assert!(regs.has_forbidden_segments());
        assert_eq!(set_regs(with.0, &regs), Ok(()));
        assert_eq!(get_regs(with.0).unwrap(), regs);
        let regs = Regs {
            gs_base: kernels_half,
            ..get_regs(without.0).unwrap()
        };
        assert!(!get_regs(without.0).unwrap().has_forbidden_segments());
        assert_eq!(set_regs(without.0, &regs), Err(Errno::EIO));
    }
}
