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
    let Ok(found) = out.result(all) else {
        // Older kernels are tried. Only `GLOBAL_EXPEDITED` cannot be, which changes no result.
        return tried(&PRIVATE, first);
    };
    let (found, (_, plain)) = (found as u32, PRIVATE[0]);
    // The other kinds are told together with the plain one, whose barriers may fail nevertheless.
    let others = PRIVATE[1..].iter().any(|(_, other)| found & other != 0);
    match others && found & plain != 0 {
        true => Ok(found & !plain | tried(&PRIVATE[..1], first)?),
        false => Ok(found),
    }
}

/// The registering commands of those barriers that do not fail.
fn tried(barriers: &[(i32, u32)], first: &mut Tracee) -> Result<u32, TraceeError> {
    let mut batch = Batch::new();
    let calls: Vec<_> = barriers
        .iter()
        .map(|(command, registers)| {
            let args = [(*command).into(), 0.into(), 0.into()];
            let call = batch.try_call("trying a memory barrier", MEMBARRIER, args);
            (call, *registers)
        })
        .collect();
    let out = first.run(&batch)?;
    Ok(calls
        .into_iter()
        .filter(|(call, _)| match out.result(*call) {
            Ok(_) => true,
            Err(errno) => errno != Errno::EPERM && errno != Errno::EINVAL && errno != Errno::ENOSYS,
        })
        .fold(0, |all, (_, registers)| all | registers))
}
