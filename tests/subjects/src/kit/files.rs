//! Calls on descriptors.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{args, fd, raw, sys};

/// The signal that a descriptor sends (fcntl(2)).
pub(crate) const F_SETSIG: i32 = 10;
/// Asks for it.
pub(crate) const F_GETSIG: i32 = 11;

/// open(2) with flags as they are given.
pub(crate) fn open(path: impl AsRef<Path>, flags: i32) -> Result<i32> {
    let path = path.as_ref();
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    fd("open", unsafe { libc::open(name.as_ptr(), flags, 0o600) })
        .with_context(|| path.display().to_string())
}

/// close(2)
pub(crate) fn close(fd: i32) {
    raw(libc::SYS_close, args([fd as u64]));
}

/// Reads what is there, at most `count` bytes.
pub(crate) fn read(fd: i32, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let at = bytes.as_mut_ptr() as u64;
    let got = raw(libc::SYS_read, args([fd as u64, at, count as u64]));
    if got < 0 {
        bail!("read: error {}", -got);
    }
    bytes.truncate(got as usize);
    Ok(bytes)
}

/// Writes all of it at once.
pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<()> {
    let done = raw(
        libc::SYS_write,
        args([fd as u64, bytes.as_ptr() as u64, bytes.len() as u64]),
    );
    if done != bytes.len() as i64 {
        bail!("write: {done}");
    }
    Ok(())
}

/// fcntl(2) with a number.
pub(crate) fn fcntl(fd: i32, command: i32, argument: i32) -> Result<i32> {
    // SAFETY: the commands used with this take numbers.
    let done = unsafe { libc::fcntl(fd, command, argument) };
    sys("fcntl", done)?;
    Ok(done)
}

/// lseek(2) to a place, or with `None` where it is.
pub(crate) fn place(fd: i32, to: Option<i64>) -> Result<i64> {
    let (offset, whence) = to.map_or((0, libc::SEEK_CUR), |to| (to, libc::SEEK_SET));
    // SAFETY: takes numbers.
    sys("lseek", unsafe { libc::lseek(fd, offset, whence) })
}

/// Flags of the description and of the descriptor, and the file behind it.
pub(crate) fn seen(fd: i32) -> Result<(i32, i32, String)> {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}"))?;
    Ok((
        fcntl(fd, libc::F_GETFL, 0)?,
        fcntl(fd, libc::F_GETFD, 0)?,
        link.display().to_string(),
    ))
}

/// Do two descriptors share one description? (kcmp(2), KCMP_FILE.)
pub(crate) fn share(mine: i32, pid: i32, theirs: i32) -> Result<bool> {
    let me = u64::from(std::process::id());
    let done = raw(
        libc::SYS_kcmp,
        args([me, pid as u64, 0, mine as u64, theirs as u64]),
    );
    if done < 0 {
        bail!("kcmp: error {}", -done);
    }
    Ok(done == 0)
}

/// Can something be read at once?
pub(crate) fn ready(fd: i32, events: i16) -> Result<i16> {
    let mut set = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one descriptor.
    sys("poll", unsafe { libc::poll(&raw mut set, 1, 0) })?;
    Ok(set.revents)
}
