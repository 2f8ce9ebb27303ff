//! seccomp filters of a thread.

use super::kept::Confined;
use crate::FreezerError;
use crate::proc::Status;
use persist_mem::manifest::{Filter, Seccomp};
use sys::{Pid, Tid, ptrace};

const STRICT: &str = "1";
const FILTER: &str = "2";
/// `SECCOMP_FILTER_FLAG_LOG`
const LOG: u64 = 1 << 1;

/// What a thread has; its filters are added to those of its process where they are not there yet.
pub(super) fn capture(
    pid: Pid,
    tid: Tid,
    status: &Status,
    filters: &mut Vec<Filter>,
) -> Result<Seccomp, FreezerError> {
    match status.value("Seccomp") {
        Some(STRICT) => Ok(Seccomp::Strict),
        Some(FILTER) => stack(pid, tid, filters).map(Seccomp::Filters),
        _ => Ok(Seccomp::Off),
    }
}

fn stack(pid: Pid, tid: Tid, filters: &mut Vec<Filter>) -> Result<Vec<u32>, FreezerError> {
    let failed = || FreezerError::call(pid, format!("reading the seccomp filters of thread {tid}"));
    let mut found = Vec::new();
    for index in 0.. {
        let Some(code) = ptrace::seccomp_filter(tid, index).map_err(failed())? else {
            break;
        };
        let flags = ptrace::seccomp_flags(tid, index).map_err(failed())?;
        let filter = Filter {
            code: code.as_flattened().to_vec(),
            log: flags & LOG != 0,
        };
        found.push(add(filters, filter));
    }
    Ok(found)
}

/// The same, of one that the kernel's memory tells of.
pub(super) fn of_kept(confined: Confined, filters: &mut Vec<Filter>) -> Seccomp {
    match confined {
        Confined::No => Seccomp::Off,
        Confined::Strict => Seccomp::Strict,
        Confined::Filters(own) => {
            let places = own.into_iter().map(|filter| add(filters, filter));
            Seccomp::Filters(places.collect())
        }
    }
}

/// The place of a filter among those of its process.
fn add(filters: &mut Vec<Filter>, filter: Filter) -> u32 {
    let known = filters.iter().position(|known| *known == filter);
    let place = known.unwrap_or_else(|| {
        filters.push(filter);
        filters.len() - 1
    });
    u32::try_from(place).unwrap_or(u32::MAX)
}
