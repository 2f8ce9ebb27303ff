//! Pipes: two descriptions, one buffer.

use super::Open;
use crate::{FreezerError, kernel};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use persist_mem::manifest::{Pipe, PipeBuffer, PipeId};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use sys::Errno;

const O_DIRECT: u32 = 0o40_000;
const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
const O_RDWR: u32 = 2;
const O_PATH: u32 = 0o10_000_000;

/// The pipes found so far, each once however many descriptions are open on it.
#[derive(Default)]
pub(super) struct Pipes(Vec<(Pipe, (u64, u64))>);

impl Pipes {
    /// The pipe, or FIFO, that a description is an end of.
    pub(super) fn capture(&mut self, open: &Open<'_>) -> Result<PipeId, FreezerError> {
        let identity = (open.stat.st_dev, open.stat.st_ino);
        // Packets are told apart by those who write them.
        let flags = open.flags()?;
        let packets = flags & O_DIRECT != 0 && flags & O_ACCMODE != 0;
        let known = self.0.iter_mut().find(|(_, found)| *found == identity);
        if let Some((pipe, _)) = known {
            if packets && pipe.buffers.is_empty() {
                (pipe.data, pipe.buffers) = contents(open, pipe.capacity.cast_signed(), true)?;
            }
            return Ok(pipe.id);
        }
        let size = match flags & O_PATH {
            0 => fcntl(open.copy, FcntlArg::F_GETPIPE_SZ),
            _ => fcntl(reader(open)?, FcntlArg::F_GETPIPE_SZ),
        };
        let size = size.map_err(open.call("asking for its size"))?;
        let id = PipeId(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        let (data, buffers) = contents(open, size, packets)?;
        let pipe = Pipe {
            id,
            capacity: size.cast_unsigned(),
            data,
            buffers,
            owner: (open.stat.st_uid, open.stat.st_gid),
            mode: open.stat.st_mode & 0o7777,
        };
        self.0.push((pipe, identity));
        Ok(id)
    }

    pub(super) fn finish(self) -> Vec<Pipe> {
        self.0.into_iter().map(|(pipe, _)| pipe).collect()
    }
}

/// What is in the pipe, with the buffers that it is in. Where the kernel's memory cannot be read these are known
/// with `packets` only.
fn contents(
    open: &Open<'_>,
    size: i32,
    packets: bool,
) -> Result<(Vec<u8>, Vec<PipeBuffer>), FreezerError> {
    if open.flags()? & O_PATH == 0 {
        let waits =
            sys::files::readable(open.copy).map_err(open.call("asking for what is in it"))?;
        if waits == 0 {
            // A reader that comes and goes is told to those who write, and who wait to.
            return Ok((Vec::new(), Vec::new()));
        }
    }
    let (data, reads) = copy(open, size)?;
    let reader = reader(open)?;
    let read = kernel::look(|kernel| kernel.own_pipe(reader.as_fd())).unwrap_or_default();
    // An empty one takes a place until somebody reads, which is nothing that a writer could rely on.
    let known: Vec<PipeBuffer> = read
        .into_iter()
        .filter(|buffer| buffer.len > 0)
        .map(|buffer| PipeBuffer {
            offset: buffer.offset,
            len: buffer.len,
            packet: buffer.is_packet(),
            grows: buffer.can_merge(),
        })
        .collect();
    let together: u64 = known.iter().map(|buffer| u64::from(buffer.len)).sum();
    if together == data.len() as u64 {
        return Ok((data, known));
    }
    let as_read = reads.into_iter().map(|len| PipeBuffer {
        offset: 0,
        len,
        packet: true,
        grows: false,
    });
    let buffers = if packets {
        as_read.collect()
    } else {
        Vec::new()
    };
    Ok((data, buffers))
}

/// An end to read from: the description itself, so that whoever watches a FIFO does not see it opened. Through
/// /proc the write end gives one as well, and so does a reference (`O_PATH`).
fn reader(open: &Open<'_>) -> Result<File, FreezerError> {
    let flags = open.flags()?;
    if flags & O_PATH == 0 && matches!(flags & O_ACCMODE, O_RDONLY | O_RDWR) {
        let own = open.copy.try_clone().map(File::from);
        return own.map_err(|cause| FreezerError::Proc {
            pid: open.pid,
            what: format!("fd/{}", open.fd),
            cause,
        });
    }
    let path = format!("/proc/self/fd/{}", open.copy.as_raw_fd());
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|cause| FreezerError::Proc {
            pid: open.pid,
            what: format!("fd/{}", open.fd),
            cause,
        })
}

/// What is in the pipe, without taking it out: tee(2) doubles it into a pipe of ours. Also how much each read
/// gave, which of packets is one.
fn copy(open: &Open<'_>, size: i32) -> Result<(Vec<u8>, Vec<u32>), FreezerError> {
    let source = reader(open)?;
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
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < got {
        // A read ends at the end of a packet, and gives as much as there is of a stream.
        let read = nix::unistd::read(&read, &mut data[at..])
            .map_err(open.call("reading a copy of what is in it"))?;
        if read == 0 {
            break;
        }
        at += read;
        lengths.push(u32::try_from(read).unwrap_or(u32::MAX));
    }
    data.truncate(at);
    Ok((data, lengths))
}
