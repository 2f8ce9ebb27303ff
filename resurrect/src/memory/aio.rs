//! Contexts of asynchronous I/O: made anew, and moved to where they were, which is what they are known by.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{AioPoll, AioRing};
use sys::batch::Batch;
use sys::{Errno, Pid};

const AT_FDCWD: i32 = -100;
const MREMAP_MAYMOVE_FIXED: i32 = 1 | 2;
const IOCB: usize = 64;
const EVENT: usize = 32;
const HEADER: u64 = 32;
/// Requests that one batch makes.
const AT_ONCE: usize = 512;

/// Makes all of them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        for ring in &live.mm.aio {
            if let Some(bytes) = &ring.inherited {
                inherit(restore, pid, ring, bytes)?;
                continue;
            }
            make(restore, pid, ring)?;
            if !ring.unread.is_empty() {
                fill(restore, pid, ring)?;
            }
            if !ring.polls.is_empty() {
                wait_again(restore, pid, ring)?;
            }
        }
    }
    Ok(())
}

fn make(restore: &mut Restore<'_>, pid: Pid, ring: &AioRing) -> Result<(), ResurrectError> {
    let doing = "making a context of asynchronous I/O";
    let first = &mut restore.task(pid)?.first;
    let mut batch = Batch::new();
    let place = batch.space(8);
    // The kernel doubles the number and adds two; what it makes has room for as many as fit its pages.
    let requests = (ring.size.saturating_sub(2) / 2).max(1);
    batch.call(doing, nr::IO_SETUP, [requests.into(), place.into()]);
    let output = run(pid, doing, first, &batch)?;
    let context = output.u64(place, 0);
    let len = ring.end - ring.start;
    let mut batch = Batch::new();
    let flags = MREMAP_MAYMOVE_FIXED.into();
    let args = [
        context.into(),
        len.into(),
        len.into(),
        flags,
        ring.start.into(),
    ];
    batch.call("moving its ring", nr::MREMAP, args);
    run(pid, doing, first, &batch).map(drop)
}

/// The ring of a context that a child does not have: memory, which no call takes for a ring. What the parent
/// does to its own is not seen there any more.
fn inherit(
    restore: &mut Restore<'_>,
    pid: Pid,
    ring: &AioRing,
    bytes: &[u8],
) -> Result<(), ResurrectError> {
    const PROT_READ_WRITE: i32 = 3;
    const MAP_SHARED_ANONYMOUS_FIXED_NOREPLACE: i32 = 0x1 | 0x20 | 0x10_0000;
    let doing = "mapping an inherited ring of asynchronous I/O";
    let first = &mut restore.task(pid)?.first;
    let mut batch = Batch::new();
    let args = [
        ring.start.into(),
        (ring.end - ring.start).into(),
        PROT_READ_WRITE.into(),
        MAP_SHARED_ANONYMOUS_FIXED_NOREPLACE.into(),
        (-1_i32).into(),
        0.into(),
    ];
    batch.call(doing, nr::MMAP, args);
    run(pid, doing, first, &batch)?;
    let written = first.mem().write(ring.start, bytes);
    written.map_err(ResurrectError::call(pid, doing))
}

/// As many requests as there were events are made, so that the kernel counts them; then their events are
/// written over.
fn fill(restore: &mut Restore<'_>, pid: Pid, ring: &AioRing) -> Result<(), ResurrectError> {
    let doing = "filling a ring of asynchronous I/O";
    let count = ring.unread.len() / EVENT;
    let first = &mut restore.task(pid)?.first;
    let mut batch = Batch::new();
    let path = batch.string(b"/dev/null");
    let args = [AT_FDCWD.into(), path.into(), 0.into()];
    let file = batch.call("opening /dev/null", nr::OPENAT, args);
    let output = run(pid, doing, first, &batch)?;
    let file = output.result(file).unwrap_or(0) as u32;
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let mut batch = Batch::new();
        // IOCB_CMD_PREAD of nothing.
        let mut request = [0; IOCB];
        request[20..24].copy_from_slice(&file.to_le_bytes());
        let request = batch.data(&request);
        let list = batch.space(now * 8);
        for index in 0..now {
            batch.pointer(list, index * 8, request);
        }
        let args = [ring.start.into(), now.into(), list.into()];
        let made = batch.call("making a request", nr::IO_SUBMIT, args);
        let output = run(pid, doing, first, &batch)?;
        if output.result(made) != Ok(now as u64) {
            return Err(ResurrectError::call(pid, doing)(Errno::EAGAIN));
        }
        left -= now;
    }
    let mut batch = Batch::new();
    batch.call("closing /dev/null", nr::CLOSE, [file.into()]);
    run(pid, doing, first, &batch)?;
    first
        .mem()
        .write(ring.start + HEADER, &ring.unread)
        .map_err(ResurrectError::call(pid, doing))
}

/// Makes the requests again that wait for descriptors. A request is known by its address, so each is written
/// there while it is made; what the program has there by now comes back.
fn wait_again(restore: &mut Restore<'_>, pid: Pid, ring: &AioRing) -> Result<(), ResurrectError> {
    let doing = "making requests of asynchronous I/O";
    let failed = || ResurrectError::call(pid, doing);
    let first = &mut restore.task(pid)?.first;
    for polls in ring.polls.chunks(AT_ONCE) {
        let mut there = Vec::new();
        for poll in polls {
            let old = first.mem().read_vec(poll.request, IOCB).map_err(failed())?;
            there.push((poll.request, old));
        }
        let mut batch = Batch::new();
        let addresses: Vec<u8> = polls
            .iter()
            .flat_map(|poll| poll.request.to_le_bytes())
            .collect();
        let list = batch.data(&addresses);
        let args = [ring.start.into(), polls.len().into(), list.into()];
        let made = batch.call(doing, nr::IO_SUBMIT, args);
        for poll in polls {
            first
                .mem()
                .write(poll.request, &request(poll))
                .map_err(failed())?;
        }
        let output = run(pid, doing, first, &batch);
        // What lies over another was written after it.
        for (at, old) in there.iter().rev() {
            first.mem().write(*at, old).map_err(failed())?;
        }
        if output?.result(made) != Ok(polls.len() as u64) {
            return Err(failed()(Errno::EAGAIN));
        }
    }
    Ok(())
}

/// `struct iocb` (include/uapi/linux/aio_abi.h).
fn request(poll: &AioPoll) -> [u8; IOCB] {
    const CMD_POLL: u16 = 5;
    const FLAG_RESFD: u32 = 1;
    let mut bytes = [0; IOCB];
    bytes[..8].copy_from_slice(&poll.data.to_le_bytes());
    bytes[16..18].copy_from_slice(&CMD_POLL.to_le_bytes());
    bytes[20..24].copy_from_slice(&poll.fd.to_le_bytes());
    bytes[24..26].copy_from_slice(&poll.events.to_le_bytes());
    if let Some(eventfd) = poll.eventfd {
        bytes[56..60].copy_from_slice(&FLAG_RESFD.to_le_bytes());
        bytes[60..].copy_from_slice(&eventfd.to_le_bytes());
    }
    bytes
}
