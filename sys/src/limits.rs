//! The calling process's own limits (getrlimit(2)).

use crate::{Errno, Result, procdir};
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

/// Allows this process as many descriptors as there may be (proc_sys_fs(5), `nr_open`). Whoever gets less of it than is
/// needed notices at the first descriptor too many.
///
/// # Errors
/// As setrlimit(2), or `/proc/sys/fs/nr_open` cannot be read.
pub fn allow_descriptors() -> Result<()> {
    raise(Resource::RLIMIT_NOFILE, nr_open()?)
}

fn nr_open() -> Result<u64> {
    let mut text = String::new();
    let mut setting = procdir::setting("fs/nr_open", OFlag::O_RDONLY)?;
    setting.read_to_string(&mut text).map_err(|_| Errno::EIO)?;
    text.trim().parse().map_err(|_| Errno::EINVAL)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_descriptors_that_may_be_had_are_taken() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(64), hard).unwrap();
        allow_descriptors().unwrap();
        let (soft, now) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let most = nr_open().unwrap();
        assert!(most > 0 && soft >= hard.min(most), "{soft} {now} {most}");
    }
}
