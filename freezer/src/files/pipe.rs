//! Pipes: two descriptions, one buffer.

use super::{Open, next_pipe};
use crate::{FreezerError, Frozen, Refusal, proc};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::sys::stat::fstat;
use persist_mem::manifest::{Pipe, PipeId};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use sys::{Errno, Pid};

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

/// Refuses pipes that a process outside of the tree holds as well: its end would be cut off.
/// `ours` is this process, when it ends with the kernel. Asked before any descriptor is
/// copied: after that this process holds them too.
pub(crate) fn refuse_outside(frozen: &Frozen, ours: Option<Pid>) -> Result<(), FreezerError> {
    let inside: Vec<Pid> = frozen.pids().chain(ours).collect();
    let found = shared_outside(&inside, &held(&inside));
    if found.is_empty() {
        Ok(())
    } else {
        Err(FreezerError::Refused(found))
    }
}

/// The pipes that processes of a tree hold, by inode.
pub(crate) fn held(pids: &[Pid]) -> Vec<u64> {
    let mut inodes: Vec<u64> = pids
        .iter()
        .flat_map(|pid| pipes(*pid))
        .map(|(_, n)| n)
        .collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes
}

/// Those of the given pipes that a process outside of the tree holds as well.
pub(crate) fn shared_outside(inside: &[Pid], inodes: &[u64]) -> Vec<Refusal> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let others = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
        .filter(|pid| !inside.contains(pid));
    let mut found: Vec<Refusal> = Vec::new();
    for other in others {
        for (_, inode) in pipes(other)
            .into_iter()
            .filter(|(_, inode)| inodes.contains(inode))
        {
            let Some((pid, fd)) = holder(inside, inode) else {
                continue;
            };
            let resource = format!("fd {fd} (pipe:[{inode}])");
            let comm = proc::comm(other);
            let reason =
                format!("process {other} ({comm}), which is not part of the tree, holds it too");
            if !found.iter().any(|refusal| refusal.resource == resource) {
                found.push(Refusal {
                    pid,
                    comm: proc::comm(pid),
                    resource,
                    reason,
                });
            }
        }
    }
    found
}

fn holder(pids: &[Pid], inode: u64) -> Option<(Pid, i32)> {
    pids.iter().find_map(|pid| {
        let fd = pipes(*pid)
            .into_iter()
            .find(|(_, found)| *found == inode)?
            .0;
        Some((*pid, fd))
    })
}

/// Descriptor and inode of every pipe end of a process; none when it has ended.
fn pipes(pid: Pid) -> Vec<(i32, u64)> {
    let fds = proc::numbers(pid, "fd").unwrap_or_default().into_iter();
    let inode = |fd: i32| inode_of(&proc::link(pid, &format!("fd/{fd}")).ok()?);
    fds.filter_map(|fd| Some((fd, inode(fd)?))).collect()
}

fn inode_of(link: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(link).ok()?;
    text.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}
