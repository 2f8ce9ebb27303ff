//! The local descriptor table: segments of a process's own (modify_ldt(2)).

use persist_mem::manifest::AddressSpace;
use sys::batch::Batch;
use sys::tracee::{Tracee, TraceeError};

const MODIFY_LDT: i64 = 154;
const READ: i32 = 0;
/// Bytes of a descriptor.
const ENTRY: usize = 8;
/// Bytes that are read, half of the largest table: a batch has no room for more.
const MOST: usize = 32 << 10;

/// Reads it; empty for nearly all.
pub(super) fn capture(first: &mut Tracee, mm: &mut AddressSpace) -> Result<(), TraceeError> {
    // A process without a table reads nothing, one with a table as much as it asks for.
    if read(first, ENTRY)?.is_some() {
        let table = read(first, MOST)?.unwrap_or_default();
        let used = table.iter().rposition(|byte| *byte != 0);
        let len = used.map_or(0, |last| (last + 1).next_multiple_of(ENTRY));
        mm.ldt = table[..len].to_vec();
    }
    Ok(())
}

fn read(first: &mut Tracee, len: usize) -> Result<Option<Vec<u8>>, TraceeError> {
    let mut batch = Batch::new();
    let table = batch.space(len);
    let args = [READ.into(), table.into(), len.into()];
    let call = batch.try_call("reading its segment table", MODIFY_LDT, args);
    let out = first.run(&batch)?;
    // ENOSYS where the kernel has none.
    let there = out.result(call).is_ok_and(|read| read != 0);
    Ok(there.then(|| out.bytes(table).to_vec()))
}
