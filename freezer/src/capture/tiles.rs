//! Which processes have asked for AMX (ARCH_REQ_XCOMP_PERM of arch_prctl(2)): the kernel keeps no tiles for others.

use crate::{Frozen, kernel};
use persist_mem::manifest::{Process, State};
use std::collections::BTreeMap;
use sys::xstate;
use sys::{Pid, Tid};

/// What processes may keep in extended registers, where the kernel tells.
#[derive(Debug, Default)]
pub(super) struct Tiles(BTreeMap<Pid, u64>);

impl Tiles {
    /// Of everybody who is stopped.
    pub(super) fn find(frozen: &Frozen) -> Tiles {
        let pids: Vec<Pid> = frozen.pids().collect();
        let leaders: Vec<Tid> = pids.iter().map(|pid| pid.leader()).collect();
        let found = kernel::look(|kernel| kernel.permitted_xfeatures(&leaders)).unwrap_or_default();
        let found = pids.into_iter().zip(found);
        Tiles(found.filter_map(|(pid, may)| Some((pid, may?))).collect())
    }

    /// Tells a process. Where the kernel does not, one has asked whose threads have tiles.
    pub(super) fn tell(&self, process: &mut Process) {
        let may = self.0.get(&process.pid).copied();
        if let State::Live(live) = &mut process.state {
            let has = |state: &[u8]| xstate::in_use(state) & xstate::TILES != 0;
            live.may_use_tiles = match may {
                Some(may) => may & xstate::TILES != 0,
                None => live.threads.iter().any(|thread| has(&thread.xstate)),
            };
        }
    }
}

/// Why a thread that waits in vfork(2) is not carried.
pub(super) fn obstacle(pid: Pid) -> Option<&'static str> {
    let may = kernel::look(|kernel| kernel.permitted_xfeatures(&[pid.leader()]));
    let may = may.ok()?.into_iter().flatten().next()?;
    (may & xstate::TILES != 0).then_some("it has asked for AMX (ARCH_REQ_XCOMP_PERM)")
}
