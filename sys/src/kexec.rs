//! Loading another kernel and jumping into it (kexec_load(2), kexec_file_load(2), reboot(2)).

use crate::raw::syscall;
use crate::{PAGE_SIZE_U64, Result};
use nix::errno::Errno;
use std::convert::Infallible;

/// Most segments one call takes (`KEXEC_SEGMENT_MAX`, linux/kexec.h).
pub const SEGMENTS_MAX: usize = 16;

/// Bytes, and the physical memory they are to lie in when the new kernel starts.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The bytes. Memory behind them, up to the end of the page, becomes zero.
    pub data: &'a [u8],
    /// Physical address, a multiple of the page size.
    pub address: u64,
}

/// `struct kexec_segment` (linux/kexec.h).
#[repr(C)]
struct RawSegment {
    buf: *const u8,
    bufsz: usize,
    mem: u64,
    memsz: u64,
}

/// kexec_load(2) without flags: stages `segments`, to be entered at physical address `entry` in
/// 64-bit mode. The kernel copies them now into pages of its own and moves those in place at the
/// jump. They take the place of what was staged before; when the call fails, that stays.
///
/// # Errors
/// `EPERM` without CAP_SYS_BOOT, by `kernel.kexec_load_disabled`, `kernel.kexec_load_limit_reboot`
/// or lockdown; `EADDRNOTAVAIL` for addresses that are not page aligned; `EINVAL` when segments
/// overlap, are empty, or fill more than half of the memory; `ENOMEM`; `EBUSY` while another kexec
/// call is being made; `ENOSYS`.
pub fn load(entry: u64, segments: &[Segment<'_>]) -> Result<()> {
    if segments.is_empty() || segments.iter().any(|s| s.data.is_empty()) {
        return Err(Errno::EINVAL);
    }
    let raw: Vec<RawSegment> = segments
        .iter()
        .map(|s| RawSegment {
            buf: s.data.as_ptr(),
            bufsz: s.data.len(),
            mem: s.address,
            memsz: (s.data.len() as u64).next_multiple_of(PAGE_SIZE_U64),
        })
        .collect();
    let args = [entry, raw.len() as u64, raw.as_ptr() as u64, 0, 0, 0];
    // SAFETY: `raw` holds the stated number of segments, each naming a live slice and its length;
    // the kernel only reads them, and keeps no pointer.
    unsafe { syscall(libc::SYS_kexec_load, args) }.map(|_| ())
}

/// Forgets what is staged (kexec_load(2) with no segments).
///
/// # Errors
/// `EPERM`, `EBUSY` and `ENOSYS` as [`load`].
pub fn unload() -> Result<()> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_kexec_load, [0; 6]) }.map(|_| ())
}

fn permitted(answer: Result<u64>) -> Result<()> {
    match answer {
        // The permission is checked before the arguments (kernel/kexec.c, kernel/kexec_file.c).
        Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
        // More segments than there may be, or flags that do not exist, cannot be accepted.
        Ok(_) => Err(Errno::EPROTO),
    }
}

/// Asks whether [`load`] is there and allowed, changing nothing.
///
/// # Errors
/// `EPERM`, `ENOSYS` as [`load`].
pub fn probe_load() -> Result<()> {
    let args = [0, SEGMENTS_MAX as u64 + 1, 0, 0, 0, 0];
    // SAFETY: refused for the number of segments before the null pointer is looked at.
    permitted(unsafe { syscall(libc::SYS_kexec_load, args) })
}

/// Asks whether kexec_file_load(2) is there and allowed, changing nothing.
///
/// # Errors
/// `EPERM`, `ENOSYS`.
pub fn probe_file_load() -> Result<()> {
    let args = [u64::MAX, u64::MAX, 0, 0, u64::MAX, 0];
    // SAFETY: refused for its flags before descriptors or the command line are looked at.
    permitted(unsafe { syscall(libc::SYS_kexec_file_load, args) })
}

/// Leaves this kernel for the staged one: reboot(2) with `LINUX_REBOOT_CMD_KEXEC`. Devices are shut
/// down; nothing is synced and no process is told.
///
/// # Errors
/// Returns only when it failed: `EPERM` without CAP_SYS_BOOT, `EINVAL` when nothing is staged or
/// in a PID namespace other than the first, `EBUSY` while a kexec_load is being made.
pub fn jump() -> Result<Infallible> {
    let args = [
        u64::from(libc::LINUX_REBOOT_MAGIC1.cast_unsigned()),
        u64::from(libc::LINUX_REBOOT_MAGIC2.cast_unsigned()),
        u64::from(libc::LINUX_REBOOT_CMD_KEXEC.cast_unsigned()),
        0,
        0,
        0,
    ];
    // SAFETY: no pointers; when it succeeds, this program no longer exists.
    unsafe { syscall(libc::SYS_reboot, args) }?;
    Err(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_segments_the_kernel_would_take_for_an_unload() {
        assert_eq!(load(0, &[]), Err(Errno::EINVAL));
        let empty = Segment {
            data: &[],
            address: 0,
        };
        assert_eq!(load(0, &[empty]), Err(Errno::EINVAL));
    }

    #[test]
    fn probes_answer_or_name_the_reason() {
        for answer in [probe_load(), probe_file_load()] {
            assert!(
                matches!(answer, Ok(()) | Err(Errno::EPERM | Errno::ENOSYS)),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn an_accepted_probe_is_an_error() {
        assert_eq!(permitted(Ok(0)), Err(Errno::EPROTO));
        assert_eq!(permitted(Err(Errno::EPERM)), Err(Errno::EPERM));
    }
}
