//! The nice value of a session's autogroup (sched(7)).

use crate::ResurrectError;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use std::collections::BTreeSet;
use std::io::Write;
use sys::{Errno, Pid, procdir};

/// Sets those that are not what a new session has, for sessions that are the tree's own.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut done = BTreeSet::new();
    for process in &restore.manifest.processes {
        let Some(live) = process.live().filter(|live| live.autogroup_nice != 0) else {
            continue;
        };
        let pid = process.pid;
        let host = restore.task(pid)?.host_pid();
        if !done.insert(process.sid) || is_ours(host) {
            continue;
        }
        let failed = || ResurrectError::call(pid, "setting its autogroup's nice value");
        let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        procdir::open(host, "autogroup", OFlag::O_WRONLY)
            .map_err(failed())?
            .write_all(live.autogroup_nice.to_string().as_bytes())
            .map_err(|e| failed()(errno(e)))?;
    }
    Ok(())
}

/// Whether a process is in this process's session, as those are whose session is not part of the tree.
fn is_ours(host: Pid) -> bool {
    let of = |pid: Option<Pid>| nix::unistd::getsid(pid.map(|p| nix::unistd::Pid::from_raw(p.0)));
    of(None).is_ok_and(|ours| of(Some(host)) == Ok(ours))
}
