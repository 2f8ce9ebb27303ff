//! What rings are set to, and what is registered with tags.

use std::os::fd::IntoRawFd;

use anyhow::{Result, bail};

use super::ring::{ASYNC, Entry, NOP, OPENAT, READ, Ring, memory};
use crate::kit::{Setting, Watch, args, files, not_here, raw, same};

const R_DISABLED: u32 = 1 << 6;
/// `IORING_UNREGISTER_BUFFERS`, `IORING_UNREGISTER_FILES`, `IORING_REGISTER_FILES_UPDATE`, `IORING_REGISTER_PROBE`
const NO_BUFFERS: u64 = 1;
const NO_FILES: u64 = 3;
const FILES_UPDATE: u64 = 6;
const PROBE: u64 = 8;
const RESTRICTIONS: u64 = 11;
const ENABLE: u64 = 12;
const FILES2: u64 = 13;
const BUFFERS2: u64 = 15;
const WORKERS: u64 = 19;
const RANGE: u64 = 25;
const CLOCK: u64 = 29;

/// How many workers there may be, which places files are put into, and the clock of waits.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let [ring, other] = [Ring::new(8, 16, 0)?, Ring::new(8, 16, 0)?];
    let places = [-1_i32; 8];
    ring.register(2, places.as_ptr() as u64, 8)?;
    let range = [5_u64 | 2 << 32, 0];
    ring.register(RANGE, range.as_ptr() as u64, 0)?;
    let mut workers = [3_u32, 5];
    ring.register(WORKERS, workers.as_mut_ptr() as u64, 2)?;
    // Linux has it since 6.12.
    let clock = [libc::CLOCK_BOOTTIME as u64, 0];
    let _ = other.register(CLOCK, clock.as_ptr() as u64, 0);
    let spoiled = move || {
        let mut workers = [2_u32, 5];
        ring.register(WORKERS, workers.as_mut_ptr() as u64, 2)
    };
    Ok(Watch::new(move || {
        let mut workers = [0_u32; 2];
        ring.register(WORKERS, workers.as_mut_ptr() as u64, 2)?;
        same("workers", &[3, 5], &workers)?;
        let place = opened(ring)?;
        same(
            "a place of those for files",
            &true,
            &(5..7).contains(&place),
        )?;
        let none = [-1_i32];
        // struct io_uring_rsrc_update: offset, reserved, data.
        let update = [place.cast_unsigned().into(), none.as_ptr() as u64];
        ring.register(FILES_UPDATE, update.as_ptr() as u64, 1)?;
        other.nop(1);
        same("a wait", &1, &other.enter(1, 1))?;
        same("its completion", &vec![(1, 0)], &other.take_all())
    })
    .spoiled_by(spoiled))
}

/// Opens a file at a place that the kernel chooses.
fn opened(ring: Ring) -> Result<i32> {
    ring.add(Entry {
        opcode: OPENAT,
        fd: libc::AT_FDCWD,
        address: c"/dev/null".as_ptr() as u64,
        file_index: u32::MAX,
        data: 1,
        ..Entry::default()
    });
    ring.submit(1)?;
    match ring.wait(1)?[..] {
        [(1, place)] if place >= 0 => Ok(place),
        ref other => bail!("opened: {other:?}"),
    }
}

/// Files and buffers whose end is told by tags.
pub(crate) fn tagged(_: &Setting) -> Result<Watch> {
    const LEN: usize = 4096;
    const FILE: u64 = 0x77;
    const BUFFER: u64 = 0x88;
    let ring = Ring::new(8, 16, 0)?;
    let (from, _to) = pipe()?;
    let room = memory(LEN)? as u64;
    let register = move || {
        let (numbers, tags) = ([-1_i32, from], [0_u64, FILE]);
        let all = [2, 0, numbers.as_ptr() as u64, tags.as_ptr() as u64];
        ring.register(FILES2, all.as_ptr() as u64, 32)?;
        let (buffers, tags) = ([room, LEN as u64], [BUFFER]);
        let all = [1, 0, buffers.as_ptr() as u64, tags.as_ptr() as u64];
        ring.register(BUFFERS2, all.as_ptr() as u64, 32)
    };
    register()?;
    // Linux before 6.13 does not tell when all are taken away at once.
    ring.register(NO_FILES, 0, 0)?;
    ring.register(NO_BUFFERS, 0, 0)?;
    if ring.wait(2).is_err() {
        return not_here("no tags are told");
    }
    register()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        ring.register(NO_FILES, 0, 0)?;
        same("the end of a file", &vec![(FILE, 0)], &ring.wait(1)?)?;
        ring.register(NO_BUFFERS, 0, 0)?;
        same("the end of a buffer", &vec![(BUFFER, 0)], &ring.wait(1)?)?;
        register()
    })
    .spoiled_by(move || ring.register(NO_FILES, 0, 0)))
}

fn pipe() -> Result<(i32, i32)> {
    let (from, to) = nix::unistd::pipe()?;
    Ok((from.into_raw_fd(), to.into_raw_fd()))
}

/// A ring that allows for reads alone, in one of which it is; and one that is not enabled yet.
pub(crate) fn restricted(_: &Setting) -> Result<Watch> {
    let [ring, waits] = [R_DISABLED; 2].map(|flags| Ring::new(4, 8, flags));
    let (ring, waits) = (ring?, waits?);
    // struct io_uring_restriction: what kind, what of it; reads, and workers.
    let only = [1 | u64::from(READ) << 16, 0, WORKERS << 16, 0];
    for ring in [ring, waits] {
        ring.register(RESTRICTIONS, only.as_ptr() as u64, 2)?;
    }
    ring.register(ENABLE, 0, 0)?;
    let (from, to) = pipe()?;
    let room = Box::leak(Box::new([0_u8; 8])).as_mut_ptr() as u64;
    let read = move || {
        ring.add(Entry {
            opcode: READ,
            fd: from,
            address: room,
            len: 4,
            data: 1,
            ..Entry::default()
        });
        ring.submit(1)
    };
    read()?;
    let mut count = 1;
    Ok(Watch::new(move || {
        same("counts", &(count, count - 1), &ring.counts())?;
        for (opcode, flags, data) in [(NOP, 0, 5), (READ, ASYNC, 6)] {
            ring.add(Entry {
                opcode,
                flags,
                data,
                ..Entry::default()
            });
            same("taken", &1, &ring.enter(1, 0))?;
            let forbidden = vec![(data, -libc::EACCES)];
            same("what is not allowed", &forbidden, &ring.take_all())?;
        }
        let probe = [0_u64; 258];
        let asked = ring.register(PROBE, probe.as_ptr() as u64, 256);
        same("a look at it", &true, &asked.is_err())?;
        let mut workers = [0_u32; 2];
        ring.register(WORKERS, workers.as_mut_ptr() as u64, 2)?;
        files::write(to, b"text")?;
        same("read", &vec![(1, 4)], &ring.wait(1)?)?;
        let args = args([waits.fd as u64, 0]);
        let early = raw(libc::SYS_io_uring_enter, args);
        same("not enabled", &-i64::from(libc::EBADFD), &early)?;
        count += 3;
        read()
    })
    .spoiled_by(move || {
        files::write(to, b"text")?;
        ring.wait(1).map(drop)
    }))
}

/// A ring for devices that are polled.
pub(crate) fn polls_devices(_: &Setting) -> Result<Watch> {
    /// `IORING_SETUP_IOPOLL`
    const IOPOLL: u32 = 1;
    let ring = Ring::new(4, 8, IOPOLL)?;
    let mut count = 0;
    let mut fill = move || {
        for data in 0..7 {
            ring.nop(data);
            same("taken", &1, &ring.enter(1, 0))?;
            if data < 5 {
                same("a completion", &Some((data, 0)), &ring.take())?;
            }
        }
        count += 7;
        anyhow::Ok(count)
    };
    let mut known = fill()?;
    // Who waits for a time does so elsewhere.
    let (from, _to) = pipe()?;
    Ok(Watch::new(move || {
        same("counts", &(known, known), &ring.counts())?;
        same("unread", &vec![(5, 0), (6, 0)], &ring.take_all())?;
        ring.add(Entry {
            opcode: READ,
            fd: from,
            data: 9,
            ..Entry::default()
        });
        ring.enter(1, 0);
        match ring.take_all()[..] {
            [(9, error)] if error == -libc::EOPNOTSUPP || error == -libc::EINVAL => {}
            ref other => bail!("a read of what is not polled: {other:?}"),
        }
        fill()?;
        known = ring.counts().0;
        Ok(())
    })
    .spoiled_by(move || {
        ring.take();
        Ok(())
    }))
}
