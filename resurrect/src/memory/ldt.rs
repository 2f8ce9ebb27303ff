//! The local descriptor table: segments of a process's own (modify_ldt(2)).

use crate::ResurrectError;
use crate::calls::{Calls, nr};

/// Bytes of a descriptor.
const ENTRY: usize = 8;
/// Writes an entry, with the bit for the system's use.
const WRITE: i32 = 0x11;

/// Fills the table in.
pub(super) fn fill(calls: &mut Calls<'_>, table: &[u8]) -> Result<(), ResurrectError> {
    for (number, bytes) in (0..).zip(table.chunks_exact(ENTRY)) {
        let descriptor = bytes.try_into().map_or(0, u64::from_le_bytes);
        if descriptor == 0 {
            continue;
        }
        let entry = user_desc(number, descriptor);
        let bytes: Vec<u8> = entry.iter().flat_map(|word| word.to_le_bytes()).collect();
        let batch = calls.batch();
        let entry = batch.data(&bytes);
        let args = [WRITE.into(), entry.into(), bytes.len().into()];
        batch.call("writing its segment table", nr::MODIFY_LDT, args);
        calls.breathe()?;
    }
    Ok(())
}

/// `struct user_desc` (arch/x86/include/uapi/asm/ldt.h) of a descriptor: number, base, limit, flags.
fn user_desc(number: u32, descriptor: u64) -> [u32; 4] {
    let field = |at: u32, bits: u32| (descriptor >> at & ((1 << bits) - 1)) as u32;
    let base = field(16, 24) | field(56, 8) << 24;
    let limit = field(0, 16) | field(48, 4) << 16;
    let (writable, contents, present) = (field(41, 1), field(42, 2), field(47, 1));
    let (usable, wide, pages) = (field(52, 1), field(54, 1), field(55, 1));
    let flags =
        wide | contents << 1 | (writable ^ 1) << 3 | pages << 4 | (present ^ 1) << 5 | usable << 6;
    [number, base, limit, flags]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_apart() {
        // Data, writable, 32 bits, in pages, of the whole space but for its base.
        assert_eq!(
            user_desc(3, 0x12cf_f334_5678_ffff),
            [3, 0x1234_5678, 0xf_ffff, 0x11]
        );
        // The same, read-only, not present, in bytes, usable.
        assert_eq!(user_desc(0, 0x0050_7100_0000_00ff), [0, 0, 0xff, 0x69]);
    }
}
