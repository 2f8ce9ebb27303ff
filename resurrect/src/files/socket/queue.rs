//! Filling a receive queue: what was in it is sent again.

use super::{Making, Sockets};
use crate::restore::Restore;
use crate::{ResurrectError, tree};
use nix::libc as c;
use persist_mem::manifest::SocketMessage;
use std::os::fd::{AsFd, BorrowedFd};
use sys::socket::{self, Control, Credentials, Outgoing};
use sys::{Errno, Pid};

/// Sends one message of a unix socket's queue from `sender`, with the descriptors in flight and as the
/// process that sent it.
pub(super) fn send_unix(
    restore: &mut Restore<'_>,
    making: &Making<'_>,
    sockets: &Sockets,
    sender: BorrowedFd<'_>,
    message: &SocketMessage,
    to: &[u8],
) -> Result<(), ResurrectError> {
    let (credentials, helper) = credentials(restore, message)?;
    let whole;
    let message = if message.consumed == 0 {
        message
    } else {
        whole = with_consumed(message);
        &whole
    };
    let mut fds = Vec::new();
    for id in &message.fds {
        let opened = restore.files.opened.get(id).or_else(|| sockets.fds.get(id));
        let missing = || making.failed("looking up a descriptor in flight")(Errno::EBADF);
        fds.push(opened.ok_or_else(missing)?.as_fd());
    }
    let sent = send(making, sender, message, &fds, credentials, to);
    if let Some(pid) = helper {
        tree::end_helper(restore, pid)?;
    }
    sent
}

/// A message with bytes before it in place of those that have been read.
fn with_consumed(message: &SocketMessage) -> SocketMessage {
    let mut data = vec![0; message.consumed as usize];
    data.extend_from_slice(&message.data);
    SocketMessage {
        data,
        ..message.clone()
    }
}

/// Reads what had been read of a message that was just sent: of a stream's first piece, or its urgent byte.
pub(super) fn consume(
    making: &Making<'_>,
    receiver: BorrowedFd<'_>,
    message: &SocketMessage,
) -> Result<(), ResurrectError> {
    let doing = "reading what had been read of its queue";
    let urgent = if message.urgent { c::MSG_OOB } else { 0 };
    let mut left = message.consumed as usize;
    while left > 0 {
        let got = socket::receive(receiver, c::MSG_DONTWAIT | urgent, left)
            .map_err(making.failed(doing))?;
        if got.data.is_empty() {
            return Err(making.failed(doing)(Errno::EPIPE));
        }
        left -= got.data.len();
    }
    Ok(())
}

/// The sender as this process names it, and the helper that has its id when it is gone.
fn credentials(
    restore: &mut Restore<'_>,
    message: &SocketMessage,
) -> Result<(Option<Credentials>, Option<Pid>), ResurrectError> {
    let Some((pid, uid, gid)) = message.credentials.filter(|(pid, ..)| *pid > 0) else {
        return Ok((None, None));
    };
    let pid = Pid(pid);
    let mut helper = None;
    if !restore.tasks.contains_key(&pid) {
        match tree::helper(restore, pid) {
            Ok(()) => helper = Some(pid),
            // Somebody outside of the tree, who may be named as a sender.
            Err(ResurrectError::Taken { .. }) if !restore.is_upgrade() => {
                let pid = pid.0;
                return Ok((Some(Credentials { pid, uid, gid }), None));
            }
            Err(error @ ResurrectError::Taken { .. }) => {
                log::warn!("the sender of a message looks different: {error}");
                return Ok((None, None));
            }
            Err(error) => return Err(error),
        }
    }
    let pid = restore.task(pid)?.host_pid().0;
    Ok((Some(Credentials { pid, uid, gid }), helper))
}

fn send(
    making: &Making<'_>,
    sender: BorrowedFd<'_>,
    message: &SocketMessage,
    fds: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
    to: &[u8],
) -> Result<(), ResurrectError> {
    let outgoing = Outgoing {
        data: &message.data,
        to,
        fds,
        credentials,
        control: &[],
    };
    let urgent = if message.urgent { c::MSG_OOB } else { 0 };
    send_all(making, sender, outgoing, c::MSG_DONTWAIT | urgent)
}

fn send_all(
    making: &Making<'_>,
    sender: BorrowedFd<'_>,
    mut outgoing: Outgoing<'_>,
    flags: i32,
) -> Result<(), ResurrectError> {
    loop {
        let sent =
            socket::send(sender, &outgoing, flags).map_err(making.failed("filling its queue"))?;
        if sent >= outgoing.data.len() {
            return Ok(());
        }
        // A stream takes large data in parts; descriptors come with the first.
        outgoing.data = &outgoing.data[sent..];
        outgoing.fds = &[];
    }
}

/// Sends one datagram of an internet socket's queue.
pub(super) fn send_inet(
    making: &Making<'_>,
    sender: BorrowedFd<'_>,
    message: &SocketMessage,
    to: &[u8],
    control: &[Control],
) -> Result<(), ResurrectError> {
    let message = Outgoing {
        data: &message.data,
        to,
        control,
        ..Outgoing::default()
    };
    send_all(making, sender, message, c::MSG_DONTWAIT)
}
