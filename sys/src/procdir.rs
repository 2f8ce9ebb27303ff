//! The procfs whose ids are this process's own.
//!
//! Usually `/proc`. A process outside of the PID namespace that `/proc` shows keeps a descriptor of the
//! root of its own procfs and says so once with [`set`].

use crate::{Errno, Pid, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::sync::OnceLock;

static ROOT: OnceLock<File> = OnceLock::new();

/// From now on ids are looked up below this directory. The first call counts.
///
/// # Errors
/// `EALREADY` when one was set before.
pub fn set(root: File) -> Result<()> {
    ROOT.set(root).map_err(|_| Errno::EALREADY)
}

/// Opens a setting of the kernel, `sys/what` (proc_sys(5)).
///
/// # Errors
/// `EROFS`, `EACCES` where it may not be written.
pub fn setting(what: &str, flags: OFlag) -> Result<File> {
    open_below(&format!("sys/{what}"), flags)
}

/// Opens a file about the host as a whole (`stat`, `meminfo`).
///
/// # Errors
/// As open(2).
pub fn host(what: &str) -> Result<File> {
    open_below(what, OFlag::O_RDONLY)
}

fn open_below(path: &str, flags: OFlag) -> Result<File> {
    let flags = flags | OFlag::O_CLOEXEC;
    let opened = match ROOT.get() {
        Some(root) => openat(root, path, flags, Mode::empty())?,
        None => nix::fcntl::open(format!("/proc/{path}").as_str(), flags, Mode::empty())?,
    };
    Ok(File::from(opened))
}

/// Opens `PID/what`.
///
/// # Errors
/// `ENOENT` when the process is gone, `EACCES` without ptrace access.
pub fn open(pid: Pid, what: &str, flags: OFlag) -> Result<File> {
    open_below(&format!("{pid}/{what}"), flags)
}

/// Where `PID/what` leads.
///
/// # Errors
/// As readlink(2).
pub fn link(pid: Pid, what: &str) -> Result<std::ffi::OsString> {
    match ROOT.get() {
        Some(root) => nix::fcntl::readlinkat(root, format!("{pid}/{what}").as_str()),
        None => nix::fcntl::readlink(format!("/proc/{pid}/{what}").as_str()),
    }
}

/// Reads `PID/what` whole.
///
/// # Errors
/// As [`open`].
pub fn read(pid: Pid, what: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    open(pid, what, OFlag::O_RDONLY)?
        .read_to_end(&mut bytes)
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(bytes)
}
