//! User, groups and capabilities of a thread.

use crate::proc::Status;
use persist_mem::manifest::Credentials;

/// From `/proc/PID/task/TID/status`; securebits come from inside.
pub(super) fn capture(status: &Status, securebits: u32) -> Credentials {
    let four = |key: &str| {
        let found = status.numbers(key);
        let at = |i: usize| found.get(i).copied().unwrap_or(0);
        [at(0), at(1), at(2), at(3)]
    };
    Credentials {
        uid: four("Uid"),
        gid: four("Gid"),
        groups: status.numbers("Groups"),
        inheritable: status.mask("CapInh"),
        permitted: status.mask("CapPrm"),
        effective: status.mask("CapEff"),
        bounding: status.mask("CapBnd"),
        ambient: status.mask("CapAmb"),
        securebits,
    }
}
