//! Calls that a stop has made return when they were partly done.
//!
//! Such a call returns what it has done so far, as if a signal had come (signal(7)). The thread is sent to
//! make the rest of it from code of ours ([`sys::remainder`]) and so returns the whole. Where that cannot
//! be, because its stack or its vdso has no room or the call is not among those below, it returns
//! short, as the interfaces allow.
//!
//! Only calls are taken that return short for no other reason than a signal or an error, and what is awaited by
//! its size ([`mod@super::awaited`]).

use super::awaited::{self, Awaited};
use super::{FrozenThread, calls::USED_BELOW_STACK, position, uring};
use crate::capture;
use crate::files::apart;
use crate::proc;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat, major, minor};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use sys::regs::{Regs, restart};
use sys::remainder::{self, FRAME, Frame, Then};
use sys::vm::ProcMem;
use sys::{Errno, Pid, Tid, process};

const EINTR: i64 = 4;
const MSG_PEEK: u64 = 0x2;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_WAITFORONE: u64 = 0x1_0000;
const MSG_ZEROCOPY: u64 = 0x400_0000;
const RWF_NOWAIT: u64 = 0x8;
const SENDMMSG: u64 = 307;
const RECVMMSG: u64 = 299;
/// Bytes of `struct iovec`, `struct msghdr`, `struct mmsghdr`, `struct io_event`.
const IOVEC: u64 = 16;
const MSGHDR: usize = 56;
const MMSGHDR: u64 = 64;
const IO_EVENT: u64 = 32;
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
    /// An array of `struct io_event` in r10, how many at least in rsi, at most in rdx.
    Events,
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
    // Completions of copies that are not made are counted by calls.
    let waits = |flags: u64| flags & (MSG_DONTWAIT | MSG_WAITFORONE | MSG_ZEROCOPY) == 0;
    Some(match nr {
        // read, pread64: there are no offsets
        0 | 17 => (Shape::Buffer, On::Endless),
        // readv, preadv, preadv2
        19 | 295 | 327 => (Shape::Vector, On::Endless),
        // write
        1 => (Shape::Buffer, On::Writable),
        // writev; pwritev2, where there are no offsets
        20 => (Shape::Vector, On::Writable),
        328 if regs.r9 & RWF_NOWAIT == 0 => (Shape::Vector, On::Writable),
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
        // io_getevents, io_pgetevents
        208 | 333 => (Shape::Events, On::Nothing),
        // recvmmsg, whose time-out the kernel has made what remains
        299 if waits(regs.r10) => (Shape::Messages, On::Receiver),
        // sendmmsg
        307 if waits(regs.r10) => (Shape::Messages, On::Socket),
        // getrandom
        318 => (Shape::FirstBuffer, On::Nothing),
        _ => return None,
    })
}

/// The registers with which a thread makes the rest of its call, as if that had been interrupted before it did
/// anything; what they need is in its memory then. None when the call has no rest.
pub(super) fn of((pid, tid): (Pid, Tid), regs: &Regs, thread: FrozenThread) -> Option<Regs> {
    let (nr, result) = regs.interrupted_syscall()?;
    if thread.group_stop.is_none()
        && let Some(plan) = awaited::of((pid, tid), regs, thread)
    {
        return match plan {
            Awaited::Whole => Some(*regs),
            Awaited::Rest(rest) => prepared((pid, tid), regs, &rest),
        };
    }
    let done = u64::try_from(result).ok().filter(|done| *done > 0)?;
    if thread.group_stop.is_none() && uring::is_cut_short(pid, tid, regs, result) {
        let rest = Rest::new(done, uring::only_waiting(regs));
        return prepared((pid, tid), regs, &rest);
    }
    let (shape, on) = call(nr, regs)?;
    // A job that was stopped before had been interrupted by that.
    if thread.group_stop.is_some() || !is_on((pid, tid), regs.rdi as i32, on) {
        return None;
    }
    let rest = proc::memory(pid).and_then(|mem| Rest::of(&mem, regs, shape, done));
    prepared((pid, tid), regs, &rest.ok().flatten()?)
}

/// Whether a thread makes its call from code that gives back all registers.
pub(super) fn is_within(pid: Pid, regs: &Regs) -> bool {
    let vdso = position::vdso(pid).ok().flatten();
    vdso.is_some_and(|vdso| vdso.contains(&regs.rip))
}

/// The registers with which a thread makes its call again, as if it had failed with `EINTR`, from code that gives back
/// all that the program gave it. None where that cannot be, and where the call is made from there already.
pub(super) fn keeping((pid, tid): (Pid, Tid), regs: &Regs) -> Option<Regs> {
    let vdso = position::vdso(pid).ok().flatten()?;
    // Its calls are dispatched by where they are made from.
    if vdso.contains(&regs.rip) || capture::is_dispatched(tid) {
        return None;
    }
    prepared((pid, tid), regs, &Rest::new(0, *regs))
}

/// The registers with which a thread makes other calls than the one it was stopped in, which returns what they
/// return, with its registers. None where that cannot be.
pub(super) fn prepared((pid, tid): (Pid, Tid), regs: &Regs, rest: &Rest) -> Option<Regs> {
    let prepared = prepare((pid, tid), regs, rest);
    prepared.unwrap_or_else(|errno| {
        log::debug!("process {pid}: call {} is left: {errno}", regs.orig_rax);
        None
    })
}

/// Writes what is needed; nothing of it is seen until the registers are set.
fn prepare((pid, tid): (Pid, Tid), regs: &Regs, rest: &Rest) -> sys::Result<Option<Regs>> {
    // Code is written by the tracer alone, through a thread that it has (proc_mem.force_override=ptrace, Linux 6.12);
    // the leader may run yet.
    let mem = ProcMem::of_thread(pid, tid)?;
    let Some(code) = code(pid, &mem)? else {
        return Ok(None);
    };
    let room = (FRAME + rest.beside.len()) as u64 + USED_BELOW_STACK;
    let Some(frame) = regs.rsp.checked_sub(room).map(|at| at & !15) else {
        return Ok(None);
    };
    let (again, then, beside) = rest.at(frame + FRAME as u64);
    let done = rest.done;
    let mut bytes = Frame { done, regs, then }.bytes().to_vec();
    bytes.extend_from_slice(&beside);
    mem.write(frame, &bytes)?;
    Ok(Some(Regs {
        rsp: frame,
        // Behind the call, which the kernel goes back by.
        rip: code + 2,
        rax: (-EINTR).cast_unsigned(),
        ..again
    }))
}

/// Whether the process's vdso has room for the code.
pub(crate) fn has_room(pid: Pid) -> bool {
    room(pid).is_some()
}

/// Where the code is or can be put.
pub(crate) fn room(pid: Pid) -> Option<u64> {
    let vdso = position::vdso(pid).ok().flatten()?;
    let len = usize::try_from(vdso.end - vdso.start).ok()?;
    let image = proc::memory(pid).ok()?.read_vec(vdso.start, len).ok()?;
    Some(vdso.start + remainder::place(&image)? as u64)
}

/// The address of the code in the process's vdso, where it is put if it is not there yet.
pub(super) fn code(pid: Pid, mem: &ProcMem) -> sys::Result<Option<u64>> {
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

/// Whether a descriptor of a thread is what the call must be made on.
fn is_on((pid, tid): (Pid, Tid), fd: i32, on: On) -> bool {
    if on == On::Nothing {
        return true;
    }
    let pidfd = proc::pidfd(apart::table_of(pid, tid));
    let copy = pidfd.and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), fd));
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

/// The rest of a call.
pub(super) struct Rest {
    /// What has been done.
    pub(super) done: u64,
    /// The call that is made, and its arguments.
    pub(super) regs: Regs,
    /// The one after it.
    pub(super) then: Option<Then>,
    /// What they point to besides.
    pub(super) beside: Vec<u8>,
    /// Words that are to be the address of something in there.
    pub(super) pointers: Vec<(Pointer, u64)>,
}

/// What is to point to something beside the frame, whose offset stands with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointer {
    Rdi,
    Rsi,
    R10,
    /// The second argument of the second call.
    Then,
    /// A word beside the frame, at this offset.
    Beside(usize),
}

impl Rest {
    /// A call with these registers.
    pub(super) fn new(done: u64, regs: Regs) -> Rest {
        Rest {
            done,
            regs,
            then: None,
            beside: Vec::new(),
            pointers: Vec::new(),
        }
    }

    /// None when nothing is left to do.
    fn of(mem: &ProcMem, regs: &Regs, shape: Shape, done: u64) -> sys::Result<Option<Rest>> {
        let mut rest = Rest::new(done, *regs);
        let again = &mut rest.regs;
        let left = match shape {
            Shape::Buffer => moved_on(&mut again.rsi, &mut again.rdx, done, 1),
            Shape::FirstBuffer => moved_on(&mut again.rdi, &mut again.rsi, done, 1),
            Shape::Messages if ends_there(mem, regs, done)? => false,
            Shape::Messages => moved_on(&mut again.rsi, &mut again.rdx, done, MMSGHDR),
            Shape::Events => {
                again.rsi = regs.rsi.saturating_sub(done);
                moved_on(&mut again.r10, &mut again.rdx, done, IO_EVENT) && again.rsi > 0
            }
            Shape::Count => moved_on(&mut 0, &mut again.r10, done, 0),
            Shape::Vector => {
                let parts = Parts::of(mem, regs.rsi, regs.rdx, done)?;
                let few = parts.left.len() <= MOST_PARTS;
                again.rdx = if few { parts.left.len() as u64 } else { 1 };
                if !few {
                    let (at, count) = parts.others();
                    rest.then = parts.then(regs.orig_rax, [at, count, regs.r10]);
                }
                rest.beside = parts.bytes(few);
                rest.pointers = vec![(Pointer::Rsi, 0)];
                !parts.left.is_empty()
            }
            Shape::Message => return Rest::of_message(mem, regs, done),
        };
        Ok(left.then_some(rest))
    }

    /// The rest of a `struct msghdr`: name, its length, parts, how many, control data, its length, flags.
    fn of_message(mem: &ProcMem, regs: &Regs, done: u64) -> sys::Result<Option<Rest>> {
        let mut rest = Rest::new(done, *regs);
        let mut head = mem.read_vec(regs.rsi, MSGHDR)?;
        let word = |at| head.get(at..at + 8).and_then(|word| word.try_into().ok());
        let [first, count, control] =
            [16, 24, 32].map(|at| u64::from_le_bytes(word(at).unwrap_or_default()));
        // What came with control data ends there; what is sent has taken it along.
        let receives = regs.orig_rax == 47;
        let parts = Parts::of(mem, first, count, done)?;
        if parts.left.is_empty() || receives && control != 0 {
            return Ok(None);
        }
        head[32..48].fill(0);
        let mut other = head.clone();
        let few = parts.left.len() <= MOST_PARTS;
        let now = if few { parts.left.len() as u64 } else { 1 };
        head[24..32].copy_from_slice(&now.to_le_bytes());
        rest.pointers = vec![(Pointer::Rsi, 0), (Pointer::Beside(16), MSGHDR as u64)];
        rest.beside = [head, parts.bytes(few)].concat();
        if !few {
            let (at, count) = parts.others();
            other[16..24].copy_from_slice(&at.to_le_bytes());
            other[24..32].copy_from_slice(&count.to_le_bytes());
            rest.then = parts.then(regs.orig_rax, [0, regs.rdx, 0]);
            rest.pointers
                .push((Pointer::Then, rest.beside.len() as u64));
            rest.beside.extend_from_slice(&other);
        }
        Ok(Some(rest))
    }

    /// The calls, and what lies beside the frame, for that at address `at`.
    fn at(&self, at: u64) -> (Regs, Option<Then>, Vec<u8>) {
        let (mut regs, mut then) = (self.regs, self.then);
        let mut bytes = self.beside.clone();
        for (pointer, offset) in &self.pointers {
            let address = at + offset;
            match (pointer, &mut then) {
                (Pointer::Rdi, _) => regs.rdi = address,
                (Pointer::Rsi, _) => regs.rsi = address,
                (Pointer::R10, _) => regs.r10 = address,
                (Pointer::Then, Some(then)) => then.args[0] = address,
                (Pointer::Then, None) => {}
                (Pointer::Beside(place), _) => {
                    bytes[*place..place + 8].copy_from_slice(&address.to_le_bytes());
                }
            }
        }
        (regs, then, bytes)
    }
}

/// Whether a call for several messages has come to its end with the last of those that are done: that one was sent in
/// part, which its length tells, or the time for others is over.
fn ends_there(mem: &ProcMem, regs: &Regs, done: u64) -> sys::Result<bool> {
    match regs.orig_rax {
        SENDMMSG => {
            let last = regs.rsi.wrapping_add((done - 1).wrapping_mul(MMSGHDR));
            let (first, count) = (mem.read_u64(last + 16)?, mem.read_u64(last + 24)?);
            let sent = mem.read_u64(last + MSGHDR as u64)? & 0xffff_ffff;
            Ok(!Parts::of(mem, first, count, sent)?.left.is_empty())
        }
        RECVMMSG if regs.r8 != 0 => Ok([0, 8].map(|at| mem.read_u64(regs.r8 + at)) == [Ok(0); 2]),
        _ => Ok(false),
    }
}

/// Moves on by `done` elements of `size` bytes. True when some are left.
fn moved_on(pointer: &mut u64, len: &mut u64, done: u64, size: u64) -> bool {
    *pointer = pointer.wrapping_add(done.wrapping_mul(size));
    *len = len.saturating_sub(done);
    *len > 0
}

/// An array of `struct iovec` without the first bytes that it describes.
struct Parts {
    /// Address and length of those that are left.
    left: Vec<(u64, u64)>,
    /// Address of the array, and how many it has.
    array: (u64, u64),
}

impl Parts {
    fn of(mem: &ProcMem, first: u64, count: u64, done: u64) -> sys::Result<Parts> {
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
            // Behind the first one all stay, so that the array's end is what is left.
            if len > skipped || !left.is_empty() {
                left.push((base + skipped, len - skipped));
            }
        }
        let array = (first, count);
        Ok(Parts { left, array })
    }

    /// As they lie in memory: all of them, or the first one.
    fn bytes(&self, all: bool) -> Vec<u8> {
        let count = if all { self.left.len() } else { 1 };
        let some = self.left.iter().take(count);
        some.flat_map(|(base, len)| [*base, *len])
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    /// The array of those behind the first one that is left, which is as it was; and how many they are.
    fn others(&self) -> (u64, u64) {
        let count = (self.left.len() as u64).saturating_sub(1);
        let (first, whole) = self.array;
        (first + (whole - count) * IOVEC, count)
    }

    /// A second call for them, when the whole first part is done.
    fn then(&self, nr: u64, args: [u64; 3]) -> Option<Then> {
        let (_, len) = self.left.first()?;
        Some(Then {
            enough: len.cast_signed(),
            counts: true,
            nr: nr.cast_signed(),
            args,
        })
    }
}
