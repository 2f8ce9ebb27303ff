//! Maps of BPF (bpf(2)).

use super::Opening;
use crate::ResurrectError;
use persist_mem::manifest::BpfMap;
use std::os::fd::{AsFd, OwnedFd};
use sys::bpf_map::{self, Map};

pub(super) fn open(opening: &Opening<'_, '_>, saved: &BpfMap) -> Result<OwnedFd, ResurrectError> {
    let failed = || opening.failed("making a map of BPF");
    let made = bpf_map::make(&saved.shape).map_err(failed())?;
    let map = Map::of(made.as_fd()).map_err(failed())?;
    for (key, value) in &saved.elements {
        let set = map.set(key, value);
        set.map_err(opening.failed("filling a map of BPF"))?;
    }
    if saved.frozen {
        let frozen = map.freeze();
        frozen.map_err(opening.failed("freezing a map of BPF"))?;
    }
    Ok(made)
}
