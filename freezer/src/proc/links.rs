//! `/proc/PID/fd`: descriptors and where they lead.

use super::FdInfo;
use crate::FreezerError;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use sys::Pid;

/// The descriptors of a process as they were when it was opened.
#[derive(Debug)]
pub(crate) struct Links {
    pid: Pid,
    links: OwnedFd,
    infos: OwnedFd,
    numbers: Vec<i32>,
}

impl Links {
    /// Lists them.
    ///
    /// # Errors
    /// [`FreezerError::Proc`] when the process is gone, or may not be looked into.
    pub(crate) fn open(pid: Pid) -> Result<Links, FreezerError> {
        let numbers = super::numbers(pid, "fd")?;
        let own = format!("/proc/{pid}");
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        let open = |place: &str, what: &str| {
            nix::fcntl::open(format!("{place}/{what}").as_str(), flags, Mode::empty())
                .map_err(|errno| failed(pid, what.into(), errno))
        };
        let (mut place, mut links) = (own.clone(), open(&own, "fd")?);
        let first = numbers.first().map(ToString::to_string);
        // An ended leader shows none of them.
        if first.is_some_and(|first| readlinkat(&links, first.as_str()).is_err())
            && let Some(tid) = super::representative(pid).filter(|tid| *tid != pid.leader())
        {
            place = format!("/proc/{tid}");
            links = open(&place, "fd")?;
        }
        Ok(Links {
            pid,
            links,
            infos: open(&place, "fdinfo")?,
            numbers,
        })
    }

    /// In ascending order.
    pub(crate) fn numbers(&self) -> &[i32] {
        &self.numbers
    }

    /// Where one of them leads.
    ///
    /// # Errors
    /// [`FreezerError::Proc`] when it has been closed.
    pub(crate) fn read(&self, fd: i32) -> Result<Vec<u8>, FreezerError> {
        readlinkat(&self.links, fd.to_string().as_str())
            .map(OsStringExt::into_vec)
            .map_err(|errno| failed(self.pid, format!("fd/{fd}"), errno))
    }

    /// What fdinfo tells of one of them.
    ///
    /// # Errors
    /// [`FreezerError::Proc`] when it has been closed.
    pub(crate) fn info(&self, fd: i32) -> Result<FdInfo, FreezerError> {
        let what = || format!("fdinfo/{fd}");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.infos, fd.to_string().as_str(), flags, Mode::empty());
        let file = file.map_err(|errno| failed(self.pid, what(), errno))?;
        let bytes = super::read_file(File::from(file), true);
        let bytes = bytes.map_err(|cause| FreezerError::Proc {
            pid: self.pid,
            what: what(),
            cause,
        })?;
        Ok(FdInfo::from_text(&String::from_utf8_lossy(&bytes)))
    }
}

fn failed(pid: Pid, what: String, errno: sys::Errno) -> FreezerError {
    FreezerError::Proc {
        pid,
        what,
        cause: errno.into(),
    }
}
