//! Maps of BPF (bpf(2)).

use std::collections::BTreeMap;

use anyhow::Result;

use crate::kit::{Setting, Watch, args, not_here, raw, same, sys};

const CREATE: u64 = 0;
const LOOKUP: u64 = 1;
const UPDATE: u64 = 2;
const NEXT: u64 = 4;
const FREEZE: u64 = 22;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const LPM_TRIE: u32 = 11;
const NO_PREALLOC: u32 = 1;

fn bpf(command: u64, attributes: &[u64]) -> i64 {
    let len = size_of_val(attributes) as u64;
    raw(
        libc::SYS_bpf,
        args([command, attributes.as_ptr() as u64, len]),
    )
}

/// A map with keys and values of eight bytes, an array with keys of four.
fn make(kind: u32, entries: u32, flags: u32) -> Result<i32> {
    let key = if kind == ARRAY { 4 } else { 8 };
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let name = u64::from_ne_bytes(*b"a_table\0");
    let made = bpf(
        CREATE,
        &[
            pair(kind, key),
            pair(8, entries),
            pair(flags, 0),
            // numa_node, the first half of the name.
            name << 32,
            name >> 32,
            0,
        ],
    );
    if [-libc::ENOSYS, -libc::EPERM].contains(&(made as i32)) {
        return not_here("no bpf");
    }
    Ok(sys("making a map", made)? as i32)
}

fn put(map: i32, key: u64, value: u64) -> i64 {
    bpf(
        UPDATE,
        &[
            map as u64,
            &raw const key as u64,
            &raw const value as u64,
            0,
        ],
    )
}

/// Everything in it.
fn all(map: i32) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let mut key: u64;
    let (mut next, mut value) = (0_u64, 0_u64);
    let mut from = 0;
    while bpf(NEXT, &[map as u64, from, &raw mut next as u64, 0]) == 0 {
        key = next;
        from = &raw const key as u64;
        bpf(LOOKUP, &[map as u64, from, &raw mut value as u64, 0]);
        found.insert(std::hint::black_box(key), std::hint::black_box(value));
    }
    found
}

/// Its lines in fdinfo but for its number and inode, and what another kernel counts otherwise: mounts, and the memory of
/// a map.
fn told(map: i32) -> Result<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{map}"))?;
    let other = ["map_id", "ino", "mnt_id", "memlock"];
    let same = |line: &&str| !other.iter().any(|one| line.starts_with(one));
    Ok(info.lines().filter(same).collect::<Vec<_>>().join("\n"))
}

/// Tables by keys and by numbers, one that may not be changed any more.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let maps = [
        make(HASH, 50, NO_PREALLOC)?,
        make(HASH, 50, 0)?,
        make(ARRAY, 9, 0)?,
        make(ARRAY, 9, 0)?,
        make(LPM_TRIE, 9, NO_PREALLOC)?,
    ];
    let [changed, full, array, frozen, trie] = maps;
    for key in 0..50 {
        sys("filling a map", put(full, key * 7, key))?;
    }
    for key in 0..20 {
        sys("filling a map", put(changed, key << 40, key + 5))?;
    }
    for map in [array, frozen] {
        for key in [0, 3, 8] {
            sys("filling a map", put(map, key, key + 100))?;
        }
    }
    // The first 16 bits of 32.
    sys("filling a map", put(trie, 16 | 0xabcd << 32, 9))?;
    sys("freezing a map", bpf(FREEZE, &[frozen as u64]))?;
    let seen = move || -> Result<Vec<_>> {
        maps.iter()
            .map(|map| Ok((all(*map), told(*map)?)))
            .collect()
    };
    let mut before = seen()?;
    let mut next = 0;
    Ok(Watch::new(move || {
        same("maps", &before, &seen()?)?;
        same("a frozen one", &i64::from(-libc::EPERM), &put(frozen, 0, 1))?;
        same("a full one", &i64::from(-libc::E2BIG), &put(full, 1, 1))?;
        next += 1;
        sys("changing a map", put(changed, next << 40, next))?;
        before = seen()?;
        Ok(())
    })
    .spoiled_by(move || sys("changing a map", put(array, 1, 1)).map(drop)))
}
