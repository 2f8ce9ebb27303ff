//! What is registered with a ring.
//!
//! It is registered while anybody may do so: before the ring is enabled, where one thread alone may submit. An eventfd
//! is told nothing while the ring is brought to where it was (`IORING_CQ_EVENTFD_DISABLED`).

use super::at;
use super::mapped::Mapped;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{Description, Ring};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::Batch;
use sys::uring::{self, register};
use sys::{Errno, Pid};

const EVENTFD_DISABLED: u32 = 1;

/// Registers files and an eventfd, and buffers.
pub(super) fn set(
    restore: &mut Restore<'_>,
    description: &Description,
    ring: &Ring,
    opened: &OwnedFd,
    memory: &Mapped,
) -> Result<(), ResurrectError> {
    let own = |id| {
        let own = restore.files.opened(id);
        own.ok_or_else(|| super::super::failed(description, "registering its files")(Errno::EBADF))
    };
    if !ring.files.is_empty() {
        let files = ring.files.iter().map(|file| file.map_or(Ok(-1), own));
        let files: Vec<i32> = files.collect::<Result<_, _>>()?;
        let done = match ring.file_tags.is_empty() {
            true => uring::register_numbers(opened, register::FILES, &files),
            false => uring::register_tagged(opened, &files, &ring.file_tags),
        };
        done.map_err(super::super::failed(description, "registering its files"))?;
    }
    if let Some((id, later)) = ring.eventfd {
        memory
            .rings
            .set_word(ring.offsets[at::CQ_FLAGS], EVENTFD_DISABLED);
        let what = match later {
            true => register::EVENTFD_ASYNC,
            false => register::EVENTFD,
        };
        uring::register_numbers(opened, what, &[own(id)?])
            .map_err(super::super::failed(description, "registering its eventfd"))?;
    }
    match ring.buffers_of {
        Some(pid) if !ring.buffers.is_empty() => buffers(restore, pid, ring, opened),
        _ => Ok(()),
    }
}

/// Registers buffers from within the process whose memory they are in.
fn buffers(
    restore: &mut Restore<'_>,
    pid: Pid,
    ring: &Ring,
    opened: &OwnedFd,
) -> Result<(), ResurrectError> {
    let doing = "registering buffers with its ring of io_uring";
    let pidfd = restore.self_pidfd.as_raw_fd();
    let first = &mut restore.task(pid)?.first;
    let all = ring.buffers.iter().map(|buffer| buffer.unwrap_or((0, 0)));
    let bytes: Vec<u8> = all
        .flat_map(|(at, len)| [at, len])
        .flat_map(u64::to_le_bytes)
        .collect();
    let mut batch = Batch::new();
    let vectors = batch.data(&bytes);
    let args = [pidfd.into(), opened.as_raw_fd().into(), 0.into()];
    let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
    let count = ring.buffers.len() as u64;
    let args = match ring.buffer_tags.is_empty() {
        true => [
            fd.into(),
            register::BUFFERS.into(),
            vectors.into(),
            count.into(),
        ],
        false => {
            let words = |words: &[u64]| -> Vec<u8> {
                words.iter().flat_map(|word| word.to_le_bytes()).collect()
            };
            let tags = batch.data(&words(&ring.buffer_tags));
            // struct io_uring_rsrc_register: how many, flags, reserved, where they are, where their tags are.
            let all = batch.data(&words(&[count, 0, 0, 0]));
            batch.pointer(all, 16, vectors);
            batch.pointer(all, 24, tags);
            let len = 32_u64;
            [fd.into(), register::BUFFERS2.into(), all.into(), len.into()]
        }
    };
    batch.call(doing, nr::IO_URING_REGISTER, args);
    batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
    run(pid, doing, first, &batch).map(drop)
}
