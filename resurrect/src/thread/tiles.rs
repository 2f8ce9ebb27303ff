//! AMX: a process has to ask for it, and the kernel makes room for a thread's tiles when it uses them first
//! (arch/x86/kernel/fpu/xstate.c). Before that it takes none for the thread.

use super::together;
use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use sys::batch::Batch;
use sys::xstate;

/// arch_prctl(2).
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
const XTILEDATA: u64 = 18;

/// Asks for it, and has threads that have tiles use some. Behind signal stacks, which are to be large enough then.
pub(crate) fn ask(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    if restore.lives().all(|(_, live)| !live.may_use_tiles) {
        return Ok(());
    }
    together(restore, "asking for AMX", |_, live, thread| {
        let mut batch = Batch::new();
        let first = live.threads.first().map(|first| first.tid);
        if live.may_use_tiles && first == Some(thread.tid) {
            let args = [ARCH_REQ_XCOMP_PERM.into(), XTILEDATA.into()];
            batch.call("asking for AMX", nr::ARCH_PRCTL, args);
        }
        batch
    })?;
    together(restore, "using AMX", |_, _, thread| {
        let mut batch = Batch::new();
        if xstate::in_use(&thread.xstate) & xstate::TILES != 0 {
            batch.use_tiles();
        }
        batch
    })
}
