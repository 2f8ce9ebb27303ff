//! What an address space is registered for with membarrier(2).

use sys::Errno;
use sys::batch::{Batch, CallIndex, Output};
use sys::tracee::{Tracee, TraceeError};

const MEMBARRIER: i64 = 324;
/// `MEMBARRIER_CMD_GET_REGISTRATIONS`, from 6.3 on.
const GET_REGISTRATIONS: i32 = 1 << 9;
/// Commands that fail with EPERM without a registration, and the commands that register:
/// `PRIVATE_EXPEDITED`, `PRIVATE_EXPEDITED_SYNC_CORE`, `PRIVATE_EXPEDITED_RSEQ`.
const PRIVATE: [(i32, u32); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];

pub(super) struct Asked(CallIndex);

pub(super) fn ask(batch: &mut Batch) -> Asked {
    let args = [GET_REGISTRATIONS.into(), 0.into(), 0.into()];
    Asked(batch.try_call("asking for memory barriers", MEMBARRIER, args))
}

/// The registering commands, as bits.
pub(super) fn read(
    Asked(all): Asked,
    out: &Output,
    first: &mut Tracee,
) -> Result<u32, TraceeError> {
    if let Ok(found) = out.result(all) {
        return Ok(found as u32);
    }
    // Older kernels are tried. Only `GLOBAL_EXPEDITED` cannot be, which changes no result.
    let mut batch = Batch::new();
    let tried = PRIVATE.map(|(command, registers)| {
        let args = [command.into(), 0.into(), 0.into()];
        let call = batch.try_call("trying a memory barrier", MEMBARRIER, args);
        (call, registers)
    });
    let out = first.run(&batch)?;
    Ok(tried
        .into_iter()
        .filter(|(call, _)| match out.result(*call) {
            Ok(_) => true,
            Err(errno) => errno != Errno::EPERM && errno != Errno::EINVAL && errno != Errno::ENOSYS,
        })
        .fold(0, |all, (_, registers)| all | registers))
}
