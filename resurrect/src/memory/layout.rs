//! Heap, stack, arguments and executable of an address space (prctl(2), `PR_SET_MM_MAP`).

use super::Builder;
use crate::ResurrectError;
use crate::calls::nr;
use crate::error::Subject;
use persist_mem::manifest::AddressSpace;
use sys::batch::Batch;

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
const AT_FDCWD: i32 = -100;
/// `struct prctl_mm_map` (include/uapi/linux/prctl.h).
const SIZE: usize = 104;
/// Offset of its pointer to the auxiliary vector; length and descriptor follow.
const AUXV: usize = 88;

/// Calls that set them.
pub(super) fn set(
    builder: &Builder<'_>,
    batch: &mut Batch,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let l = &mm.layout;
    let words = [
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(SIZE, 0);
    let auxv_len = u32::try_from(mm.auxv.len()).unwrap_or(0);
    bytes[AUXV + 8..AUXV + 12].copy_from_slice(&auxv_len.to_le_bytes());

    // No other descriptor is there below the highest: this one gets number 0.
    bytes[AUXV + 12..].copy_from_slice(&0_u32.to_le_bytes());
    let removed = mm
        .exe_object
        .and_then(|object| builder.objects.descriptor(object, false));
    let exe = if let Some(fd) = removed {
        let args = [builder.pidfd.into(), fd.into(), 0.into()];
        batch.call("taking its executable", nr::PIDFD_GETFD, args)
    } else {
        crate::files::path::check_same(&mm.exe)
            .map_err(|error| error.about(Subject::Process(builder.pid)))?;
        let path = batch.string(&mm.exe.path);
        let args = [AT_FDCWD.into(), path.into(), 0.into()];
        batch.call("opening its executable", nr::OPENAT, args)
    };
    let auxv = batch.data(&mm.auxv);
    let map = batch.data(&bytes);
    batch.pointer(map, AUXV, auxv);
    let args = [
        PR_SET_MM.into(),
        PR_SET_MM_MAP.into(),
        map.into(),
        SIZE.into(),
        0.into(),
    ];
    batch.call("setting its memory layout", nr::PRCTL, args);
    batch.call("closing its executable", nr::CLOSE, [exe.into()]);
    Ok(())
}
