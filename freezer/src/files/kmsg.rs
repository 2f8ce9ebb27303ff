//! `/dev/kmsg` opened for reading: the next record.

use super::Open;
use crate::FreezerError;
use persist_mem::manifest::DescriptionKind;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use sys::kmsg::{read_number, seek_to};

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;
const O_NONBLOCK: u32 = 0o4000;

/// Whether it is read from. Who only writes has no position.
pub(super) fn is_reader(open: &Open<'_>) -> Result<bool, FreezerError> {
    Ok(open.flags()? & O_ACCMODE != O_WRONLY)
}

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let boot = boot.map_err(|cause| FreezerError::Proc {
        pid: open.pid,
        what: "sys/kernel/random/boot_id".into(),
        cause,
    })?;
    let flags = open.flags()?;
    let set = |flags| {
        let set = sys::fds::set_status_flags(open.copy, flags);
        set.map_err(open.call("setting its flags"))
    };
    set(flags | O_NONBLOCK)?;
    let next = next(open);
    set(flags)?;
    Ok(DescriptionKind::Kmsg {
        path: open.link.to_vec(),
        next: next.map_err(open.call("reading its position"))?,
        boot: boot.trim_end().to_owned(),
    })
}

/// The record that would be read next. The position cannot be asked for, so that record is read, and the
/// position set before it again.
fn next(open: &Open<'_>) -> sys::Result<u64> {
    if let Some(number) = read_number(open.copy)? {
        seek_to(open.copy, number)?;
        return Ok(number);
    }
    // At the end: behind the last one, which a description of our own finds.
    let mut options = File::options();
    let log = options
        .read(true)
        .custom_flags(O_NONBLOCK.cast_signed())
        .open("/dev/kmsg");
    let log = log.map_err(|e| sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    let mut next = 0;
    while let Some(number) = read_number(&log)? {
        next = number + 1;
    }
    Ok(next)
}
