//! Current and root directory, file mode creation mask.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::files::path::check_same;
use crate::restore::Restore;
use std::os::fd::AsRawFd;
use sys::batch::Batch;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives().filter(|(_, live)| live.fs_of.is_none()) {
        check_same(&live.root)?;
        let mut batch = Batch::new();
        if let Some(removed) = live.cwd_removed {
            let fd = crate::files::removed_directory(restore, removed)?;
            let args = [restore.self_pidfd.as_raw_fd().into(), fd.into(), 0.into()];
            let got = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
            batch.call("entering its directory", nr::FCHDIR, [got.into()]);
            batch.call("closing a copy", nr::CLOSE, [got.into()]);
        } else {
            check_same(&live.cwd)?;
            let cwd = batch.string(&live.cwd.path);
            batch.call("entering its directory", nr::CHDIR, [cwd.into()]);
        }
        if live.root.path != b"/" {
            let root = batch.string(&live.root.path);
            batch.call("changing its root", nr::CHROOT, [root.into()]);
        }
        batch.call("setting its umask", nr::UMASK, [live.umask.into()]);
        run(
            pid,
            "setting its directories",
            &mut restore.task(pid)?.first,
            &batch,
        )?;
    }
    Ok(())
}
