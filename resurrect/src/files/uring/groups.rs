//! Buffers that requests choose among.
//!
//! A new ring of buffers counts those that were taken from 0. It is brought to where the old one was by receives of
//! single bytes, into memory that is there for that while; what the program has written into the ring is put back.

use super::counts::Laps;
use super::mapped::Mapped;
use super::{at, thread};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{BufferGroup, BufferRing, Ring, Taking};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::uring::{self, ENTER_GETEVENTS, Entry, Memory, op, register};
use sys::{Errno, PAGE_SIZE_U64, Pid};

const DOING: &str = "providing buffers of io_uring";
/// `struct io_uring_buf`: address, length, number; behind the number of the first one is the tail.
const BUFFER: usize = 16;
const TAIL: usize = 14;
/// `IORING_RECV_MULTISHOT`, `IORING_RECVSEND_BUNDLE`, `IOSQE_BUFFER_SELECT`
const MULTISHOT: u16 = 1 << 1;
const BUNDLE: u16 = 1 << 4;
const CHOOSES: u8 = 1 << 5;
/// How often completions are asked for that one request makes.
const ASKED: usize = 64;
const PROT_READ_WRITE: i32 = 3;
const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;

/// Makes the groups of a ring; `ring` has not counted what comes of its requests.
pub(super) fn make(
    restore: &mut Restore<'_>,
    ring: &Ring,
    opened: &OwnedFd,
    memory: &Mapped,
) -> Result<(), ResurrectError> {
    let pidfd = restore.self_pidfd.as_raw_fd();
    if ring.groups.is_empty() {
        return Ok(());
    }
    let way = ring.taking(uring::takes_bundles(), ring.counts);
    let way = way.ok_or_else(|| ResurrectError::own(DOING)(Errno::EOVERFLOW))?;
    for group in &ring.groups {
        let (pid, tracee) = match ring.submitter {
            Some(tid) => thread(restore, tid)?,
            None => (group.pid, &mut restore.task(group.pid)?.first),
        };
        let mut user = Provider::enter(pid, tracee, pidfd, opened, (ring, memory))?;
        if let Some(own) = &group.ring {
            user.ring(group.id, own, opened, way)?;
        }
        user.provide(group)?;
        user.leave()?;
    }
    Ok(())
}

fn kernels(id: u16, own: &BufferRing, opened: &OwnedFd) -> sys::Result<Memory> {
    let offset = uring::OFFSET_BUFFERS + (u64::from(id) << uring::BUFFERS_SHIFT);
    Memory::map(opened, offset, own.entries as usize * BUFFER)
}

/// A thread that provides buffers.
struct Provider<'a> {
    pid: Pid,
    tracee: &'a mut Tracee,
    pidfd: i32,
    /// The ring, under its number.
    fd: u64,
    /// A page.
    page: u64,
    ring: &'a Ring,
    memory: &'a Mapped,
}

impl<'a> Provider<'a> {
    fn enter(
        pid: Pid,
        tracee: &'a mut Tracee,
        pidfd: i32,
        opened: &OwnedFd,
        (ring, memory): (&'a Ring, &'a Mapped),
    ) -> Result<Provider<'a>, ResurrectError> {
        let mut batch = Batch::new();
        let args = [pidfd.into(), opened.as_raw_fd().into(), 0.into()];
        let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
        let args = [
            0.into(),
            PAGE_SIZE_U64.into(),
            PROT_READ_WRITE.into(),
            MAP_PRIVATE_ANONYMOUS.into(),
            (-1_i32).into(),
            0.into(),
        ];
        let page = batch.call(DOING, nr::MMAP, args);
        let output = run(pid, DOING, tracee, &batch)?;
        Ok(Provider {
            pid,
            tracee,
            pidfd,
            fd: output.result(fd).unwrap_or(0),
            page: output.result(page).unwrap_or(0),
            ring,
            memory,
        })
    }

    fn leave(self) -> Result<(), ResurrectError> {
        let mut batch = Batch::new();
        batch.call("closing a copy of its ring", nr::CLOSE, [self.fd.into()]);
        let args = [self.page.into(), PAGE_SIZE_U64.into()];
        batch.call("taking a page away", nr::MUNMAP, args);
        run(self.pid, DOING, self.tracee, &batch).map(drop)
    }

    fn failed(&self) -> impl FnOnce(Errno) -> ResurrectError + use<> {
        ResurrectError::call(self.pid, DOING)
    }

    /// Registers a ring of buffers, and takes as many as were taken.
    fn ring(
        &mut self,
        id: u16,
        own: &BufferRing,
        opened: &OwnedFd,
        way: Taking,
    ) -> Result<(), ResurrectError> {
        // struct io_uring_buf_reg: address, entries, group, flags, reserved
        let address = own.address.unwrap_or(0);
        let last = u64::from(own.entries) | u64::from(id) << 32 | u64::from(own.flags) << 48;
        let wanted = [address, last, 0, 0, 0].map(u64::to_le_bytes).concat();
        let mut batch = Batch::new();
        let wanted = batch.data(&wanted);
        let (fd, what) = (self.fd, register::PBUF_RING);
        let args = [fd.into(), what.into(), wanted.into(), 1.into()];
        batch.call("registering a ring of buffers", nr::IO_URING_REGISTER, args);
        run(self.pid, DOING, self.tracee, &batch)?;
        let places = match own.address {
            Some(address) => Places::Programs(address),
            None => Places::Kernels(kernels(id, own, opened).map_err(self.failed())?),
        };
        let len = own.entries as usize * BUFFER;
        let before = match places {
            Places::Programs(address) => {
                let read = self.tracee.mem().read_vec(address, len);
                read.map_err(self.failed())?
            }
            Places::Kernels(_) => Vec::new(),
        };
        if own.head == 0 {
            return match places {
                Places::Programs(_) => Ok(()),
                Places::Kernels(memory) => {
                    memory.write(0, &own.memory);
                    Ok(())
                }
            };
        }
        let one = [self.page, 1].map(u64::to_le_bytes).concat();
        self.write(&places, 0, &one.repeat(own.entries as usize))?;
        let laps = Laps::of(self.ring).ok_or_else(|| self.failed()(Errno::EINVAL))?;
        let mut taken = 0;
        while taken < own.head {
            let room = laps.room(self.memory.completed());
            let (part, way) = match way {
                Taking::Bundles | Taking::Alone => (own.part(way, self.ring.completions), way),
                // One more completion has no room.
                Taking::Singly if room == 1 => (1, Taking::Alone),
                Taking::Singly => (own.part(way, self.ring.completions).min(room - 1), way),
            };
            let part = (own.head - taken).min(u16::try_from(part).unwrap_or(u16::MAX));
            taken += part;
            let number = [0, 0, taken.to_le_bytes()[0], taken.to_le_bytes()[1]];
            self.write(&places, TAIL - 2, &number)?;
            self.receive(id, part, way)?;
            laps.take(self.memory);
        }
        match places {
            Places::Programs(_) => self.write(&places, 0, &before),
            Places::Kernels(memory) => {
                memory.write(0, &own.memory);
                Ok(())
            }
        }
    }

    fn write(&self, places: &Places, at: usize, bytes: &[u8]) -> Result<(), ResurrectError> {
        match places {
            Places::Programs(address) => {
                let written = self.tracee.mem().write(address + at as u64, bytes);
                written.map_err(self.failed())
            }
            Places::Kernels(memory) => {
                memory.write(u32::try_from(at).unwrap_or(u32::MAX), bytes);
                Ok(())
            }
        }
    }

    /// Receives so many bytes into a buffer each.
    fn receive(&mut self, group: u16, count: u16, way: Taking) -> Result<(), ResurrectError> {
        let sent = || -> std::io::Result<UnixStream> {
            let (from, mut to) = UnixStream::pair()?;
            to.write_all(&vec![0; count.into()])?;
            to.shutdown(Shutdown::Both)?;
            Ok(from)
        };
        let from = sent().map_err(|_| self.failed()(Errno::EMFILE))?;
        let args = [self.pidfd.into(), from.as_raw_fd().into(), 0.into()];
        let mut batch = Batch::new();
        let fd = batch.call("taking a socket", nr::PIDFD_GETFD, args);
        let output = run(self.pid, DOING, self.tracee, &batch)?;
        let fd = output.result(fd).unwrap_or(0);
        let count = u32::from(count);
        let (priority, len, completions) = match way {
            Taking::Alone => (0, 1, 1),
            Taking::Bundles => (BUNDLE, count, 1),
            Taking::Singly => (MULTISHOT, 0, count + 1),
        };
        let entry = Entry {
            opcode: op::RECV,
            flags: CHOOSES,
            priority,
            len,
            fd: fd as i32,
            buffer: group,
            ..Entry::default()
        };
        let submitted = self.submit(&entry, completions);
        let mut batch = Batch::new();
        batch.call("closing a socket", nr::CLOSE, [fd.into()]);
        run(self.pid, DOING, self.tracee, &batch)?;
        submitted
    }

    /// Submits one request, which must make so many completions.
    fn submit(&mut self, entry: &Entry, completions: u32) -> Result<(), ResurrectError> {
        let before = self.memory.completed();
        self.memory.add(&[*entry]);
        let mut batch = Batch::new();
        let fd = self.fd;
        batch.call(DOING, nr::IO_URING_ENTER, [fd.into(), 1.into()]);
        run(self.pid, DOING, self.tracee, &batch)?;
        for _ in 0..ASKED {
            if self.memory.completed().wrapping_sub(before) >= completions {
                break;
            }
            let mut batch = Batch::new();
            let args = [fd.into(), 0.into(), 0.into(), ENTER_GETEVENTS.into()];
            batch.call(DOING, nr::IO_URING_ENTER, args);
            run(self.pid, DOING, self.tracee, &batch)?;
        }
        match self.memory.completed().wrapping_sub(before) == completions {
            true => Ok(()),
            false => Err(self.failed()(Errno::EAGAIN)),
        }
    }

    fn last_result(&self) -> i32 {
        let number = self.memory.completed().wrapping_sub(1) & (self.ring.completions - 1);
        let size = 16 << u32::from(self.ring.flags & uring::flags::CQE32 != 0);
        let place = self.ring.offsets[at::CQES] + number * size + 8;
        self.memory.rings.word(place).cast_signed()
    }

    /// Provides the buffers of a list.
    fn provide(&mut self, group: &BufferGroup) -> Result<(), ResurrectError> {
        let laps = Laps::of(self.ring).ok_or_else(|| self.failed()(Errno::EINVAL))?;
        for (address, len, number, count) in group.runs() {
            let entry = Entry {
                opcode: op::PROVIDE_BUFFERS,
                fd: count.into(),
                address,
                len,
                offset: number.into(),
                buffer: group.id,
                ..Entry::default()
            };
            self.submit(&entry, 1)?;
            if self.last_result() < 0 {
                return Err(self.failed()(Errno::ENOBUFS));
            }
            laps.take(self.memory);
        }
        Ok(())
    }
}

/// Where a ring of buffers is.
enum Places {
    Programs(u64),
    Kernels(Memory),
}
