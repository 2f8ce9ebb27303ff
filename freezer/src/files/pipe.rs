//! Pipes: two descriptions, one buffer.

use super::{Open, next_pipe};
use crate::FreezerError;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::sys::stat::fstat;
use persist_mem::manifest::{Pipe, PipeId};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use sys::Errno;

const O_DIRECT: u64 = 0o40_000;

pub(super) fn capture(
    open: &Open<'_>,
    pipes: &mut Vec<(Pipe, u64)>,
) -> Result<PipeId, FreezerError> {
    if open.info.number("flags", 8).unwrap_or(0) & O_DIRECT != 0 {
        return Err(open.refuse("pipes in packet mode are not carried yet"));
    }
    let found = fstat(open.copy).map_err(open.call("fstat"))?;
    if let Some((pipe, _)) = pipes.iter().find(|(_, inode)| *inode == found.st_ino) {
        return Ok(pipe.id);
    }
    let size =
        fcntl(open.copy, FcntlArg::F_GETPIPE_SZ).map_err(open.call("asking for its size"))?;
    let id = next_pipe(pipes);
    let data = contents(open, size)?;
    let pipe = Pipe {
        id,
        capacity: size.cast_unsigned(),
        data,
        owner: (found.st_uid, found.st_gid),
    };
    pipes.push((pipe, found.st_ino));
    Ok(id)
}

/// What is in the pipe, without taking it out: tee(2) doubles it into a pipe of ours.
fn contents(open: &Open<'_>, size: i32) -> Result<Vec<u8>, FreezerError> {
    // Through /proc the write end gives a read end as well.
    let path = format!("/proc/{}/fd/{}", open.pid, open.fd);
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|cause| FreezerError::Proc {
            pid: open.pid,
            what: format!("fd/{}", open.fd),
            cause,
        })?;
    let (read, write) =
        nix::unistd::pipe2(OFlag::O_NONBLOCK).map_err(open.call("making a pipe"))?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(size)).map_err(open.call("sizing a pipe"))?;
    let want = usize::try_from(size).unwrap_or(0);
    let got = match tee(&source, &write, want, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(n) => n,
        Err(Errno::EAGAIN) => 0,
        Err(e) => return Err(open.call("reading what is in it")(e)),
    };
    let mut data = vec![0; got];
    std::fs::File::from(read)
        .read_exact(&mut data)
        .map_err(|cause| FreezerError::Proc {
            pid: open.pid,
            what: format!("the pipe of fd {}", open.fd),
            cause,
        })?;
    Ok(data)
}
