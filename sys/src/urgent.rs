//! Running before others.

use crate::Result;
use crate::raw::syscall;

/// `SCHED_FIFO`, priority 1; children do not inherit it (`SCHED_FLAG_RESET_ON_FORK`).
const FIRST: Attr = Attr {
    size: ATTR_SIZE,
    policy: 1,
    flags: 1,
    nice: 0,
    priority: 1,
    times: [0; 3],
};
/// `SCHED_ATTR_SIZE_VER0`
const ATTR_SIZE: u32 = size_of::<Attr>() as u32;

/// `struct sched_attr` (include/uapi/linux/sched/types.h), its first version.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    times: [u64; 3],
}

/// The calling thread runs before all that are scheduled the ordinary way until this is dropped, which
/// must happen in the same thread.
#[derive(Debug)]
pub struct Urgent(Attr);

impl Urgent {
    /// Begins.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_NICE`, or where the control group has no real-time budget.
    pub fn begin() -> Result<Urgent> {
        let mut before = FIRST;
        let size = u64::from(ATTR_SIZE);
        let args = [0, (&raw mut before) as u64, size, 0, 0, 0];
        // SAFETY: `before` has `size` bytes and lives through the call.
        unsafe { syscall(libc::SYS_sched_getattr, args) }?;
        set(&FIRST)?;
        Ok(Urgent(before))
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // What it had before it may have again.
        let _ = set(&self.0);
    }
}

fn set(attr: &Attr) -> Result<()> {
    let args = [0, core::ptr::from_ref(attr) as u64, 0, 0, 0, 0];
    // SAFETY: the kernel reads `attr.size` bytes of `attr`.
    unsafe { syscall(libc::SYS_sched_setattr, args) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> u64 {
        // SAFETY: no pointers.
        unsafe { syscall(libc::SYS_sched_getscheduler, [0; 6]) }.unwrap()
    }

    #[test]
    fn it_ends_when_it_is_dropped() {
        let before = policy();
        let urgent = Urgent::begin();
        if urgent.is_ok() {
            // SCHED_RESET_ON_FORK
            assert_eq!(policy(), 1 | 0x4000_0000);
        }
        drop(urgent);
        assert_eq!(policy(), before);
    }
}
