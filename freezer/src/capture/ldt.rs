//! The local descriptor table: segments of a process's own (modify_ldt(2)).

use persist_mem::manifest::AddressSpace;
use sys::batch::{Batch, Buffer, CallIndex, Output};
use sys::tracee::{Tracee, TraceeError};

const MODIFY_LDT: i64 = 154;
const READ: i32 = 0;
/// Bytes of a descriptor.
const ENTRY: usize = 8;
/// Bytes of the largest table (arch/x86/include/uapi/asm/ldt.h, `LDT_ENTRIES`).
const MOST: usize = 64 << 10;

/// The question whether there is one.
pub(super) struct Asked(CallIndex);

pub(super) fn ask(batch: &mut Batch) -> Asked {
    Asked(read_some(batch, ENTRY).0)
}

/// Reads it; empty for nearly all.
pub(super) fn read(
    Asked(call): &Asked,
    out: &Output,
    first: &mut Tracee,
    mm: &mut AddressSpace,
) -> Result<(), TraceeError> {
    // A process without a table reads nothing, one with a table as much as it asks for. ENOSYS where the kernel
    // has none.
    if out.result(*call).is_ok_and(|read| read != 0) {
        let mut batch = Batch::new();
        let (call, table) = read_some(&mut batch, MOST);
        let out = first.run(&batch)?;
        let there = out.result(call).is_ok_and(|read| read != 0);
        let table = if there { out.bytes(table) } else { &[] };
        let used = table.iter().rposition(|byte| *byte != 0);
        let len = used.map_or(0, |last| (last + 1).next_multiple_of(ENTRY));
        mm.ldt = table[..len].to_vec();
    }
    Ok(())
}

fn read_some(batch: &mut Batch, len: usize) -> (CallIndex, Buffer) {
    let table = batch.space(len);
    let args = [READ.into(), table.into(), len.into()];
    let call = batch.try_call("reading its segment table", MODIFY_LDT, args);
    (call, table)
}
