//! A process that does not stop: its thread waits in vfork(2) until the child lets go, which is its brother
//! (`CLONE_PARENT`), so that nobody knows whom it waits for.
//!
//! Not one of the subjects that are carried: it is there for being refused.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

/// Runs until somebody makes `PREFIX.ask`. `PREFIX.ready` tells that the parent waits.
pub(crate) fn run(prefix: &str) -> Result<()> {
    let flags = libc::CLONE_VFORK | libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child has a copy of the memory, as after fork(2); this
    // program has one thread, so no lock is held by another one.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match child {
        -1 => bail!("clone: {}", std::io::Error::last_os_error()),
        0 => {
            let file = |ending: &str| PathBuf::from(format!("{prefix}.{ending}"));
            std::fs::write(file("ready"), "READY\n")?;
            // Bounded, should nobody ever ask.
            for _ in 0..3000 {
                if file("ask").exists() {
                    break;
                }
                sleep(Duration::from_millis(100));
            }
            std::process::exit(0);
        }
        _ => Ok(()),
    }
}
