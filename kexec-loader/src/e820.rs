//! The memory map the new kernel is given.

use std::ops::Range;

/// RAM.
pub const RAM: u32 = 1;
/// Set aside for a driver (`E820_TYPE_SOFT_RESERVED`): the kernel touches none of it, and hands it
/// out as memory later when asked to.
pub const SOFT_RESERVED: u32 = 0xefff_ffff;

/// Below this the map stays as the firmware gave it: real mode code, ACPI's pointers.
pub const LOW: u64 = 1 << 20;

/// `struct boot_e820_entry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Physical bytes.
    pub range: Range<u64>,
    /// e820 type.
    pub kind: u32,
}

/// Bytes of an entry in `boot_params`.
pub const ENTRY_SIZE: usize = 20;

impl Entry {
    /// As `boot_params` has it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.range.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.range.end - self.range.start).to_le_bytes());
        bytes[16..].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }
}

/// The firmware's map with all RAM soft reserved but for the first MiB and `window` (ascending,
/// not overlapping).
#[must_use]
pub fn build(firmware: &[Entry], window: &[Range<u64>]) -> Vec<Entry> {
    let mut map = Vec::new();
    for entry in firmware {
        if entry.kind != RAM {
            push(&mut map, entry.range.clone(), entry.kind);
            continue;
        }
        let Range { start, end } = entry.range;
        push(&mut map, start..end.min(LOW), RAM);
        let mut at = start.max(LOW);
        for piece in window {
            let usable = piece.start.max(at)..piece.end.min(end);
            if usable.is_empty() {
                continue;
            }
            push(&mut map, at..usable.start, SOFT_RESERVED);
            push(&mut map, usable.clone(), RAM);
            at = usable.end;
        }
        push(&mut map, at..end, SOFT_RESERVED);
    }
    map
}

fn push(map: &mut Vec<Entry>, range: Range<u64>, kind: u32) {
    if range.is_empty() {
        return;
    }
    match map.last_mut() {
        Some(last) if last.kind == kind && last.range.end == range.start => {
            last.range.end = range.end;
        }
        _ => map.push(Entry { range, kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(start: u64, end: u64, kind: u32) -> Entry {
        Entry {
            range: start..end,
            kind,
        }
    }

    #[test]
    fn all_but_the_window_is_set_aside() {
        const MIB: u64 = 1 << 20;
        let firmware = [
            entry(0, 0x9fc00, RAM),
            entry(0x9fc00, 0xa0000, 2),
            entry(MIB, 1024 * MIB, RAM),
            entry(1024 * MIB, 1025 * MIB, 3),
            entry(4096 * MIB, 5000 * MIB, RAM),
        ];
        let window = [0..64 * MIB, 512 * MIB..640 * MIB, 4900 * MIB..9999 * MIB];
        let map = build(&firmware, &window);
        assert_eq!(
            map,
            [
                entry(0, 0x9fc00, RAM),
                entry(0x9fc00, 0xa0000, 2),
                entry(MIB, 64 * MIB, RAM),
                entry(64 * MIB, 512 * MIB, SOFT_RESERVED),
                entry(512 * MIB, 640 * MIB, RAM),
                entry(640 * MIB, 1024 * MIB, SOFT_RESERVED),
                entry(1024 * MIB, 1025 * MIB, 3),
                entry(4096 * MIB, 4900 * MIB, SOFT_RESERVED),
                entry(4900 * MIB, 5000 * MIB, RAM),
            ]
        );
        assert!(
            build(&firmware, &[])
                .iter()
                .all(|e| e.kind != RAM || e.range.end <= LOW)
        );
    }

    fn runs() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..6_u64, 1..6_u64), 0..8).prop_map(|gaps| {
            let mut at = 0;
            gaps.into_iter()
                .map(|(gap, len)| {
                    let start = at + gap * (LOW / 4);
                    at = start + len * (LOW / 4);
                    start..at
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_byte_has_the_right_kind(
            firmware in runs(), kinds in proptest::collection::vec(1..4_u32, 8), window in runs()
        ) {
            let firmware: Vec<Entry> = firmware
                .into_iter()
                .zip(kinds)
                .map(|(range, kind)| Entry { range, kind })
                .collect();
            let map = build(&firmware, &window);
            let kind_at = |map: &[Entry], at: u64| {
                map.iter().find(|e| e.range.contains(&at)).map(|e| e.kind)
            };
            for at in (0..60 * LOW / 4).step_by((LOW / 8) as usize) {
                let want = match kind_at(&firmware, at) {
                    Some(RAM) if at >= LOW && !window.iter().any(|w| w.contains(&at)) => {
                        Some(SOFT_RESERVED)
                    }
                    other => other,
                };
                prop_assert_eq!(kind_at(&map, at), want, "at {:#x}", at);
            }
            prop_assert!(map.windows(2).all(|w| w[0].range.end <= w[1].range.start));
        }
    }
}
