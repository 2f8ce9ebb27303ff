//! Netlink sockets (netlink(7)).

use super::{Common, Facts, netlink_answers};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel;
use crate::proc;
use nix::libc as c;
use persist_mem::manifest::{
    DescriptionKind, Manifest, NetlinkMessage, NetlinkSocket, Socket, SocketState,
};
use std::os::fd::{AsFd, BorrowedFd};
use sys::{Errno, process, socket};

const SOL_NETLINK: i32 = 270;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// Longest message.
const MESSAGE: usize = 1 << 16;
/// Groups that are asked for.
const GROUPS_MAX: usize = 1 << 16;
/// The one group of generic netlink with a fixed number (include/uapi/linux/genetlink.h).
const GENL_ID_CTRL: u32 = 16;

pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    facts: &Facts,
) -> Result<NetlinkSocket, FreezerError> {
    let fd = open.copy.as_fd();
    // On this kernel whoever listens for devices would hear of them again.
    let taken_later = facts.whole_host && common.protocol == c::NETLINK_KOBJECT_UEVENT;
    let mut unread = common.has(c::POLLIN) && !taken_later;
    let mut sent_to_it = Vec::new();
    if unread
        && !common.has(c::POLLERR)
        && let Some(found) = from_processes(open)?
    {
        (sent_to_it, unread) = (found, false);
    }
    let mut question = Vec::new();
    if unread
        && !common.has(c::POLLERR)
        && let Some(found) = netlink_answers::question(open, common, facts.running)?
    {
        (question, unread) = (found, false);
    }
    let lost = loses(open, common.has(c::POLLERR), unread)?;
    let name = socket::name(fd).map_err(open.call("asking for its address"))?;
    let peer = socket::peer_name(fd).map_err(open.call("asking for its peer's address"))?;
    let port = word(&name, 4);
    let groups = groups(open)?;
    if facts.whole_host
        && common.protocol == c::NETLINK_GENERIC
        && groups.iter().any(|group| *group != GENL_ID_CTRL)
    {
        let why =
            "groups of generic netlink, whose numbers change with the kernel, are not carried";
        return Err(open.refuse(why));
    }
    // A kernel minds requests for its events only where they come from the first PID namespace
    // (drivers/connector/cn_proc.c).
    if facts.whole_host && common.protocol == c::NETLINK_CONNECTOR && !groups.is_empty() {
        let why = "listeners of the connector (events of processes) are not carried";
        return Err(open.refuse(why));
    }
    if common.protocol == c::NETLINK_NETFILTER {
        refuse_bound_queues(open, port)?;
    }
    let peer = (word(&peer, 4), word(&peer, 8));
    Ok(NetlinkSocket {
        port: (port != 0).then_some(port),
        in_vain: port != 0 && !has_port(open),
        groups,
        peer: (peer != (0, 0)).then_some(peer),
        lost,
        unread: sent_to_it,
        question,
    })
}

/// Whether a socket has the port that it shows: bind(2) notes that before it sees that another one has it
/// (net/netlink/af_netlink.c, netlink_insert).
fn has_port(open: &Open<'_>) -> bool {
    let bound = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        kernel.fields(sk, "netlink_sock", &["bound"])
    });
    bound.map_or(true, |bound| bound.first() != Some(&0))
}

/// What it has not read, when all of that was sent to it alone by processes: they can send it again.
fn from_processes(open: &Open<'_>) -> Result<Option<Vec<NetlinkMessage>>, FreezerError> {
    // Whoever asks is told who sent it, which cannot be another process.
    if super::int(open, c::SOL_SOCKET, c::SO_PASSCRED)? != 0 {
        return Ok(None);
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let mut found = Vec::new();
        for buffer in kernel.queue(sk)? {
            let of = |field| kernel.of_family(&buffer, "netlink_skb_parms", field);
            let (port, group) = (of("portid")?, of("dst_group")?);
            if port == 0 || group != 0 {
                return Ok(None);
            }
            found.push(NetlinkMessage {
                port: port as u32,
                groups: 0,
                data: kernel.contents(&buffer)?,
            });
        }
        Ok(Some(found))
    });
    Ok(found.unwrap_or(None))
}

/// Whether it is to be told that messages are lost: it was not told yet, or has not read some. Those to groups
/// may be lost (netlink(7)); an answer may not, and is refused.
fn loses(open: &Open<'_>, error: bool, unread: bool) -> Result<bool, FreezerError> {
    if !error && !unread {
        return Ok(false);
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let error = kernel.fields(sk, "sock", &["sk_err"])?[0];
        let mut groups = Vec::new();
        for buffer in kernel.queue(sk)? {
            groups.push(kernel.of_family(&buffer, "netlink_skb_parms", "dst_group")?);
        }
        Ok((error, groups))
    });
    match found {
        Ok((0, groups)) if !groups.contains(&0) => {
            // Who does not want to hear of that is not told.
            let untold = super::int(open, SOL_NETLINK, c::NETLINK_NO_ENOBUFS)? != 0;
            Ok(!groups.is_empty() && !untold)
        }
        Ok((error, groups)) if error == c::ENOBUFS as u64 && !groups.contains(&0) => Ok(true),
        _ if error => Err(open.refuse("an error waits on it that was not read yet")),
        found => {
            let why = found
                .err()
                .map_or_else(String::new, |why| format!(" ({why})"));
            let text = "netlink messages that were not read yet are not carried";
            Err(open.refuse(format!("{text}{why}")))
        }
    }
}

/// Takes the messages about devices that nobody has read. From here on the processes must not go on: those
/// messages are lost to them.
///
/// # Errors
/// When a message cannot be read.
pub fn take(manifest: &mut Manifest) -> Result<(), FreezerError> {
    for at in 0..manifest.descriptions.len() {
        let description = &manifest.descriptions[at];
        if !is_about_devices(&description.kind) {
            continue;
        }
        let Some((holder, fd)) = manifest.holder(description.id) else {
            continue;
        };
        let pid = holder.shown_as();
        let failed = |doing| FreezerError::call(pid, format!("fd {fd}: {doing}"));
        let pidfd = proc::pidfd(pid).map_err(failed("opening a pidfd"))?;
        let copy = process::pidfd_getfd(pidfd.as_fd(), fd).map_err(failed("copying it"))?;
        let (found, lost) = receive_all(copy.as_fd()).map_err(failed("taking its messages"))?;
        if let DescriptionKind::Socket(socket) = &mut manifest.descriptions[at].kind
            && let SocketState::Netlink(state) = &mut socket.state
        {
            state.unread = found;
            state.lost |= lost;
        }
    }
    Ok(())
}

fn is_about_devices(kind: &DescriptionKind) -> bool {
    matches!(kind, DescriptionKind::Socket(socket) if matches!(
        **socket,
        Socket { protocol: c::NETLINK_KOBJECT_UEVENT, state: SocketState::Netlink(_), .. }
    ))
}

/// The messages, and whether some were lost before.
fn receive_all(fd: BorrowedFd<'_>) -> sys::Result<(Vec<NetlinkMessage>, bool)> {
    let (mut found, mut lost) = (Vec::new(), false);
    loop {
        match socket::receive(fd, c::MSG_DONTWAIT, MESSAGE) {
            Ok(message) => found.push(NetlinkMessage {
                port: word(&message.source, 4),
                groups: word(&message.source, 8),
                data: message.data,
            }),
            Err(Errno::ENOBUFS) => lost = true,
            Err(Errno::EAGAIN) => return Ok((found, lost)),
            Err(errno) => return Err(errno),
        }
    }
}

/// Queues and logs of packets are bound to the port of a socket and end with it.
fn refuse_bound_queues(open: &Open<'_>, port: u32) -> Result<(), FreezerError> {
    for what in ["nfnetlink_queue", "nfnetlink_log"] {
        let path = format!("/proc/self/net/netfilter/{what}");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // Number of the queue, port id, ...
        let mut ports = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        if port != 0 && ports.any(|found| found == port.to_string()) {
            return Err(open.refuse(format!("a packet queue ({what}) is not carried")));
        }
    }
    Ok(())
}

/// Groups it is a member of: a bit each, group 1 first.
fn groups(open: &Open<'_>) -> Result<Vec<u32>, FreezerError> {
    let fd = open.copy.as_fd();
    let bits = socket::option(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, GROUPS_MAX / 8)
        .map_err(open.call("asking for its groups"))?;
    let member = |group: &u32| bits[*group as usize / 8] & (1 << (group % 8)) != 0;
    let last = u32::try_from(bits.len() * 8).unwrap_or(0);
    Ok((0..last).filter(member).map(|bit| bit + 1).collect())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|w| w.try_into().ok());
    found.map_or(0, u32::from_ne_bytes)
}
