//! A descriptor that is being looked at.

use crate::FreezerError;
use crate::proc::FdInfo;
use nix::sys::stat::{FileStat, SFlag, fstat, major, stat};
use std::os::fd::OwnedFd;
use sys::{Errno, Pid};

pub(super) const O_CLOEXEC: u64 = 0o2_000_000;
pub(super) const O_PATH: u32 = 0o10_000_000;

/// A descriptor that is being looked at.
pub(crate) struct Open<'a> {
    pub(super) pid: Pid,
    pub(super) fd: i32,
    /// Where `/proc/PID/fd/FD` leads.
    pub(super) link: &'a [u8],
    pub(super) info: &'a FdInfo,
    /// A copy of it: the same open file description.
    pub(super) copy: &'a OwnedFd,
    pub(super) stat: FileStat,
    /// It is known that nobody gets its signals.
    pub(super) ownerless: bool,
}

impl<'a> Open<'a> {
    pub(super) fn new(
        pid: Pid,
        fd: i32,
        link: &'a [u8],
        info: &'a FdInfo,
        copy: &'a OwnedFd,
    ) -> Result<Open<'a>, FreezerError> {
        let stat = fstat(copy).or_else(|errno| about_nobody(link).ok_or(errno));
        let stat = stat.map_err(|errno| match errno {
            // A file of `/proc` about a process that is gone.
            Errno::ENOENT | Errno::ESRCH => {
                let link = String::from_utf8_lossy(link);
                FreezerError::refuse(
                    pid,
                    format!("fd {fd} ({link})"),
                    "what it told about is gone",
                )
            }
            errno => FreezerError::call(pid, format!("fd {fd}: fstat"))(errno),
        })?;
        Ok(Open {
            pid,
            fd,
            link,
            info,
            copy,
            stat,
            ownerless: false,
        })
    }

    /// Whether the file may lie on a file system of the kernel's own: those have no device.
    pub(super) fn may_be_made_up(&self) -> bool {
        major(self.stat.st_dev) == 0
    }

    /// `S_IFMT` of the file.
    pub(crate) fn file_type(&self) -> SFlag {
        SFlag::from_bits_truncate(self.stat.st_mode) & SFlag::S_IFMT
    }

    /// Access mode and status flags.
    pub(super) fn flags(&self) -> Result<u32, FreezerError> {
        let flags = self.info.number("flags", 8).ok_or_else(|| self.format())?;
        Ok((flags & !O_CLOEXEC) as u32)
    }

    /// Whether it is open for writing.
    pub(crate) fn writes(&self) -> Result<bool, FreezerError> {
        const O_ACCMODE: u32 = 3;
        Ok(self.flags()? & O_PATH == 0 && self.flags()? & O_ACCMODE != 0)
    }

    /// A copy of it: the same open file description.
    pub(crate) fn copy(&self) -> &OwnedFd {
        self.copy
    }

    pub(super) fn format(&self) -> FreezerError {
        FreezerError::Format {
            pid: self.pid,
            what: format!("fdinfo/{}", self.fd),
            text: format!("{:?}", self.info),
        }
    }

    pub(super) fn call(&self, doing: &str) -> impl FnOnce(sys::Errno) -> FreezerError {
        FreezerError::call(self.pid, format!("fd {}: {doing}", self.fd))
    }

    pub(crate) fn refuse(&self, reason: impl Into<String>) -> FreezerError {
        let link = String::from_utf8_lossy(self.link);
        FreezerError::refuse(self.pid, format!("fd {} ({link})", self.fd), reason)
    }
}

/// What fstat(2) tells of `/proc/PID/fd` otherwise: since Linux 6.2 it counts descriptors there, and fails when the
/// process has ended. None while somebody has that id.
fn about_nobody(link: &[u8]) -> Option<FileStat> {
    let path = link.strip_suffix(super::path::DELETED).unwrap_or(link);
    let path = std::str::from_utf8(path).ok()?;
    let is_gone = path.starts_with("/proc/") && path.ends_with("/fd");
    (is_gone && !std::path::Path::new(path).exists())
        .then(|| stat("/proc/self/fd").ok())
        .flatten()
}
