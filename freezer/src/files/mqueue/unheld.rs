//! Queues that no process has open: they belong to the host.

use super::{Open, Queues, describe, examine};
use crate::FreezerError;
use crate::proc::FdInfo;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::{Errno, Pid, mqueue};

impl Queues {
    /// Adds all queues with a name that were not found yet.
    pub(in crate::files) fn add_unheld(&mut self) -> Result<(), FreezerError> {
        let me = Pid(nix::unistd::getpid().as_raw());
        let failed = |doing: String| FreezerError::call(me, doing);
        for name in names().map_err(failed("listing message queues".into()))? {
            let doing = || format!("message queue {}", name.to_string_lossy());
            let flags = (OFlag::O_RDWR | OFlag::O_NONBLOCK).bits();
            let queue = match mqueue::open(&name, flags, None) {
                // It had been removed.
                Err(Errno::ENOENT) => continue,
                opened => opened.map_err(failed(doing()))?,
            };
            let stat = fstat(&queue).map_err(failed(doing()))?;
            if !self.found.iter().any(|(inode, _)| *inode == stat.st_ino) {
                self.add(me, &name, &queue)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, me: Pid, name: &CString, queue: &OwnedFd) -> Result<(), FreezerError> {
        let link = [b"/", name.as_bytes()].concat();
        let info = FdInfo::read(me, queue.as_raw_fd())?;
        let open = Open::new(me, queue.as_raw_fd(), &link, &info, queue)?;
        let id = u32::try_from(self.found.len()).unwrap_or(u32::MAX);
        let described = describe(&open, id, &open.stat, examine(&open)?)?;
        self.found.push((open.stat.st_ino, described));
        Ok(())
    }
}

/// The names of all queues of this IPC namespace, wherever and whether their file system is mounted.
fn names() -> sys::Result<Vec<CString>> {
    let root = match sys::mountapi::detached(c"mqueue") {
        // A kernel without them.
        Err(Errno::ENODEV) => return Ok(Vec::new()),
        root => root?,
    };
    let failed = |why: std::io::Error| why.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", root.as_raw_fd()));
    let names = entries.map_err(failed)?.map(|entry| {
        let name = entry.map_err(failed)?.file_name();
        CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
    });
    names.collect()
}
