//! Tracees without memory.

use anyhow::Result;
use libc::{PTRACE_TRACEME, SIGSEGV};

use super::traced::stops;
use crate::kit::{Setting, Watch, fork, procfs};

/// A tracee that has unmapped everything, and stays before the signal which that brings.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    const ALL: usize = (1 << 47) - 4096;
    let child = fork(|| {
        // SAFETY: takes no memory; nothing is needed behind the second call, which nobody returns from.
        unsafe {
            libc::ptrace(PTRACE_TRACEME, 0, 0, 0);
            libc::munmap(std::ptr::null_mut(), ALL);
        }
    })?;
    stops(child, SIGSEGV)?;
    Watch::keep(move || procfs::stat(child, 3))
}
