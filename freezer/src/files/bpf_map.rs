//! Maps of BPF (bpf(2)) that one descriptor leads to and nothing else: no program uses them, and no name leads there.

use super::Open;
use crate::FreezerError;
use crate::kernel;
use persist_mem::manifest::{BpfMap, DescriptionKind};
use std::os::fd::AsFd;
use sys::bpf_map::{Map, PERCPU_ARRAY, PERCPU_HASH, Shape};

pub(super) const LINK: &[u8] = b"anon_inode:bpf-map";
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const LPM_TRIE: u32 = 11;
/// `BPF_F_NO_PREALLOC`, `BPF_F_ZERO_SEED`, `BPF_F_RDONLY_PROG`, `BPF_F_WRONLY_PROG`, `BPF_F_MMAPABLE`
const FLAGS: u32 = 1 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10;
/// More than anybody keeps in one, and less than a manifest may be.
const MOST_BYTES: u64 = 64 << 20;

/// A key and its value.
type Element = (Vec<u8>, Vec<u8>);

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let failed = || open.call("asking for a map of BPF");
    let map = Map::of(open.copy.as_fd()).map_err(failed())?;
    if let Some(why) = obstacle(map.shape(), map.is_special()) {
        return Err(open.refuse(why));
    }
    let users = kernel::look(|kernel| {
        let file = kernel.own_file(open.copy.as_fd())?;
        kernel.users_of_map(file)
    });
    match users {
        Ok([1, 1]) => {}
        Ok(_) => {
            let why =
                "a map of BPF that programs use, that has a name, or that several opened files are";
            return Err(open.refuse(format!("{why}, is not carried")));
        }
        Err(why) => return Err(open.refuse(format!("a map of BPF: who uses it: {why}"))),
    }
    let frozen = open.info.number("frozen", 10).unwrap_or(0) != 0;
    Ok(DescriptionKind::BpfMap(Box::new(BpfMap {
        shape: *map.shape(),
        frozen,
        elements: elements(open, &map)?,
    })))
}

fn obstacle(shape: &Shape, special: bool) -> Option<&'static str> {
    if ![HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LPM_TRIE].contains(&shape.kind) {
        Some("a map of BPF of this type is not carried")
    } else if special || shape.flags & !FLAGS != 0 {
        Some("a map of BPF with types, for a device, of a node or for one way is not carried")
    } else {
        None
    }
}

/// All keys with their values; of an array those that are not zero.
fn elements(open: &Open<'_>, map: &Map<'_>) -> Result<Vec<Element>, FreezerError> {
    let failed = || open.call("reading a map of BPF");
    let shape = map.shape();
    let array = matches!(shape.kind, ARRAY | PERCPU_ARRAY);
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut key: Option<Vec<u8>> = None;
    for _ in 0..shape.max_entries {
        let next = map.next_key(key.as_deref());
        let Some(next) = next.map_err(failed())? else {
            break;
        };
        let value = map.value(&next).map_err(failed())?;
        if let Some(value) = value.filter(|value| !array || value.iter().any(|byte| *byte != 0)) {
            bytes += (next.len() + value.len()) as u64;
            found.push((next.clone(), value));
        }
        if bytes > MOST_BYTES {
            return Err(open.refuse("a map of BPF with so much in it is not carried"));
        }
        key = Some(next);
    }
    Ok(found)
}
