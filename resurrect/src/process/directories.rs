//! Current and root directory, file mode creation mask.

use crate::ResurrectError;
use crate::calls::nr;
use crate::error::Subject;
use crate::files::path::check_same;
use crate::files::vanished;
use crate::restore::Restore;
use persist_mem::manifest::Directories;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use sys::Pid;
use sys::batch::Batch;

/// Sets them: those of threads that have their own first, while nobody has another root.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut of_threads = BTreeMap::new();
    let mut of_processes = BTreeMap::new();
    for (pid, live) in restore.lives() {
        for thread in &live.threads {
            // It was made with those of nobody else (`thread/birth.rs`).
            let own = thread.directories.as_ref().and_then(|own| own.own());
            let Some(own) = own else { continue };
            let mut batch = Batch::new();
            enter(restore, (pid, &mut batch), own)
                .map_err(|error| error.about(Subject::Process(pid)))?;
            of_threads.insert((pid, Some(thread.tid)), batch);
        }
        if live.fs_of.is_none() {
            let mut batch = Batch::new();
            enter(restore, (pid, &mut batch), &live.directories)
                .map_err(|error| error.about(Subject::Process(pid)))?;
            of_processes.insert((pid, None), batch);
        }
    }
    restore.together("setting threads' directories", of_threads)?;
    restore
        .together("setting directories", of_processes)
        .map(drop)
}

fn enter(
    restore: &mut Restore<'_>,
    (pid, batch): (Pid, &mut Batch),
    directories: &Directories,
) -> Result<(), ResurrectError> {
    check_same(&directories.root)?;
    if let Some(fd) = held(restore, pid, directories)? {
        let args = [restore.self_pidfd.as_raw_fd().into(), fd.into(), 0.into()];
        let got = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
        batch.call("entering its directory", nr::FCHDIR, [got.into()]);
        batch.call("closing a copy", nr::CLOSE, [got.into()]);
    } else {
        let cwd = batch.string(&directories.cwd.path);
        batch.call("entering its directory", nr::CHDIR, [cwd.into()]);
    }
    if directories.root.path != b"/" {
        let root = batch.string(&directories.root.path);
        batch.call("changing its root", nr::CHROOT, [root.into()]);
    }
    batch.call("setting its umask", nr::UMASK, [directories.umask.into()]);
    log::trace!("process {pid}: {directories:?}");
    Ok(())
}

/// Whether the kernel makes up what is there, another one something else.
fn is_by_kernel(path: &[u8]) -> bool {
    let roots: [&[u8]; 2] = [b"/proc/", b"/sys/"];
    roots.iter().any(|root| path.starts_with(root))
}

/// This process's descriptor of a current directory that no path leads to.
fn held(
    restore: &mut Restore<'_>,
    pid: Pid,
    directories: &Directories,
) -> Result<Option<i32>, ResurrectError> {
    if let Some(removed) = directories.cwd_removed {
        return crate::files::removed_directory(restore, removed).map(Some);
    }
    let gone = directories.cwd.path.ends_with(b" (deleted)");
    match check_same(&directories.cwd) {
        Err(_) if gone => vanished::directory(restore).map(Some),
        Err(why) if restore.is_upgrade() && is_by_kernel(&directories.cwd.path) => {
            log::error!("process {pid}: {why}: it is in a directory that is gone");
            vanished::directory(restore).map(Some)
        }
        found => found.map(|()| None),
    }
}
