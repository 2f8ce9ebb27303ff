//! io_uring(7): making rings, entering them, and their memory.
//!
//! What the rings' memory holds where is told by `io_uring_setup(2)` in [`Params`]; both sides write into it
//! at any time, so that it is only read and written as words, never borrowed.

use crate::raw::syscall;
use crate::{Errno, PAGE_SIZE, Result};
use memmap2::{MmapOptions, MmapRaw};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Offsets for mmap(2): the two rings, and the entries of the submission queue.
pub const OFFSET_RINGS: u64 = 0;
/// The completion queue, which lies in the same memory as the submission queue (`IORING_FEAT_SINGLE_MMAP`).
pub const OFFSET_COMPLETIONS: u64 = 0x800_0000;
/// The entries.
pub const OFFSET_ENTRIES: u64 = 0x1000_0000;
/// Rings of buffers that the kernel has made (`IOU_PBUF_RING_MMAP`), by their groups.
pub const OFFSET_BUFFERS: u64 = 0x8000_0000;
/// How far the number of a group is shifted in such an offset.
pub const BUFFERS_SHIFT: u32 = 16;

/// Whether an offset is one of a ring of buffers.
#[must_use]
pub fn is_of_buffers(offset: u64) -> bool {
    offset.checked_sub(OFFSET_BUFFERS).is_some_and(|rest| {
        rest >> BUFFERS_SHIFT <= u64::from(u16::MAX) && rest & ((1 << BUFFERS_SHIFT) - 1) == 0
    })
}

/// Bits of `struct io_uring_params.flags` (include/uapi/linux/io_uring.h).
pub mod flags {
    /// Completions are looked for where devices are polled.
    pub const IOPOLL: u32 = 1 << 0;
    /// A thread of the kernel's takes entries.
    pub const SQPOLL: u32 = 1 << 1;
    /// It runs on one processor.
    pub const SQ_AFF: u32 = 1 << 2;
    /// The number of completions is given.
    pub const CQSIZE: u32 = 1 << 3;
    /// Numbers that are too large are made smaller.
    pub const CLAMP: u32 = 1 << 4;
    /// Workers are shared with another ring.
    pub const ATTACH_WQ: u32 = 1 << 5;
    /// It takes nothing until it is enabled.
    pub const R_DISABLED: u32 = 1 << 6;
    /// The rest is submitted although one fails.
    pub const SUBMIT_ALL: u32 = 1 << 7;
    /// Threads that run are not interrupted for completions.
    pub const COOP_TASKRUN: u32 = 1 << 8;
    /// A bit tells that completions wait to be made.
    pub const TASKRUN_FLAG: u32 = 1 << 9;
    /// Entries of 128 bytes.
    pub const SQE128: u32 = 1 << 10;
    /// Completions of 32 bytes.
    pub const CQE32: u32 = 1 << 11;
    /// One thread submits.
    pub const SINGLE_ISSUER: u32 = 1 << 12;
    /// Completions are made when that thread asks for them.
    pub const DEFER_TASKRUN: u32 = 1 << 13;
    /// Entries are taken in their order.
    pub const NO_SQARRAY: u32 = 1 << 16;
    /// Devices are polled after a sleep.
    pub const HYBRID_IOPOLL: u32 = 1 << 17;
}

/// `IORING_OP_*`
#[allow(missing_docs, reason = "io_uring_enter(2) tells what they are")]
pub mod op {
    pub const NOP: u8 = 0;
    pub const READV: u8 = 1;
    pub const WRITEV: u8 = 2;
    pub const READ_FIXED: u8 = 4;
    pub const WRITE_FIXED: u8 = 5;
    pub const POLL_ADD: u8 = 6;
    pub const SENDMSG: u8 = 9;
    pub const RECVMSG: u8 = 10;
    pub const TIMEOUT: u8 = 11;
    pub const ACCEPT: u8 = 13;
    pub const LINK_TIMEOUT: u8 = 15;
    pub const READ: u8 = 22;
    pub const WRITE: u8 = 23;
    pub const SEND: u8 = 26;
    pub const RECV: u8 = 27;
    pub const PROVIDE_BUFFERS: u8 = 31;
    pub const MSG_RING: u8 = 40;
    pub const READ_MULTISHOT: u8 = 49;
    pub const WAITID: u8 = 50;
    pub const FUTEX_WAIT: u8 = 51;
    pub const FUTEX_WAITV: u8 = 53;
    pub const EPOLL_WAIT: u8 = 59;
}

/// `struct io_uring_sqe`, as far as it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`op`]
    pub opcode: u8,
    /// `IOSQE_*`
    pub flags: u8,
    /// `ioprio`: flags of sockets' requests.
    pub priority: u16,
    /// The descriptor.
    pub fd: i32,
    /// `off`, `addr2`
    pub offset: u64,
    /// `addr`
    pub address: u64,
    /// `len`
    pub len: u32,
    /// Flags of the kind of request.
    pub flags_of_op: u32,
    /// What comes back with the completion.
    pub data: u64,
    /// `buf_index`, `buf_group`
    pub buffer: u16,
    /// Number of a place for a file, plus one; how much a receive that goes on may take.
    pub file_index: u32,
    /// `addr3`
    pub third: u64,
}

impl Entry {
    /// Whether it takes a buffer of a group (`IOSQE_BUFFER_SELECT`).
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.flags & 1 << 5 != 0
    }

    /// Whether the next one waits for it (`IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`).
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.flags & (1 << 2 | 1 << 3) != 0
    }

    /// Whether the field for a descriptor holds something else.
    #[must_use]
    pub fn has_no_descriptor(&self) -> bool {
        matches!(self.opcode, op::WAITID | op::FUTEX_WAIT | op::FUTEX_WAITV)
    }

    /// As the kernel reads it.
    #[must_use]
    pub fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        (bytes[0], bytes[1]) = (self.opcode, self.flags);
        bytes[2..4].copy_from_slice(&self.priority.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.fd.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.address.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.flags_of_op.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data.to_le_bytes());
        bytes[40..42].copy_from_slice(&self.buffer.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.file_index.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.third.to_le_bytes());
        bytes
    }
}

/// `IORING_ENTER_SQ_WAKEUP`.
pub const ENTER_WAKEUP: u32 = 2;
/// `IORING_ENTER_GETEVENTS`.
pub const ENTER_GETEVENTS: u32 = 1;

/// Words of `struct io_uring_params`.
const PARAMS: usize = 30;
const FEATURES: usize = 5;

/// `struct io_uring_params`, as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params([u32; PARAMS]);

impl Params {
    /// For a ring with room for so many completions and with these flags.
    #[must_use]
    pub fn new(completions: u32, flags: u32) -> Params {
        let mut words = [0; PARAMS];
        (words[1], words[2]) = (completions, flags);
        Params(words)
    }

    /// As the kernel reads it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What the kernel has made of [`Params::bytes`].
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Params {
        let mut words = [0; PARAMS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Params(words)
    }

    /// With a thread that takes entries: its processor, and after how many milliseconds it sleeps.
    #[must_use]
    pub fn polled(mut self, processor: u32, idle: u32) -> Params {
        (self.0[3], self.0[4]) = (processor, idle);
        self
    }

    /// Numbers of entries and of completions.
    #[must_use]
    pub fn sizes(&self) -> (u32, u32) {
        (self.0[0], self.0[1])
    }

    /// Where the fields are: of the submission queue `head`, `tail`, `ring_mask`, `ring_entries`, `flags`, `dropped`,
    /// `array`; of the completion queue `head`, `tail`, `ring_mask`, `ring_entries`, `overflow`, `cqes`, `flags`.
    #[must_use]
    pub fn offsets(&self) -> [u32; 14] {
        let mut found = [0; 14];
        found[..7].copy_from_slice(&self.0[10..17]);
        found[7..].copy_from_slice(&self.0[20..27]);
        found
    }
}

/// io_uring_setup(2).
///
/// # Errors
/// `EINVAL` for flags or numbers that the kernel does not take, `EPERM` where `kernel.io_uring_disabled` forbids
/// it, `ENOSYS`, `EMFILE`.
pub fn setup(entries: u32, params: &mut Params) -> Result<OwnedFd> {
    let args = [entries.into(), params.0.as_mut_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: the structure is as large as the kernel's, and lives through the call.
    let fd = unsafe { syscall(libc::SYS_io_uring_setup, args) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// Whether this kernel's receives take several buffers at once (`IORING_FEAT_RECVSEND_BUNDLE`).
#[must_use]
pub fn takes_bundles() -> bool {
    const BUNDLE: u32 = 1 << 14;
    let mut params = Params::default();
    setup(1, &mut params).is_ok() && params.0[FEATURES] & BUNDLE != 0
}

/// io_uring_enter(2) without a mask or a time-out; returns how many entries were taken.
///
/// # Errors
/// `EBADFD` for a ring that is not enabled, `EEXIST` where another thread submits, `EINTR`.
pub fn enter(ring: impl AsFd, submit: u32, complete: u32, flags: u32) -> Result<u32> {
    let fd = u64::try_from(ring.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    let args = [fd, submit.into(), complete.into(), flags.into(), 0, 0];
    // SAFETY: no pointers. What entries point to is for who has written them ([`Memory::write`]).
    let taken = unsafe { syscall(libc::SYS_io_uring_enter, args) }?;
    u32::try_from(taken).map_err(|_| Errno::ERANGE)
}

/// What io_uring_register(2) registers.
#[allow(missing_docs, reason = "io_uring_register(2) tells what they are")]
pub mod register {
    pub const BUFFERS: u32 = 0;
    pub const FILES: u32 = 2;
    pub const EVENTFD: u32 = 4;
    pub const EVENTFD_ASYNC: u32 = 7;
    pub const RESTRICTIONS: u32 = 11;
    pub const ENABLE_RINGS: u32 = 12;
    pub const FILES2: u32 = 13;
    pub const BUFFERS2: u32 = 15;
    pub const IOWQ_MAX_WORKERS: u32 = 19;
    pub const RING_FDS: u32 = 20;
    pub const PBUF_RING: u32 = 22;
    pub const FILE_ALLOC_RANGE: u32 = 25;
    pub const CLOCK: u32 = 29;
}

/// io_uring_register(2) with numbers of descriptors.
///
/// # Errors
/// `EBADF` for one that is not open, `EBUSY` for what is registered already, `EEXIST` where another thread submits.
pub fn register_numbers(ring: impl AsFd, what: u32, numbers: &[i32]) -> Result<()> {
    let fd = u64::try_from(ring.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    let (first, count) = (numbers.as_ptr() as u64, numbers.len() as u64);
    let args = [fd, what.into(), first, count, 0, 0];
    // SAFETY: the kernel reads as many numbers as there are.
    unsafe { syscall(libc::SYS_io_uring_register, args) }.map(drop)
}

/// io_uring_register(2) with numbers of descriptors and the tags that tell when they are not used any more.
///
/// # Errors
/// As [`register_numbers`].
pub fn register_tagged(ring: impl AsFd, numbers: &[i32], tags: &[u64]) -> Result<()> {
    let all = tags.len().min(numbers.len()) as u64;
    // struct io_uring_rsrc_register: how many, flags, reserved, where they are, where their tags are.
    let words = [all, 0, numbers.as_ptr() as u64, tags.as_ptr() as u64];
    register_words(ring, register::FILES2, &words, 32)
}

/// io_uring_register(2) with a structure of so many words, as `count` things.
///
/// # Errors
/// `EINVAL` for what the kernel does not know, `EEXIST` for what is there.
pub fn register_words(ring: impl AsFd, what: u32, words: &[u64], count: u32) -> Result<()> {
    let fd = u64::try_from(ring.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    // The kernel writes into some.
    let mut copy = words.to_vec();
    let at = if copy.is_empty() {
        0
    } else {
        copy.as_mut_ptr() as u64
    };
    let args = [fd, what.into(), at, count.into(), 0, 0];
    // SAFETY: the structure is ours, and callers give it whole. Memory that it tells of is the caller's, and the kernel
    // only reads it.
    unsafe { syscall(libc::SYS_io_uring_register, args) }.map(drop)
}

/// Memory of a ring.
#[derive(Debug)]
pub struct Memory(MmapRaw);

impl Memory {
    /// Maps `len` bytes from one of the offsets above on.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map(ring: impl AsFd, offset: u64, len: usize) -> Result<Memory> {
        let len = len.next_multiple_of(PAGE_SIZE);
        let fd = ring.as_fd();
        let mapped = MmapOptions::new().offset(offset).len(len).map_raw(&fd);
        mapped
            .map(Memory)
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// A word; 0 behind the end.
    #[must_use]
    pub fn word(&self, at: u32) -> u32 {
        let at = at as usize & !3;
        if at + 4 > self.0.len() {
            return 0;
        }
        // SAFETY: inside of the mapping and aligned; volatile, since others write there.
        unsafe { self.0.as_ptr().add(at).cast::<u32>().read_volatile() }
    }

    /// Sets a word; nothing behind the end.
    pub fn set_word(&self, at: u32, value: u32) {
        let at = at as usize & !3;
        if at + 4 > self.0.len() {
            return;
        }
        let place = self.0.as_mut_ptr();
        // SAFETY: inside of the mapping, which is writable, and aligned.
        unsafe { place.add(at).cast::<u32>().write_volatile(value) };
    }

    /// Its first `len` bytes, a multiple of four.
    #[must_use]
    pub fn read(&self, len: usize) -> Vec<u8> {
        let words = (0..len.min(self.0.len())).step_by(4);
        words
            .flat_map(|at| self.word(at as u32).to_ne_bytes())
            .collect()
    }

    /// `len` bytes from `at` on, both multiples of four; less at the end.
    #[must_use]
    pub fn part(&self, at: u32, len: u32) -> Vec<u8> {
        let end = (at as usize + len as usize).min(self.0.len());
        let words = (at as usize..end).step_by(4);
        words
            .flat_map(|at| self.word(at as u32).to_ne_bytes())
            .collect()
    }

    /// Writes bytes, a multiple of four, from `at` on, as far as they fit.
    pub fn write(&self, at: u32, bytes: &[u8]) {
        for (word, at) in bytes.as_chunks::<4>().0.iter().zip((at..).step_by(4)) {
            self.set_word(at, u32::from_ne_bytes(*word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_counts_what_it_is_given() {
        let mut params = Params::new(64, flags::CQSIZE);
        let ring = match setup(8, &mut params) {
            Ok(ring) => ring,
            Err(Errno::ENOSYS | Errno::EPERM) => return,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(params.sizes(), (8, 64));
        let [head, tail, mask, _, _, _, array, ..] = params.offsets();
        let memory = Memory::map(&ring, OFFSET_RINGS, array as usize + 32).unwrap();
        assert_eq!((memory.word(mask), memory.word(head)), (7, 0));
        memory.set_word(tail, 3);
        // The entries are zero, which is IORING_OP_NOP.
        assert_eq!(enter(&ring, 3, 0, 0), Ok(3));
        assert_eq!(
            (memory.word(head), memory.word(params.offsets()[8])),
            (3, 3)
        );
    }
}
