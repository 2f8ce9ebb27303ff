//! How soon a process is killed when memory runs out.

use super::attributes::{write, write_always};
use crate::ResurrectError;
use caps::{CapSet, Capability};
use persist_mem::manifest::OomScore;
use sys::{Errno, Pid};

const FILE: &str = "oom_score_adj";

/// Sets it. What somebody with CAP_SYS_RESOURCE writes is the lowest that the process may set by itself from then on
/// (fs/proc/base.c, __set_oom_adj): that is written first, and what the score is without the capability.
pub(super) fn set(pid: Pid, host: Pid, score: OomScore) -> Result<(), ResurrectError> {
    let least = score.least.filter(|least| *least != score.now);
    let Some(least) = least else {
        return write(pid, host, FILE, &score.now.to_string());
    };
    match write_always(host, FILE, &least.to_string()) {
        // Who has not the capability can leave the bound only where it is.
        Ok(()) | Err(Errno::EACCES) => {}
        Err(errno) => return Err(failed(pid)(errno)),
    }
    let without = Without::begin().map_err(failed(pid))?;
    let written = write_always(host, FILE, &score.now.to_string());
    drop(without);
    written.map_err(failed(pid))
}

fn failed(pid: Pid) -> impl FnOnce(Errno) -> ResurrectError {
    ResurrectError::call(pid, format!("setting its {FILE}"))
}

/// This thread has no CAP_SYS_RESOURCE as long as this lives.
struct Without {
    had: bool,
}

impl Without {
    fn begin() -> sys::Result<Self> {
        let capability = Capability::CAP_SYS_RESOURCE;
        let had = caps::has_cap(None, CapSet::Effective, capability).map_err(|_| Errno::EPERM)?;
        if had {
            caps::drop(None, CapSet::Effective, capability).map_err(|_| Errno::EPERM)?;
        }
        Ok(Self { had })
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        let capability = Capability::CAP_SYS_RESOURCE;
        if self.had
            && let Err(error) = caps::raise(None, CapSet::Effective, capability)
        {
            log::error!("CAP_SYS_RESOURCE does not come back: {error}");
        }
    }
}
