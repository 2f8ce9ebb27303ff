//! A ring of io_uring without a library.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use crate::kit::{SOON, args, not_here, raw, same, sys};

pub(super) const NOP: u8 = 0;
pub(super) const READV: u8 = 1;
pub(super) const WRITEV: u8 = 2;
pub(super) const READ_FIXED: u8 = 4;
pub(super) const WRITE_FIXED: u8 = 5;
pub(super) const POLL_ADD: u8 = 6;
pub(super) const SENDMSG: u8 = 9;
pub(super) const RECVMSG: u8 = 10;
pub(super) const TIMEOUT: u8 = 11;
pub(super) const ACCEPT: u8 = 13;
pub(super) const LINK_TIMEOUT: u8 = 15;
pub(super) const OPENAT: u8 = 18;
pub(super) const READ: u8 = 22;
pub(super) const WRITE: u8 = 23;
pub(super) const RECV: u8 = 27;
pub(super) const PROVIDE_BUFFERS: u8 = 31;
pub(super) const MSG_RING: u8 = 40;
pub(super) const WAITID: u8 = 50;
pub(super) const FUTEX_WAIT: u8 = 51;
pub(super) const FUTEX_WAITV: u8 = 53;
pub(super) const EPOLL_WAIT: u8 = 59;
/// `IOSQE_FIXED_FILE`, `IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`, `IOSQE_BUFFER_SELECT`
pub(super) const FIXED_FILE: u8 = 1 << 0;
pub(super) const LINK: u8 = 1 << 2;
pub(super) const HARDLINK: u8 = 1 << 3;
pub(super) const CHOOSES: u8 = 1 << 5;
/// `IOSQE_IO_DRAIN`, `IOSQE_ASYNC`, `IOSQE_CQE_SKIP_SUCCESS`
pub(super) const DRAIN: u8 = 1 << 1;
pub(super) const ASYNC: u8 = 1 << 4;
pub(super) const NO_COMPLETION: u8 = 1 << 6;
/// `IORING_ENTER_GETEVENTS`, `IORING_ENTER_EXT_ARG`
pub(super) const GETEVENTS: u64 = 1;
pub(super) const EXT_ARG: u64 = 1 << 3;

/// Places in `struct io_uring_params`, in words.
const SQ_HEAD: usize = 10;
const SQ_TAIL: usize = 11;
const SQ_FLAGS: usize = 14;
const SQ_ARRAY: usize = 16;
const CQ_HEAD: usize = 20;
const CQ_TAIL: usize = 21;
const CQES: usize = 25;

/// A ring with its mappings, which stay for the life of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) fd: i32,
    params: [u32; 30],
    rings: *mut u8,
    sqes: *mut u8,
}

// SAFETY: a ring is a number and addresses; accesses are atomic and the subjects order them themselves.
unsafe impl Send for Ring {}

/// `struct io_uring_sqe`, as far as it is needed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) priority: u16,
    pub(super) fd: i32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) op_flags: u32,
    pub(super) data: u64,
    pub(super) buffer: u16,
    pub(super) file_index: u32,
    pub(super) third: u64,
}

impl Ring {
    /// A ring; [`NotHere`](crate::kit::NotHere) where the machine has none, or none with these flags.
    pub(super) fn new(entries: u32, completions: u32, flags: u32) -> Result<Ring> {
        Ring::with(entries, completions, flags, 0)
    }

    /// A ring whose thread of the kernel's sleeps after so many milliseconds.
    pub(super) fn with(entries: u32, completions: u32, flags: u32, idle: u32) -> Result<Ring> {
        const NONE: i64 = -(libc::ENOSYS as i64);
        const FORBIDDEN: i64 = -(libc::EPERM as i64);
        const UNKNOWN: i64 = -(libc::EINVAL as i64);
        const CQSIZE: u32 = 1 << 3;
        let mut params = [0_u32; 30];
        params[1] = completions;
        params[2] = flags | CQSIZE;
        params[4] = idle;
        let at = params.as_mut_ptr() as u64;
        let fd = raw(libc::SYS_io_uring_setup, args([entries.into(), at]));
        match fd {
            NONE | FORBIDDEN => return not_here("no io_uring"),
            UNKNOWN if flags != 0 => return not_here("no io_uring with these flags"),
            _ => {}
        }
        let fd = i32::try_from(sys("io_uring_setup", fd)?)?;
        let rings = map(fd, (params[SQ_ARRAY] + params[0] * 4) as usize, 0)?;
        let sqes = map(fd, params[0] as usize * 64, 0x1000_0000)?;
        Ok(Ring {
            fd,
            params,
            rings,
            sqes,
        })
    }

    fn word(&self, at: u32) -> &AtomicU32 {
        // SAFETY: the kernel says that a word is there, and the mapping stays.
        unsafe { AtomicU32::from_ptr(self.rings.add(at as usize).cast()) }
    }

    fn of(&self, place: usize) -> &AtomicU32 {
        self.word(self.params[place])
    }

    /// Entries that the kernel has taken so far, and completions that it has made.
    pub(super) fn counts(&self) -> (u32, u32) {
        let get = |place| self.of(place).load(Ordering::Acquire);
        (get(SQ_HEAD), get(CQ_TAIL))
    }

    /// Whether the kernel's thread that takes entries sleeps (`IORING_SQ_NEED_WAKEUP`).
    pub(super) fn needs_wakeup(&self) -> bool {
        self.of(SQ_FLAGS).load(Ordering::SeqCst) & 1 != 0
    }

    /// Puts an entry into the queue; [`Ring::enter`] submits it.
    pub(super) fn add(&self, entry: Entry) {
        let tail = self.of(SQ_TAIL).load(Ordering::Relaxed);
        let index = tail & (self.params[0] - 1);
        let words = [
            u64::from(entry.opcode)
                | u64::from(entry.flags) << 8
                | u64::from(entry.priority) << 16
                | u64::from(entry.fd.cast_unsigned()) << 32,
            entry.offset,
            entry.address,
            u64::from(entry.len) | u64::from(entry.op_flags) << 32,
            entry.data,
            u64::from(entry.buffer) | u64::from(entry.file_index) << 32,
            entry.third,
            0,
        ];
        // SAFETY: inside of the mapping; the kernel does not look before the tail tells of it.
        unsafe {
            let place = self.sqes.add(index as usize * 64).cast::<[u64; 8]>();
            place.write_volatile(words);
        }
        self.word(self.params[SQ_ARRAY] + index * 4)
            .store(index, Ordering::Relaxed);
        self.of(SQ_TAIL)
            .store(tail.wrapping_add(1), Ordering::Release);
    }

    pub(super) fn nop(&self, data: u64) {
        self.add(Entry {
            data,
            ..Entry::default()
        });
    }

    /// io_uring_enter(2)
    pub(super) fn enter(&self, submit: u64, complete: u64) -> i64 {
        let flags = if complete > 0 { GETEVENTS } else { 0 };
        let fd = self.fd as u64;
        raw(
            libc::SYS_io_uring_enter,
            args([fd, submit, complete, flags]),
        )
    }

    /// Submits, and it is an error when not all are taken.
    pub(super) fn submit(&self, count: u64) -> Result<()> {
        match self.enter(count, 0) {
            done if done == count as i64 => Ok(()),
            other => bail!("io_uring_enter: {other}, not {count}"),
        }
    }

    /// io_uring_register(2)
    pub(super) fn register(&self, what: u64, at: u64, count: u64) -> Result<()> {
        let args = args([self.fd as u64, what, at, count]);
        sys("io_uring_register", raw(libc::SYS_io_uring_register, args)).map(drop)
    }

    /// Maps what is at an offset.
    pub(super) fn map(&self, len: usize, offset: i64) -> Result<*mut u8> {
        map(self.fd, len, offset)
    }

    /// Waits for so many completions, not for ever.
    pub(super) fn wait_for(&self, count: u64) -> Result<()> {
        let time = [SOON.as_secs() / 2, 0];
        // struct io_uring_getevents_arg: a mask, its size, the time-out.
        let argument = [0_u64, 0, time.as_ptr() as u64];
        let (flags, at) = (GETEVENTS | EXT_ARG, argument.as_ptr() as u64);
        let args = args([self.fd as u64, 0, count, flags, at, 24]);
        match raw(libc::SYS_io_uring_enter, args) {
            0 => Ok(()),
            other => bail!("io_uring_enter: {other}"),
        }
    }

    /// Waits for so many completions and takes them, in the order of their data.
    pub(super) fn wait(&self, count: u64) -> Result<Vec<(u64, i32)>> {
        self.wait_for(count)?;
        let mut found = self.take_all();
        found.sort_unstable();
        Ok(found)
    }

    /// Asks for completions, and there must be none.
    pub(super) fn expect_none(&self) -> Result<()> {
        let args = args([self.fd as u64, 0, 0, GETEVENTS]);
        raw(libc::SYS_io_uring_enter, args);
        same("completions", &vec![], &self.take_all())
    }

    /// Takes a completion: its data and its result.
    pub(super) fn take(&self) -> Option<(u64, i32)> {
        let (data, result, _) = self.take_with_flags()?;
        Some((data, result))
    }

    /// Takes a completion with its flags.
    pub(super) fn take_with_flags(&self) -> Option<(u64, i32, u32)> {
        let head = self.of(CQ_HEAD).load(Ordering::Relaxed);
        if head == self.of(CQ_TAIL).load(Ordering::Acquire) {
            return None;
        }
        let index = head & (self.params[1] - 1);
        let at = (self.params[CQES] + index * 16) as usize;
        // SAFETY: inside of the mapping, and the kernel has written it.
        let [data, rest] = unsafe { self.rings.add(at).cast::<[u64; 2]>().read_volatile() };
        self.of(CQ_HEAD)
            .store(head.wrapping_add(1), Ordering::Release);
        Some((data, rest as i32, (rest >> 32) as u32))
    }

    /// Takes all completions.
    pub(super) fn take_all(&self) -> Vec<(u64, i32)> {
        std::iter::from_fn(|| self.take()).collect()
    }
}

/// Some pages.
pub(super) fn memory(len: usize) -> Result<*mut u8> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: the kernel chooses a free address.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        bail!("mmap: {}", std::io::Error::last_os_error());
    }
    Ok(at.cast())
}

fn map(fd: i32, len: usize, offset: i64) -> Result<*mut u8> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: the kernel chooses a free address.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        bail!("mmap: {}", std::io::Error::last_os_error());
    }
    Ok(at.cast())
}
