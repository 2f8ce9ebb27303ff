//! Pipes: two descriptions, one buffer.

use super::{Opening, fifo};
use crate::ResurrectError;
use crate::error::Subject;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, pipe2, read, write};
use persist_mem::manifest::{Manifest, Pipe, PipeBuffer, PipeId};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use sys::{Errno, PAGE_SIZE};

/// Both ends of a pipe.
#[derive(Debug)]
pub(super) struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// Makes every pipe with what was in it.
pub(super) fn make(manifest: &Manifest) -> Result<BTreeMap<PipeId, Ends>, ResurrectError> {
    let one = |pipe: &Pipe| Ok((pipe.id, make_one(pipe)?));
    let named: Vec<PipeId> = manifest.descriptions.iter().filter_map(fifo::of).collect();
    let pipes = manifest
        .pipes
        .iter()
        .filter(|pipe| !named.contains(&pipe.id));
    pipes.map(one).collect()
}

fn failed(pipe: &Pipe, doing: &'static str) -> impl FnOnce(Errno) -> ResurrectError + use<> {
    let what = format!("pipe {}", pipe.id.0);
    let subject = Some(Subject::Pipe(pipe.id));
    move |errno| ResurrectError::Description {
        subject,
        what,
        doing,
        errno,
    }
}

fn make_one(pipe: &Pipe) -> Result<Ends, ResurrectError> {
    let failed = |doing| failed(pipe, doing);
    let (read, write_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("making it"))?;
    fill(pipe, &write_end)?;
    let (uid, gid) = pipe.owner;
    nix::unistd::fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(failed("setting its owner"))?;
    nix::sys::stat::fchmod(&read, Mode::from_bits_truncate(pipe.mode))
        .map_err(failed("setting its mode"))?;
    Ok(Ends {
        read,
        write: write_end,
    })
}

/// Sizes and fills a pipe or FIFO.
pub(super) fn fill(pipe: &Pipe, write_end: &OwnedFd) -> Result<(), ResurrectError> {
    let failed = |doing| failed(pipe, doing);
    let size = fcntl(write_end, FcntlArg::F_GETPIPE_SZ).map_err(failed("asking for its size"))?;
    if size.cast_unsigned() != pipe.capacity {
        let wanted = pipe.capacity.cast_signed();
        fcntl(write_end, FcntlArg::F_SETPIPE_SZ(wanted)).map_err(failed("setting its size"))?;
    }
    let mut rest = pipe.data.as_slice();
    for buffer in &pipe.buffers {
        let (bytes, more) = rest.split_at((buffer.len as usize).min(rest.len()));
        put(buffer, bytes, write_end).map_err(failed("filling it"))?;
        rest = more;
    }
    while !rest.is_empty() {
        let done = write(write_end, rest).map_err(failed("filling it"))?;
        rest = &rest[done..];
    }
    Ok(())
}

/// Appends one buffer. It is made in another pipe, and splice(2) moves it as it is; of a part of one the moved
/// part can no longer grow (fs/splice.c, splice_pipe_to_pipe).
fn put(buffer: &PipeBuffer, bytes: &[u8], to: &OwnedFd) -> sys::Result<()> {
    let (from, own) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let (before, behind) = match (buffer.packet, buffer.grows) {
        (true, _) => {
            fcntl(&own, FcntlArg::F_SETFL(OFlag::O_DIRECT | OFlag::O_NONBLOCK))?;
            (0, 0)
        }
        (false, true) => (buffer.offset as usize, 0),
        // A full page cannot grow anyway.
        (false, false) => (0, usize::from(bytes.len() < PAGE_SIZE)),
    };
    let whole = [&vec![0; before][..], bytes, &vec![0; behind]].concat();
    write_all(&own, &whole)?;
    read(&from, &mut vec![0; before])?;
    let moved = splice(
        &from,
        None,
        to,
        None,
        bytes.len(),
        SpliceFFlags::SPLICE_F_NONBLOCK,
    )?;
    if moved == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EAGAIN)
    }
}

fn write_all(to: &OwnedFd, bytes: &[u8]) -> sys::Result<()> {
    match write(to, bytes)? {
        all if all == bytes.len() => Ok(()),
        _ => Err(Errno::EAGAIN),
    }
}

pub(super) fn open(opening: &Opening<'_, '_>, id: PipeId) -> Result<OwnedFd, ResurrectError> {
    let ends = opening.restore.files.pipes.get(&id);
    let ends = ends
        .ok_or(Errno::ENOENT)
        .map_err(opening.failed("finding its pipe"))?;
    let flags = opening.flags();
    let end = match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => &ends.read,
        _ => &ends.write,
    };
    // The ends that pipe2(2) makes are told by the lack of this flag, which open(2) sets but for a reference.
    let opened = super::O_LARGEFILE | super::O_PATH;
    if opening.description.flags & opened == 0 {
        let copy = sys::fds::duplicate(end, 3);
        return copy.map_err(opening.failed("duplicating it"));
    }
    sys::fds::reopen(end, flags & !OFlag::O_DIRECT).map_err(opening.failed("opening it"))
}
