//! Resource limits.

use std::fs;

use anyhow::Result;

use crate::kit::{Setting, Watch, sys};

fn set(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure is alive.
    sys("setrlimit", unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Some lowered, hard limits too: all sixteen must be the same.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    set(libc::RLIMIT_NOFILE, 321, 4321)?;
    set(libc::RLIMIT_CORE, 0, 12345)?;
    set(libc::RLIMIT_STACK, 3 << 20, 64 << 20)?;
    set(libc::RLIMIT_FSIZE, 1 << 30, 1 << 40)?;
    set(libc::RLIMIT_SIGPENDING, 77, 78)?;
    set(libc::RLIMIT_MSGQUEUE, 4096, 8192)?;
    Ok(
        Watch::keep(|| Ok(fs::read_to_string("/proc/self/limits")?))?
            .spoiled_by(|| set(libc::RLIMIT_NOFILE, 322, 4321)),
    )
}
