//! Pipes: two descriptions, one buffer.

use super::Opening;
use crate::ResurrectError;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, pipe2, write};
use persist_mem::manifest::{Manifest, Pipe, PipeId};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use sys::Errno;

/// Both ends of a pipe.
#[derive(Debug)]
pub(super) struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// Makes every pipe with what was in it.
pub(super) fn make(manifest: &Manifest) -> Result<BTreeMap<PipeId, Ends>, ResurrectError> {
    let one = |pipe: &Pipe| Ok((pipe.id, make_one(pipe)?));
    manifest.pipes.iter().map(one).collect()
}

fn make_one(pipe: &Pipe) -> Result<Ends, ResurrectError> {
    let failed = |doing: &'static str| {
        let what = format!("pipe {}", pipe.id.0);
        move |errno| ResurrectError::Description { what, doing, errno }
    };
    let (read, write_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("making it"))?;
    let size = fcntl(&read, FcntlArg::F_GETPIPE_SZ).map_err(failed("asking for its size"))?;
    if size.cast_unsigned() != pipe.capacity {
        let wanted = pipe.capacity.cast_signed();
        fcntl(&read, FcntlArg::F_SETPIPE_SZ(wanted)).map_err(failed("setting its size"))?;
    }
    let mut rest = pipe.data.as_slice();
    while !rest.is_empty() {
        let done = write(&write_end, rest).map_err(failed("filling it"))?;
        rest = &rest[done..];
    }
    let (uid, gid) = pipe.owner;
    nix::unistd::fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(failed("setting its owner"))?;
    Ok(Ends {
        read,
        write: write_end,
    })
}

pub(super) fn open(opening: &Opening<'_, '_>, id: PipeId) -> Result<OwnedFd, ResurrectError> {
    let ends = opening.restore.files.pipes.get(&id);
    let ends = ends
        .ok_or(Errno::ENOENT)
        .map_err(opening.failed("finding its pipe"))?;
    let flags = OFlag::from_bits_retain(opening.description.flags.cast_signed());
    let end = match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => &ends.read,
        _ => &ends.write,
    };
    // A description of its own, as each of the recorded ones is.
    sys::fds::reopen(end, flags).map_err(opening.failed("opening it"))
}
