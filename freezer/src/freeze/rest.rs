//! Calls that a stop has made return when they were partly done.
//!
//! Such a call returns what it has done so far, as if a signal had come (signal(7)). The thread is sent to
//! make the rest of it from code of ours ([`sys::remainder`]) and so returns the whole. Where that cannot
//! be, because its stack or its vdso has no room or the call is not among those below, it returns
//! short, as the interfaces allow.
//!
//! Only calls are taken that return short for no other reason than a signal or an error.

use super::{FrozenThread, calls::USED_BELOW_STACK, position};
use crate::proc;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat, major, minor};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use sys::regs::{Regs, restart};
use sys::remainder::{self, FRAME, Frame};
use sys::vm::ProcMem;
use sys::{Errno, Pid, process};

const EINTR: i64 = 4;
const MSG_PEEK: u64 = 0x2;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_WAITFORONE: u64 = 0x1_0000;
/// Bytes of `struct iovec`, `struct msghdr`, `struct mmsghdr`.
const IOVEC: u64 = 16;
const MSGHDR: usize = 56;
const MMSGHDR: u64 = 64;
/// More buffers than these are not copied to the stack.
const MOST_PARTS: usize = 32;

/// How the arguments of a call are moved on to its rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A buffer in rsi, its length in rdx.
    Buffer,
    /// getrandom(2): rdi, rsi.
    FirstBuffer,
    /// A count in r10; the kernel itself moves the offsets on.
    Count,
    /// An array of `struct iovec` in rsi, how many in rdx.
    Vector,
    /// A `struct msghdr` in rsi.
    Message,
    /// An array of `struct mmsghdr` in rsi, how many in rdx.
    Messages,
}

/// What the call must be made on, to return short only when it was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// A pipe, a stream socket or a terminal, that waits.
    Writable,
    /// A stream socket that waits.
    Stream,
    /// A socket that waits.
    Socket,
    /// The same, which recvmmsg(2) was made on.
    Receiver,
    /// A device that never ends: zero, full, random, urandom.
    Endless,
    /// No descriptor.
    Nothing,
}

/// The calls that have a rest (arch/x86/entry/syscalls/syscall_64.tbl).
fn call(nr: i64, regs: &Regs) -> Option<(Shape, On)> {
    let all = |flags: u64| flags & MSG_WAITALL != 0 && flags & (MSG_PEEK | MSG_DONTWAIT) == 0;
    let waits = |flags: u64| flags & (MSG_DONTWAIT | MSG_WAITFORONE) == 0;
    Some(match nr {
        // read
        0 => (Shape::Buffer, On::Endless),
        // write
        1 => (Shape::Buffer, On::Writable),
        // writev
        20 => (Shape::Vector, On::Writable),
        // sendfile
        40 => (Shape::Count, On::Stream),
        // sendto
        44 if waits(regs.r10) => (Shape::Buffer, On::Stream),
        // recvfrom
        45 if all(regs.r10) => (Shape::Buffer, On::Stream),
        // sendmsg
        46 if waits(regs.rdx) => (Shape::Message, On::Stream),
        // recvmsg
        47 if all(regs.rdx) => (Shape::Message, On::Stream),
        // recvmmsg without a time-out
        299 if waits(regs.r10) && regs.r8 == 0 => (Shape::Messages, On::Receiver),
        // sendmmsg
        307 if waits(regs.r10) => (Shape::Messages, On::Socket),
        // getrandom
        318 => (Shape::FirstBuffer, On::Nothing),
        _ => return None,
    })
}

/// The registers with which a thread makes the rest of its call, as if that had been interrupted before it did
/// anything; what they need is in its memory then. None when the call has no rest.
pub(super) fn of(pid: Pid, regs: &Regs, thread: FrozenThread) -> Option<Regs> {
    let (nr, done) = regs.interrupted_syscall()?;
    let done = u64::try_from(done).ok().filter(|done| *done > 0)?;
    let (shape, on) = call(nr, regs)?;
    // A job that was stopped before had been interrupted by that.
    if thread.group_stop.is_some() || !is_on(pid, regs.rdi as i32, on) {
        return None;
    }
    let prepared = prepare(pid, regs, shape, done);
    prepared.unwrap_or_else(|errno| {
        log::debug!("process {pid}: call {nr} returns short: {errno}");
        None
    })
}

/// Writes what is needed; nothing of it is seen until the registers are set.
fn prepare(pid: Pid, regs: &Regs, shape: Shape, done: u64) -> sys::Result<Option<Regs>> {
    let mem = proc::memory(pid)?;
    let Some(rest) = Rest::of(&mem, regs, shape, done)? else {
        return Ok(None);
    };
    let Some(code) = code(pid, &mem)? else {
        return Ok(None);
    };
    let room = (FRAME + rest.beside.len()) as u64 + USED_BELOW_STACK;
    let Some(frame) = regs.rsp.checked_sub(room).map(|at| at & !15) else {
        return Ok(None);
    };
    let mut again = rest.regs;
    let mut bytes = Frame { done, regs }.bytes().to_vec();
    bytes.extend_from_slice(&rest.at(frame + FRAME as u64, &mut again));
    mem.write(frame, &bytes)?;
    Ok(Some(Regs {
        rsp: frame,
        // Behind the call, which the kernel goes back by.
        rip: code + 2,
        rax: (-EINTR).cast_unsigned(),
        ..again
    }))
}

/// The address of the code in the process's vdso, where it is put if it is not there yet.
fn code(pid: Pid, mem: &ProcMem) -> sys::Result<Option<u64>> {
    let Ok(Some(vdso)) = position::vdso(pid) else {
        return Ok(None);
    };
    let len = usize::try_from(vdso.end - vdso.start).map_err(|_| Errno::ERANGE)?;
    let image = mem.read_vec(vdso.start, len)?;
    let Some(at) = remainder::place(&image) else {
        return Ok(None);
    };
    let (address, code) = (vdso.start + at as u64, remainder::code());
    if !image[at..].starts_with(code) {
        mem.write(address, code)?;
    }
    Ok(Some(address))
}

/// Whether a descriptor of the process is what the call must be made on.
fn is_on(pid: Pid, fd: i32, on: On) -> bool {
    if on == On::Nothing {
        return true;
    }
    let copy = proc::pidfd(pid).and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), fd));
    copy.and_then(|copy| is(&copy, on)).unwrap_or(false)
}

fn is(file: &OwnedFd, on: On) -> sys::Result<bool> {
    let stat = fstat(file)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if on == On::Endless {
        let endless = major(stat.st_rdev) == 1 && matches!(minor(stat.st_rdev), 5 | 7 | 8 | 9);
        return Ok(kind == SFlag::S_IFCHR && endless);
    }
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        return Ok(false);
    }
    if on == On::Receiver {
        // The call has left the interruption to the next one (net/socket.c, `do_recvmmsg`).
        let error = getsockopt(file, sockopt::SocketError)?;
        return Ok(matches!(i64::from(error), 0 | EINTR | restart::ERESTARTSYS));
    }
    Ok(match kind {
        // Packets are written whole or not at all.
        SFlag::S_IFIFO => on == On::Writable,
        SFlag::S_IFSOCK => {
            on == On::Socket || getsockopt(file, sockopt::SockType)? == SockType::Stream
        }
        SFlag::S_IFCHR => on == On::Writable && file.is_terminal(),
        _ => false,
    })
}

/// The arguments of the rest of a call.
struct Rest {
    regs: Regs,
    /// What they point to besides.
    beside: Vec<u8>,
    shape: Shape,
}

impl Rest {
    /// None when nothing is left to do, or what is left has too many parts.
    fn of(mem: &ProcMem, regs: &Regs, shape: Shape, done: u64) -> sys::Result<Option<Rest>> {
        let mut rest = Rest {
            regs: *regs,
            beside: Vec::new(),
            shape,
        };
        let again = &mut rest.regs;
        let left = match shape {
            Shape::Buffer => moved_on(&mut again.rsi, &mut again.rdx, done, 1),
            Shape::FirstBuffer => moved_on(&mut again.rdi, &mut again.rsi, done, 1),
            Shape::Messages => moved_on(&mut again.rsi, &mut again.rdx, done, MMSGHDR),
            Shape::Count => moved_on(&mut 0, &mut again.r10, done, 0),
            Shape::Vector => {
                let parts = parts(mem, regs.rsi, regs.rdx, done)?;
                again.rdx = parts.len() as u64 / IOVEC;
                rest.beside = parts;
                again.rdx > 0
            }
            Shape::Message => {
                // struct msghdr: name, its length, parts, how many, control data, its length, flags.
                let mut head = mem.read_vec(regs.rsi, MSGHDR)?;
                let word = |at| head.get(at..at + 8).and_then(|word| word.try_into().ok());
                let [first, count, control] =
                    [16, 24, 32].map(|at| u64::from_le_bytes(word(at).unwrap_or_default()));
                // What came with control data ends there; what is sent has taken it along.
                let receives = regs.orig_rax == 47;
                let parts = parts(mem, first, count, done)?;
                let left = parts.len() as u64 / IOVEC;
                head[24..32].copy_from_slice(&left.to_le_bytes());
                head[32..48].fill(0);
                rest.beside = [head, parts].concat();
                left > 0 && !(receives && control != 0)
            }
        };
        Ok(left.then_some(rest))
    }

    /// What lies beside the frame, for address `at`, which `regs` point to then.
    fn at(&self, at: u64, regs: &mut Regs) -> Vec<u8> {
        let mut bytes = self.beside.clone();
        if !bytes.is_empty() {
            regs.rsi = at;
        }
        if self.shape == Shape::Message {
            bytes[16..24].copy_from_slice(&(at + MSGHDR as u64).to_le_bytes());
        }
        bytes
    }
}

/// Moves on by `done` elements of `size` bytes. True when some are left.
fn moved_on(pointer: &mut u64, len: &mut u64, done: u64, size: u64) -> bool {
    *pointer = pointer.wrapping_add(done.wrapping_mul(size));
    *len = len.saturating_sub(done);
    *len > 0
}

/// The array of `struct iovec` without the first `done` bytes that it describes, empty when they are too many.
fn parts(mem: &ProcMem, first: u64, count: u64, done: u64) -> sys::Result<Vec<u8>> {
    let len = usize::try_from(count.saturating_mul(IOVEC)).map_err(|_| Errno::ERANGE)?;
    // `UIO_MAXIOV`: the call would have failed.
    if len > 1024 * IOVEC as usize {
        return Err(Errno::EINVAL);
    }
    let mut done = done;
    let mut left = Vec::new();
    for part in mem.read_vec(first, len)?.chunks_exact(IOVEC as usize) {
        let word = |at: usize| part[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let (base, len) = (word(0), word(8));
        let skipped = len.min(done);
        done -= skipped;
        if len > skipped {
            left.extend_from_slice(&(base + skipped).to_le_bytes());
            left.extend_from_slice(&(len - skipped).to_le_bytes());
        }
    }
    if left.len() > MOST_PARTS * IOVEC as usize {
        left.clear();
    }
    Ok(left)
}
