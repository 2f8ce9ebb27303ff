//! membarrier(2)

use anyhow::{Result, bail};

use crate::kit::{Setting, Watch, args, raw, same};

/// `PRIVATE_EXPEDITED`, `PRIVATE_EXPEDITED_SYNC_CORE`, `PRIVATE_EXPEDITED_RSEQ`: a barrier, and what registers for it.
const PLAIN: (u64, u64) = (1 << 3, 1 << 4);
const SYNC_CORE: (u64, u64) = (1 << 5, 1 << 6);
const RSEQ: (u64, u64) = (1 << 7, 1 << 8);

fn barrier(command: u64) -> i64 {
    raw(libc::SYS_membarrier, args([command]))
}

/// Two kinds of barriers, and not the one that the kernel tells together with them.
pub(crate) fn registered(_: &Setting) -> Result<Watch> {
    for (_, register) in [SYNC_CORE, RSEQ] {
        if barrier(register) != 0 {
            bail!("registering for barriers fails");
        }
    }
    Ok(Watch::new(|| {
        let found = [PLAIN, SYNC_CORE, RSEQ].map(|(command, _)| barrier(command));
        same("barriers", &[-i64::from(libc::EPERM), 0, 0], &found)
    })
    .spoiled_by(|| same("registering", &0, &barrier(PLAIN.1))))
}
