//! Buffers that requests choose among.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

use super::ring::{CHOOSES, Entry, PROVIDE_BUFFERS, READ, RECV, Ring};
use crate::kit::{Setting, Watch, files, not_here, same};

/// `IORING_REGISTER_PBUF_RING`
const PBUF_RING: u64 = 22;
const UNREGISTER_PBUF_RING: u64 = 23;
/// `IORING_RECV_MULTISHOT`
const MULTISHOT: u16 = 1 << 1;
/// `IORING_CQE_F_BUFFER`, `IORING_CQE_F_MORE`
const BUFFER: u32 = 1;
const MORE: u32 = 1 << 1;
/// Where the number of the buffer is in the flags of a completion.
const NUMBER: u32 = 16;
const LEN: usize = 32;
const COUNT: u16 = 8;
const GROUP: u16 = 3;

/// A ring of buffers and its memory.
#[derive(Clone, Copy)]
struct Buffers {
    places: *mut u8,
    memory: *mut u8,
}

// SAFETY: addresses of memory that stays.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Registers it; in memory of the kernel's when `offset` is there.
    fn new(ring: Ring, group: u16, is_kernels: bool) -> Result<Buffers> {
        let memory = Box::leak(vec![0_u8; LEN * usize::from(COUNT)].into_boxed_slice());
        let own = match is_kernels {
            true => 0,
            false => super::ring::memory(4096)? as u64,
        };
        let last = u64::from(COUNT) | u64::from(group) << 32 | u64::from(is_kernels) << 48;
        let wanted = [own, last, 0, 0, 0];
        if ring.register(PBUF_RING, wanted.as_ptr() as u64, 1).is_err() {
            return not_here("no such rings of buffers");
        }
        let places = match is_kernels {
            true => ring.map(4096, 0x8000_0000 | i64::from(group) << 16)?,
            false => own as *mut u8,
        };
        let found = Buffers {
            places,
            memory: memory.as_mut_ptr(),
        };
        (0..COUNT).for_each(|number| found.give(number));
        Ok(found)
    }

    fn tail(&self) -> &AtomicU16 {
        // SAFETY: in the ring, and it stays.
        unsafe { AtomicU16::from_ptr(self.places.add(14).cast()) }
    }

    /// Gives a buffer.
    fn give(&self, number: u16) {
        let tail = self.tail().load(Ordering::Relaxed);
        let place = usize::from(tail % COUNT) * 16;
        let address = self.memory as u64 + u64::from(number) * LEN as u64;
        // SAFETY: in the ring; the kernel does not look there before the tail tells of it.
        unsafe {
            let place = self.places.add(place);
            place.cast::<u64>().write_volatile(address);
            place.add(8).cast::<u32>().write_volatile(LEN as u32);
            place.add(12).cast::<u16>().write_volatile(number);
        }
        self.tail().store(tail.wrapping_add(1), Ordering::Release);
    }

    /// Takes a completion that has filled one, which is given again.
    fn filled(&self, ring: Ring, data: u64, flags: u32, bytes: &[u8]) -> Result<u16> {
        ring.wait_for(1)?;
        let Some((found, result, told)) = ring.take_with_flags() else {
            bail!("no completion");
        };
        let number = (told >> NUMBER) as u16;
        let expected = (data, bytes.len() as i32, flags | BUFFER);
        same("completion", &expected, &(found, result, told & 0xffff))?;
        let from = usize::from(number) * LEN;
        // SAFETY: in the memory of the buffers, which nobody writes to now.
        let found = unsafe { std::slice::from_raw_parts(self.memory.add(from), bytes.len()) };
        same("what is in the buffer", bytes, found)?;
        self.give(number);
        Ok(number)
    }
}

fn receive(ring: Ring, fd: i32, group: u16, priority: u16, data: u64) -> Result<()> {
    ring.add(Entry {
        opcode: RECV,
        flags: CHOOSES,
        priority,
        fd,
        buffer: group,
        data,
        ..Entry::default()
    });
    ring.submit(1)
}

/// Receives that wait, one of them going on, and choose among the buffers of a ring.
fn ring_of(flags: u32, is_kernels: bool) -> Result<Watch> {
    let ring = Ring::new(8, 16, flags)?;
    let buffers = Buffers::new(ring, GROUP, is_kernels)?;
    let (mine, theirs) = UnixStream::pair()?;
    let (mine, theirs) = (mine.into_raw_fd(), theirs.into_raw_fd());
    let (other, others) = UnixStream::pair()?;
    let (other, others) = (other.into_raw_fd(), others.into_raw_fd());
    receive(ring, mine, GROUP, MULTISHOT, 1)?;
    let mut next = 0_u16;
    let mut round = move || {
        // Linux before 6.10 needs more requests than those to take buffers again.
        for data in 0..4 {
            ring.nop(data);
            ring.submit(1)?;
            same("a request", &vec![(data, 0)], &ring.wait(1)?)?;
        }
        for text in [&b"one"[..], b"another", b"the third one"] {
            files::write(theirs, text)?;
            let number = buffers.filled(ring, 1, MORE, text)?;
            same("buffer", &(next % COUNT), &number)?;
            next = next.wrapping_add(1);
        }
        receive(ring, other, GROUP, 0, 2)?;
        files::write(others, b"once")?;
        let number = buffers.filled(ring, 2, 0, b"once")?;
        same("buffer", &(next % COUNT), &number)?;
        next = next.wrapping_add(1);
        ring.expect_none()
    };
    round()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        (0..40).try_for_each(|_| round())
    })
    .spoiled_by(move || {
        files::write(theirs, b"x")?;
        ring.wait_for(1)
    }))
}

/// A ring of buffers in memory of the program's.
pub(crate) fn own(_: &Setting) -> Result<Watch> {
    ring_of(0, false)
}

/// The same of a ring that asks for its completions.
pub(crate) fn deferred(_: &Setting) -> Result<Watch> {
    ring_of(super::DEFERRED, false)
}

/// A ring of buffers in memory of the kernel's.
pub(crate) fn mapped(_: &Setting) -> Result<Watch> {
    ring_of(0, true)
}

/// A ring of buffers that is mapped and not registered any more.
pub(crate) fn gone(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let buffers = Buffers::new(ring, GROUP, true)?;
    let gone = [0, u64::from(GROUP) << 32, 0, 0, 0];
    ring.register(UNREGISTER_PBUF_RING, gone.as_ptr() as u64, 1)?;
    Ok(Watch::new(move || {
        let given = buffers.tail().load(Ordering::Acquire);
        same("buffers given", &COUNT, &given)
    }))
}

/// Buffers that were provided by requests, some of which were taken.
pub(crate) fn list(_: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let memory = Box::leak(vec![0_u8; LEN * usize::from(COUNT)].into_boxed_slice());
    let first = memory.as_mut_ptr() as u64;
    let provide = move |number: u16, count: u16| {
        ring.add(Entry {
            opcode: PROVIDE_BUFFERS,
            fd: count.into(),
            address: first + u64::from(number) * LEN as u64,
            len: LEN as u32,
            offset: number.into(),
            buffer: GROUP,
            data: 9,
            ..Entry::default()
        });
        ring.submit(1)?;
        let found = ring.wait(1)?;
        same("provided", &9, &found[0].0)?;
        anyhow::ensure!(found[0].1 >= 0, "provided: {}", found[0].1);
        anyhow::Ok(())
    };
    provide(0, COUNT)?;
    let (from, to) = nix::unistd::pipe()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let ask = move || {
        ring.add(Entry {
            opcode: READ,
            flags: CHOOSES,
            fd: from,
            len: LEN as u32,
            buffer: GROUP,
            data: 1,
            ..Entry::default()
        });
        ring.submit(1)
    };
    ask()?;
    // SAFETY: the memory stays; the kernel writes into it before its completion is taken.
    let text = move |number: u16| unsafe {
        let at = (first + u64::from(number) * LEN as u64) as *const [u8; 4];
        at.read_volatile()
    };
    let mut taken = vec![];
    Ok(Watch::new(move || {
        for _ in 0..3 {
            files::write(to, b"text")?;
            ring.wait_for(1)?;
            let Some((1, 4, flags)) = ring.take_with_flags() else {
                bail!("another completion");
            };
            let number = (flags >> NUMBER) as u16;
            same("text", b"text", &text(number))?;
            taken.push(number);
            ask()?;
        }
        // The first ones come back, and stand behind the others.
        let order: Vec<u16> = (0..taken.len() as u16).map(|n| n % COUNT).collect();
        same("order", &order, &taken)?;
        let last = taken.len() as u16;
        (last - 3..last).try_for_each(|number| provide(number % COUNT, 1))
    })
    .spoiled_by(move || {
        files::write(to, b"x")?;
        ring.wait_for(1)?;
        ring.take();
        Ok(())
    }))
}
