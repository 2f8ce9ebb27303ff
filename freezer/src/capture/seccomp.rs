//! seccomp filters of a thread.

use super::kept::Confined;
use crate::proc::Status;
use crate::{FreezerError, files};
use persist_mem::manifest::{Filter, FilterListener, Seccomp};
use sys::{Pid, Tid, ptrace};

const STRICT: &str = "1";
const FILTER: &str = "2";
/// `SECCOMP_FILTER_FLAG_LOG`
const LOG: u64 = 1 << 1;
/// `BPF_RET | BPF_K`, `BPF_RET | BPF_A`
const RETURN_K: u8 = 0x06;
const RETURN_A: u8 = 0x16;
/// `SECCOMP_RET_ACTION_FULL`, `SECCOMP_RET_USER_NOTIF`
const RET_ACTION: u32 = 0xffff_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;

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
            listener: None,
        };
        found.push(filter);
    }
    note_listeners(tid, &mut found);
    Ok(found
        .into_iter()
        .map(|filter| add(filters, filter))
        .collect())
}

/// Which of the filters of a thread have a listener.
fn note_listeners(tid: Tid, own: &mut [Filter]) {
    if !own.iter().any(may_ask) {
        return;
    }
    let known = files::listener::filters(tid).unwrap_or_default();
    // Where they cannot be read, a listener is refused.
    if known.len() != own.len() {
        return;
    }
    for (filter, at) in own.iter_mut().zip(known) {
        filter.listener = at.listened.then_some(FilterListener {
            filter: at.address,
            killable: at.killable,
        });
    }
}

/// Whether a filter may leave a call open: it returns that, or what it has computed.
fn may_ask(filter: &Filter) -> bool {
    filter
        .code
        .as_chunks::<8>()
        .0
        .iter()
        .any(|line| match line {
            [RETURN_K, 0, _, _, k @ ..] => u32::from_ne_bytes(*k) & RET_ACTION == RET_USER_NOTIF,
            [RETURN_A, 0, ..] => true,
            _ => false,
        })
}

impl Confined {
    /// Why it is not carried of a thread that cannot be asked.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        match self {
            Confined::No => None,
            Confined::Strict => Some("it is in the strict mode of seccomp"),
            Confined::Filters(all) => all
                .iter()
                .any(may_ask)
                .then_some("it has seccomp filters that may ask a listener"),
        }
    }
}

/// What a thread has, as the kernel's memory tells of it.
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
