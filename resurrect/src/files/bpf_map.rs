//! Maps of BPF (bpf(2)).

use super::Opening;
use crate::ResurrectError;
use persist_mem::manifest::BpfMap;
use std::os::fd::{AsFd, OwnedFd};
use sys::bpf_map::{self, Shape};

pub(super) fn open(opening: &Opening<'_, '_>, map: &BpfMap) -> Result<OwnedFd, ResurrectError> {
    let made = bpf_map::make(&Shape {
        kind: map.kind,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        flags: map.flags,
        name: map.name,
    });
    let made = made.map_err(opening.failed("making a map of BPF"))?;
    for (key, value) in &map.elements {
        bpf_map::set(made.as_fd(), key, value).map_err(opening.failed("filling a map of BPF"))?;
    }
    if map.frozen {
        bpf_map::freeze(made.as_fd()).map_err(opening.failed("freezing a map of BPF"))?;
    }
    Ok(made)
}
