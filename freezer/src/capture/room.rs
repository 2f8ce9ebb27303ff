//! Limits (setrlimit(2)) that leave no room for the pages in which a process is asked about itself.
//!
//! They are raised while those pages are made, which takes some microseconds, and by no more than what is
//! needed: should this program be killed just then, the process may map some pages more than before.

use super::process::SCRATCH;
use crate::proc::{self, Status};
use crate::{FreezerError, Refusal};
use sys::Pid;
use sys::limits::{MAX_MAP_COUNT, MoreMappings};
use sys::process::prlimit;

/// What is mapped in all: room for batches with its code, and stack for a frame.
const NEEDED: u64 = SCRATCH as u64 + (64 << 10);
/// Mappings that are made beside a process's own.
const BESIDE: u64 = 16;
/// `CAP_SYS_RESOURCE`: hard limits may be raised.
const MAY_RAISE: u64 = 1 << 24;

/// Number, name, and the line of `/proc/PID/status` that tells how much is used.
const LIMITS: [(u32, &str, &str); 3] = [
    (9, "RLIMIT_AS", "VmSize"),
    (2, "RLIMIT_DATA", "VmData"),
    (8, "RLIMIT_MEMLOCK", "VmLck"),
];

/// Limits that are raised until this is dropped.
pub(super) struct Raised {
    pid: Pid,
    were: Vec<(u32, (u64, u64))>,
    _mappings: Option<MoreMappings>,
}

impl Raised {
    /// Raises those that leave too little room.
    pub(super) fn of(pid: Pid, status: &Status, mappings: usize) -> Raised {
        let more = MoreMappings::allow(mappings as u64 + BESIDE).unwrap_or_else(|why| {
            log::debug!("process {pid}: {MAX_MAP_COUNT} cannot be raised: {why}");
            None
        });
        let mut raised = Raised {
            pid,
            were: Vec::new(),
            _mappings: more,
        };
        for (resource, name, line) in LIMITS {
            let need = used(status, line).saturating_add(NEEDED);
            let Ok((soft, hard)) = prlimit(pid, resource, None) else {
                continue;
            };
            if soft >= need {
                continue;
            }
            match prlimit(pid, resource, Some((need, hard.max(need)))) {
                Ok(_) => raised.were.push((resource, (soft, hard))),
                Err(why) => log::debug!("process {pid}: {name} cannot be raised: {why}"),
            }
        }
        raised
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        for (resource, limit) in &self.were {
            if let Err(why) = prlimit(self.pid, *resource, Some(*limit)) {
                log::warn!("process {}: a limit stays raised: {why}", self.pid);
            }
        }
    }
}

/// Bytes.
fn used(status: &Status, line: &str) -> u64 {
    let text = status.value(line).unwrap_or_default();
    let number = text.trim_end_matches(" kB").parse::<u64>();
    number.unwrap_or(0).saturating_mul(1024)
}

/// A limit as `/proc/PID/limits` tells everybody.
fn soft_limit(pid: Pid, name: &str) -> Result<u64, FreezerError> {
    let label = match name {
        "RLIMIT_AS" => "Max address space",
        _ => "Max data size",
    };
    let text = proc::read_text(pid, "limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    // "unlimited"
    Ok(soft.and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX))
}

/// Why room cannot be made in a process, found without stopping it.
pub(crate) fn refusal(pid: Pid, status: &Status) -> Result<Option<Refusal>, FreezerError> {
    // Locked memory counts where everything to come is locked, and who may lock what he likes has no limit.
    for (resource, name, line) in &LIMITS[..2] {
        let need = used(status, line).saturating_add(NEEDED);
        let raised_to = match prlimit(pid, *resource, None) {
            Ok((_, hard)) => hard,
            // Another user's is not raised at all without the capability (kernel/sys.c, check_prlimit_permission).
            Err(_) => soft_limit(pid, name)?,
        };
        let this = Pid(nix::unistd::getpid().as_raw());
        if raised_to < need && Status::read(this, "status")?.mask("CapEff") & MAY_RAISE == 0 {
            return Ok(Some(Refusal {
                pid,
                comm: proc::comm(pid),
                resource: (*name).into(),
                reason: "it leaves no room for the pages that it takes to look into the process, and to \
                         raise it takes CAP_SYS_RESOURCE"
                    .into(),
            }));
        }
    }
    Ok(None)
}
