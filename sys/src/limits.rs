//! The calling process's own limits (getrlimit(2)).

use crate::{Result, procdir};
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// Raises a limit to `most`, or as far as the hard one goes for who may not raise that (`CAP_SYS_RESOURCE`).
///
/// # Errors
/// As setrlimit(2).
pub fn raise(which: Resource, most: u64) -> Result<()> {
    let (soft, hard) = getrlimit(which)?;
    if soft >= most {
        return Ok(());
    }
    setrlimit(which, most, hard.max(most)).or_else(|_| setrlimit(which, hard.min(most), hard))
}

/// How many mappings a process may have (proc_sys_vm(5)).
pub const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// More mappings than usual are allowed, to every process, until this is dropped.
#[derive(Debug)]
pub struct MoreMappings {
    limit: File,
    before: String,
}

impl MoreMappings {
    /// Allows `wanted` at least; None where they are allowed anyway.
    ///
    /// # Errors
    /// `EROFS` where the kernel's settings may not be changed.
    pub fn allow(wanted: u64) -> std::io::Result<Option<MoreMappings>> {
        let mut limit = procdir::setting("vm/max_map_count", OFlag::O_RDONLY)?;
        let mut before = String::new();
        limit.read_to_string(&mut before)?;
        if before.trim().parse().is_ok_and(|now: u64| now >= wanted) {
            return Ok(None);
        }
        let limit = procdir::setting("vm/max_map_count", OFlag::O_WRONLY)?;
        limit.write_all_at(wanted.to_string().as_bytes(), 0)?;
        Ok(Some(MoreMappings { limit, before }))
    }
}

impl Drop for MoreMappings {
    fn drop(&mut self) {
        // Who could raise it can lower it; a failure leaves more room than before.
        let _ = self.limit.write_all_at(self.before.as_bytes(), 0);
    }
}
