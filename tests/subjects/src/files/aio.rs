//! io_setup(2)

use std::fs;

use anyhow::Result;

use crate::kit::files::open;
use crate::kit::{Setting, Watch, args, not_here, raw, same, sys};

/// A context in which reads can be made.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, "contents")?;
    let file = open(&path, libc::O_RDONLY)?;
    let mut context = 0_u64;
    if raw(libc::SYS_io_setup, args([16, &raw mut context as u64])) != 0 {
        return not_here("no AIO");
    }
    Ok(Watch::new(move || {
        let mut bytes = [0_u8; 8];
        // struct iocb: data, key, opcode (IOCB_CMD_PREAD 0), descriptor, buffer, length, offset.
        let mut block = [0_u64; 8];
        block[0] = 0x1234;
        block[2] = (file as u64) << 32;
        block[3] = bytes.as_mut_ptr() as u64;
        block[4] = 8;
        let blocks = [block.as_mut_ptr() as u64];
        let done = raw(
            libc::SYS_io_submit,
            args([context, 1, blocks.as_ptr() as u64]),
        );
        same("submitted", &1, &done)?;
        let mut event = [0_u64; 4];
        let done = raw(
            libc::SYS_io_getevents,
            args([context, 1, 1, event.as_mut_ptr() as u64]),
        );
        same("events", &1, &done)?;
        same("data and result", &(0x1234, 8), &(event[0], event[2]))?;
        same("the bytes", b"contents", &bytes)
    })
    .spoiled_by(move || sys("io_destroy", raw(libc::SYS_io_destroy, args([context]))).map(drop)))
}
