//! Calls whose maker a peer sees (`SO_PEERCRED`, `SO_PEERGROUPS`): made by the process with that id, with
//! those users and groups.

use super::names::Reach;
use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::{ResurrectError, tree};
use nix::libc as c;
use persist_mem::manifest::PeerCredentials;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::batch::{Arg, Batch};
use sys::{Pid, process, socket};

const NONE: i32 = -1;

/// listen(2).
pub(super) fn listen(
    restore: &mut Restore<'_>,
    who: Option<&PeerCredentials>,
    fd: BorrowedFd<'_>,
    backlog: u32,
) -> Result<(), ResurrectError> {
    let Some(pid) = actor(restore, who)? else {
        return socket::listen(fd, backlog).map_err(ResurrectError::own("listening"));
    };
    let mut batch = Batch::new();
    become_peer(&mut batch, who);
    let copy = take(restore, &mut batch, fd);
    batch.call("listen", nr::LISTEN, [copy, u64::from(backlog).into()]);
    batch.call("closing a copy", nr::CLOSE, [copy]);
    become_root(&mut batch, who);
    act(restore, pid, "listening as its peer saw it", &batch).map(drop)
}

/// connect(2).
pub(super) fn connect(
    restore: &mut Restore<'_>,
    who: Option<&PeerCredentials>,
    fd: BorrowedFd<'_>,
    to: &Reach,
) -> Result<(), ResurrectError> {
    let Some(pid) = actor(restore, who)? else {
        return to
            .with(|address| socket::connect(fd, address))
            .map_err(ResurrectError::own("connecting a unix socket"));
    };
    let mut batch = Batch::new();
    become_peer(&mut batch, who);
    let copy = take(restore, &mut batch, fd);
    let (dir, address) = to.address();
    if let Some(dir) = dir {
        let dir = batch.string(dir.as_os_str().as_bytes());
        batch.call("changing the directory", nr::CHDIR, [Arg::from(dir)]);
    }
    let len = address.len() as u64;
    let address = batch.data(&address);
    batch.call("connect", nr::CONNECT, [copy, address.into(), len.into()]);
    batch.call("closing a copy", nr::CLOSE, [copy]);
    become_root(&mut batch, who);
    if dir.is_some() {
        let root = batch.string(b"/");
        batch.call("leaving the directory", nr::CHDIR, [Arg::from(root)]);
    }
    act(restore, pid, "connecting as its peer saw it", &batch).map(drop)
}

/// Pairs made by one batch.
const AT_ONCE: usize = 128;

/// socketpair(2), `count` times.
pub(super) fn pairs(
    restore: &mut Restore<'_>,
    who: Option<&PeerCredentials>,
    kind: i32,
    count: usize,
) -> Result<Vec<(OwnedFd, OwnedFd)>, ResurrectError> {
    let mut made = Vec::new();
    let Some(pid) = actor(restore, who)? else {
        for _ in 0..count {
            let pair = socket::pair(c::AF_UNIX, kind, 0);
            made.push(pair.map_err(ResurrectError::own("making a pair"))?);
        }
        return Ok(made);
    };
    while made.len() < count {
        some_pairs(
            restore,
            pid,
            who,
            kind,
            AT_ONCE.min(count - made.len()),
            &mut made,
        )?;
    }
    finish(restore, pid)?;
    Ok(made)
}

/// socketpair(2).
pub(super) fn pair(
    restore: &mut Restore<'_>,
    who: Option<&PeerCredentials>,
    kind: i32,
) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
    let made = pairs(restore, who, kind, 1)?;
    let none = ResurrectError::own("making a pair");
    made.into_iter()
        .next()
        .ok_or_else(|| none(sys::Errno::EBADF))
}

fn some_pairs(
    restore: &mut Restore<'_>,
    pid: Pid,
    who: Option<&PeerCredentials>,
    kind: i32,
    count: usize,
    made: &mut Vec<(OwnedFd, OwnedFd)>,
) -> Result<(), ResurrectError> {
    let doing = "making pairs as they were seen";
    let mut batch = Batch::new();
    become_peer(&mut batch, who);
    let ends = batch.space(8 * count);
    let kind = kind | c::SOCK_CLOEXEC;
    for number in 0..count {
        let args = [
            c::AF_UNIX.into(),
            kind.into(),
            0.into(),
            ends.at(8 * number).into(),
        ];
        batch.call("socketpair", nr::SOCKETPAIR, args);
    }
    become_root(&mut batch, who);
    let task = restore.task(pid)?;
    let output = run(pid, doing, &mut task.first, &batch)?;
    let pidfd = process::pidfd_open(task.host_pid()).map_err(ResurrectError::call(pid, doing))?;
    let mut batch = Batch::new();
    for number in 0..count {
        let mut copy = |end: usize| {
            let fd = output.u32(ends, 2 * number + end).cast_signed();
            batch.call("closing a copy", nr::CLOSE, [fd.into()]);
            process::pidfd_getfd(pidfd.as_fd(), fd).map_err(ResurrectError::call(pid, doing))
        };
        made.push((copy(0)?, copy(1)?));
    }
    run(pid, doing, &mut task.first, &batch).map(drop)
}

/// The process that does it: the one with the id, or a helper. None when it is this process: nobody saw
/// who, or it was out of sight (id 0), or the id is another process's now.
fn actor(
    restore: &mut Restore<'_>,
    who: Option<&PeerCredentials>,
) -> Result<Option<Pid>, ResurrectError> {
    let Some(pid) = who.map(|who| Pid(who.pid)).filter(|pid| pid.0 > 0) else {
        return Ok(None);
    };
    if !restore.tasks.contains_key(&pid) {
        match tree::helper(restore, pid) {
            Err(error @ ResurrectError::Taken { .. }) => {
                log::warn!("the peer of a unix socket looks different: {error}");
                return Ok(None);
            }
            made => made?,
        }
    }
    restore.acted.insert(pid);
    Ok(Some(pid))
}

/// Runs a batch in the process, and ends that when it is a helper.
fn act(
    restore: &mut Restore<'_>,
    pid: Pid,
    doing: &str,
    batch: &Batch,
) -> Result<(), ResurrectError> {
    run(pid, doing, &mut restore.task(pid)?.first, batch)?;
    finish(restore, pid)
}

/// Ends the process when it is a helper.
fn finish(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    let known = restore.manifest.processes.iter().any(|p| p.pid == pid);
    if known {
        Ok(())
    } else {
        tree::end_helper(restore, pid)
    }
}

/// A copy of a descriptor of ours.
fn take(restore: &Restore<'_>, batch: &mut Batch, fd: BorrowedFd<'_>) -> Arg {
    let args = [
        restore.self_pidfd.as_raw_fd().into(),
        fd.as_raw_fd().into(),
        0.into(),
    ];
    batch
        .call("taking a descriptor", nr::PIDFD_GETFD, args)
        .into()
}

fn is_root(who: &PeerCredentials) -> bool {
    (who.uid, who.gid) == (0, 0)
}

/// Effective ids and groups of the peer. Capabilities are kept over the change, so that permissions of
/// files do not matter.
fn become_peer(batch: &mut Batch, who: Option<&PeerCredentials>) {
    let Some(who) = who else { return };
    let groups: Vec<u8> = who.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
    let buffer = batch.data(&groups);
    let args = [(who.groups.len() as u64).into(), buffer.into()];
    batch.call("setgroups", nr::SETGROUPS, args);
    if is_root(who) {
        return;
    }
    securebits(batch, SECBIT_NO_SETUID_FIXUP);
    change(batch, nr::SETRESGID, who.gid);
    change(batch, nr::SETRESUID, who.uid);
}

fn become_root(batch: &mut Batch, who: Option<&PeerCredentials>) {
    let Some(who) = who else { return };
    if !is_root(who) {
        change(batch, nr::SETRESUID, 0);
        change(batch, nr::SETRESGID, 0);
        securebits(batch, 0);
    }
    let none: [Arg; 2] = [0.into(), 0.into()];
    batch.call("setgroups", nr::SETGROUPS, none);
}

/// include/uapi/linux/securebits.h
const SECBIT_NO_SETUID_FIXUP: i32 = 4;

fn securebits(batch: &mut Batch, bits: i32) {
    let args = [
        c::PR_SET_SECUREBITS.into(),
        bits.into(),
        0.into(),
        0.into(),
        0.into(),
    ];
    batch.call("securebits", nr::PRCTL, args);
}

fn change(batch: &mut Batch, number: i64, effective: u32) {
    let args: [Arg; 3] = [NONE.into(), effective.cast_signed().into(), NONE.into()];
    batch.call("changing the effective id", number, args);
}
