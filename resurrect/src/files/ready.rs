//! Making an end of a pipe ready for a moment, as it was when an epoll told of it.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};
use std::os::fd::OwnedFd;
use sys::Errno;

/// What takes it back.
pub(super) enum Moment {
    /// Something to read is read.
    Byte(OwnedFd),
    /// Room is taken away again.
    Room { end: OwnedFd, size: i32 },
}

/// An end of a pipe that is not ready: it is empty and has a writer, or full and has a reader.
pub(super) fn begin(end: &OwnedFd) -> sys::Result<Moment> {
    let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY {
        let size = fcntl(end, FcntlArg::F_GETPIPE_SZ)?;
        let more = size.checked_mul(2).ok_or(Errno::EINVAL)?;
        fcntl(end, FcntlArg::F_SETPIPE_SZ(more))?;
        let end = sys::fds::duplicate(end, 3)?;
        return Ok(Moment::Room { end, size });
    }
    let from = sys::fds::reopen(end, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let to = sys::fds::reopen(end, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    write(&to, b"?")?;
    Ok(Moment::Byte(from))
}

impl Moment {
    pub(super) fn end(self) -> sys::Result<()> {
        match self {
            Moment::Byte(from) => read(&from, &mut [0]).map(drop),
            Moment::Room { end, size } => fcntl(&end, FcntlArg::F_SETPIPE_SZ(size)).map(drop),
        }
    }
}
