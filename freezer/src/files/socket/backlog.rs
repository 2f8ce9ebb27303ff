//! What clients have sent over connections that nobody has accepted.
//!
//! It is in sockets that no process holds. Where the kernel's memory cannot be read (`unaccepted.rs`), only
//! accept(2) leads to them, and takes the connection out of its queue for good. So it is looked at when
//! everything else is saved and the processes will not go on.

use super::{common, unaccepted, unix};
use crate::files::{Open, apart, ends};
use crate::proc::{self, FdInfo};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{
    DescriptionId, DescriptionKind, Manifest, SocketMessage, SocketState, UnixLink, Waiting,
};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::{Pid, process, socket};

/// Listening sockets of running processes with clients that wait and have sent data, or have gone: what
/// [`take`] is for.
///
/// # Errors
/// When the kernel does not tell about unix sockets.
pub fn untaken(pids: &[Pid]) -> Result<Vec<Refusal>, FreezerError> {
    let mut held: HashMap<u64, (Pid, i32)> = HashMap::new();
    for pid in pids.iter().flat_map(|pid| apart::tables_of(*pid)) {
        for fd in proc::numbers(pid, "fd").unwrap_or_default() {
            let inode = proc::link(pid, &format!("fd/{fd}"))
                .ok()
                .and_then(|link| ends::socket_inode(&link));
            if let Some(inode) = inode {
                held.entry(inode).or_insert((pid, fd));
            }
        }
    }
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let me = Pid(nix::unistd::getpid().as_raw());
    let all = crate::diag::unix().map_err(FreezerError::call(me, "asking for unix sockets"))?;
    let mut found = Vec::new();
    for (inode, (pid, fd)) in &held {
        let waiting = all.get(inode).map_or(&[][..], |info| &info.waiting);
        let speaks = waiting.iter().any(|client| !silent(held.get(client)));
        if speaks && !can_be_seen(*pid, *fd) {
            found.push(Refusal {
                pid: *pid,
                comm: proc::comm(*pid),
                resource: format!("fd {fd} (socket:[{inode}])"),
                reason:
                    "a client that waits to be accepted has sent data or closed its end, which can \
                         only be carried when the processes do not go on"
                        .into(),
            });
        }
    }
    Ok(apart::named(found))
}

/// Whether the kernel tells what the clients of a listening socket have sent.
fn can_be_seen(pid: Pid, fd: i32) -> bool {
    proc::pidfd(pid)
        .and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), fd))
        .is_ok_and(|copy| unaccepted::unix(copy.as_fd()).is_ok())
}

/// Whether a client is there and has sent nothing that waits.
fn silent(client: Option<&(Pid, i32)>) -> bool {
    let Some((pid, fd)) = client else {
        return false;
    };
    proc::pidfd(*pid)
        .and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), *fd))
        .and_then(|copy| socket::unsent(copy.as_fd()))
        .is_ok_and(|unsent| unsent == 0)
}

/// Accepts the connections whose data is not known yet and completes the manifest. From here on the
/// processes must not go on: those connections are lost to them.
///
/// # Errors
/// When a connection cannot be accepted or read.
pub fn take(manifest: &mut Manifest) -> Result<(), FreezerError> {
    let ids: Vec<DescriptionId> = manifest
        .descriptions
        .iter()
        .filter(|d| waiting(&d.kind).is_some_and(|all| all.iter().any(|one| one.sent.is_none())))
        .map(|d| d.id)
        .collect();
    for id in ids {
        let Some((holder, fd)) = manifest.holder(id) else {
            let why = "a listening socket in flight has clients that have sent data already";
            return Err(FreezerError::refuse(Pid(0), "socket", why));
        };
        let pid = holder.shown_as();
        let pidfd = proc::pidfd(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?;
        let listener = process::pidfd_getfd(pidfd.as_fd(), fd)
            .map_err(FreezerError::call(pid, format!("copying descriptor {fd}")))?;
        let all = manifest.descriptions.iter_mut().find(|d| d.id == id);
        for one in all
            .and_then(|d| waiting_mut(&mut d.kind))
            .into_iter()
            .flatten()
        {
            let doing = format!("fd {fd}: taking a connection out of its queue");
            let taken = socket::accept(listener.as_fd()).map_err(FreezerError::call(pid, doing))?;
            look(pid, fd, &taken, one)?;
        }
    }
    Ok(())
}

fn waiting(kind: &DescriptionKind) -> Option<&Vec<Waiting>> {
    let DescriptionKind::Socket(socket) = kind else {
        return None;
    };
    match &socket.state {
        SocketState::Unix(state) => match &state.link {
            UnixLink::Listening { waiting, .. } => Some(waiting),
            _ => None,
        },
        _ => None,
    }
}

fn waiting_mut(kind: &mut DescriptionKind) -> Option<&mut Vec<Waiting>> {
    let DescriptionKind::Socket(socket) = kind else {
        return None;
    };
    match &mut socket.state {
        SocketState::Unix(state) => match &mut state.link {
            UnixLink::Listening { waiting, .. } => Some(waiting),
            _ => None,
        },
        _ => None,
    }
}

/// Reads an accepted connection.
fn look(pid: Pid, fd: i32, taken: &OwnedFd, one: &mut Waiting) -> Result<(), FreezerError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let info = FdInfo::read(me, taken.as_raw_fd())?;
    let link = proc::link(pid, &format!("fd/{fd}"))?;
    let open = Open::new(pid, fd, &link, &info, taken)?;
    let common = common(&open)?;
    let all = crate::diag::unix().map_err(open.call("asking for unix sockets"))?;
    let state = all.get(&common.inode).cloned().unwrap_or_default();
    let mut sent = Vec::new();
    for message in unix::queue(&open, &common, &state)? {
        if !message.fds.is_empty() {
            let why = "a client that waits to be accepted has sent descriptors";
            return Err(open.refuse(why));
        }
        sent.push(SocketMessage {
            data: message.data,
            credentials: message.credentials,
            ..SocketMessage::default()
        });
    }
    one.sent = Some(sent);
    one.credentials = unix::peer_credentials(&open)?;
    Ok(())
}
