//! Netlink sockets (netlink(7)).

use super::options::{self, When};
use super::{Making, Sockets, attach_filter, overrun};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{NetlinkMessage, NetlinkSocket, SocketState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::Errno;
use sys::socket::{self, Outgoing};

pub(super) const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_DROP_MEMBERSHIP: i32 = 2;

/// Made, bound, a member of its groups.
pub(super) fn make(making: &Making<'_>, state: &NetlinkSocket) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    if state.lost {
        overrun::tell(making, fd.as_fd())?;
    }
    // Messages come as soon as it is a member, and shall pass the filter then.
    attach_filter(making, fd.as_fd())?;
    options::set(making, fd.as_fd(), When::Early)?;
    if let Some(port) = state.port {
        let bind = match state.in_vain {
            true => bind_in_vain(making, fd.as_fd(), port),
            false => socket::bind(fd.as_fd(), &address(port, 0)),
        };
        bind.map_err(making.failed("binding its port"))?;
    }
    // Of devices they hear later ([`hear_of_devices`]).
    if !is_about_devices(making) {
        memberships(fd.as_fd(), state, NETLINK_ADD_MEMBERSHIP)
            .map_err(making.failed("joining a group"))?;
    }
    if let Some((port, groups)) = state.peer {
        socket::connect(fd.as_fd(), &address(port, groups))
            .map_err(making.failed("connecting it"))?;
    }
    Ok(fd)
}

/// Has a socket ask for a port that another one has, which may not be there yet.
fn bind_in_vain(making: &Making<'_>, fd: BorrowedFd<'_>, port: u32) -> sys::Result<()> {
    let other = socket::socket(c::AF_NETLINK, c::SOCK_RAW, making.socket.protocol)?;
    match socket::bind(other.as_fd(), &address(port, 0)) {
        Ok(()) | Err(Errno::EADDRINUSE) => {}
        Err(errno) => return Err(errno),
    }
    match socket::bind(fd, &address(port, 0)) {
        Err(Errno::EADDRINUSE) => Ok(()),
        Ok(()) => Err(Errno::EEXIST),
        Err(errno) => Err(errno),
    }
}

fn memberships(fd: BorrowedFd<'_>, state: &NetlinkSocket, what: i32) -> sys::Result<()> {
    let mut groups = state.groups.iter().map(|group| group.cast_signed());
    groups.try_for_each(|group| socket::set_int_option(fd, SOL_NETLINK, what, group))
}

fn is_about_devices(making: &Making<'_>) -> bool {
    making.socket.protocol == c::NETLINK_KOBJECT_UEVENT
}

/// Lets sockets hear of devices, first of what they had not read. That is sent to groups: so only the one it
/// is for is a member meanwhile.
pub(super) fn hear_of_devices(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let of_netlink = |making: &&Making<'_>| is_about_devices(making);
    let states = all.iter().filter(of_netlink).filter_map(|making| {
        let SocketState::Netlink(state) = &making.socket.state else {
            return None;
        };
        Some((making, state))
    });
    for (making, state) in states.clone().filter(|(_, state)| !state.unread.is_empty()) {
        let fd = sockets.get(making)?;
        let queue = || {
            memberships(fd, state, NETLINK_ADD_MEMBERSHIP)?;
            state.unread.iter().try_for_each(queue_again)?;
            memberships(fd, state, NETLINK_DROP_MEMBERSHIP)
        };
        queue().map_err(making.failed("queueing messages about devices"))?;
    }
    for (making, state) in states {
        memberships(sockets.get(making)?, state, NETLINK_ADD_MEMBERSHIP)
            .map_err(making.failed("joining a group"))?;
    }
    Ok(())
}

/// Sends what processes had sent to sockets alone: from the sender's socket, or one of its port. And asks the kernel
/// again what it was asked.
pub(super) fn deliver(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    for making in all.iter().filter(|making| !is_about_devices(making)) {
        let SocketState::Netlink(state) = &making.socket.state else {
            continue;
        };
        for message in &state.unread {
            let sender = all.iter().find(|sender| {
                matches!(&sender.socket.state, SocketState::Netlink(of) if !of.in_vain && of.port == Some(message.port))
                    && sender.socket.protocol == making.socket.protocol
            });
            let sender = sender.map(|sender| sockets.get(sender)).transpose()?;
            send_alone(making, sender, state.port.unwrap_or(0), message)
                .map_err(making.failed("filling its queue"))?;
        }
        if !state.question.is_empty() {
            let question = Outgoing {
                data: &state.question,
                to: &address(0, 0),
                ..Outgoing::default()
            };
            socket::send(sockets.get(making)?, &question, c::MSG_DONTWAIT)
                .map_err(making.failed("asking the kernel again"))?;
        }
    }
    Ok(())
}

fn send_alone(
    making: &Making<'_>,
    sender: Option<BorrowedFd<'_>>,
    to: u32,
    message: &NetlinkMessage,
) -> sys::Result<()> {
    let stranger;
    let sender = match sender {
        Some(sender) => sender,
        None => {
            stranger = socket::socket(c::AF_NETLINK, c::SOCK_RAW, making.socket.protocol)?;
            socket::bind(stranger.as_fd(), &address(message.port, 0))?;
            stranger.as_fd()
        }
    };
    let outgoing = Outgoing {
        data: &message.data,
        to: &address(to, 0),
        ..Outgoing::default()
    };
    socket::send(sender, &outgoing, c::MSG_DONTWAIT).map(drop)
}

/// Sends a message to its groups again: those of the kernel through the kernel, which gives them a number of
/// its own (lib/kobject_uevent.c, uevent_net_broadcast).
fn queue_again(message: &NetlinkMessage) -> sys::Result<()> {
    let sender = socket::socket(c::AF_NETLINK, c::SOCK_RAW, c::NETLINK_KOBJECT_UEVENT)?;
    let (to, data) = if message.port == 0 {
        (address(0, 0), for_the_kernel(&message.data))
    } else {
        (address(0, message.groups), message.data.clone())
    };
    let message = Outgoing {
        data: &data,
        to: &to,
        ..Outgoing::default()
    };
    socket::send(sender.as_fd(), &message, 0).map(drop)
}

/// A message with the header that the kernel wants, and without its number.
fn for_the_kernel(data: &[u8]) -> Vec<u8> {
    /// Any type that is no control message (`NLMSG_MIN_TYPE`), and `NLM_F_REQUEST`.
    const TYPE: u16 = 16;
    const REQUEST: u16 = 1;
    const HEADER: usize = 16;
    let parts = data.split_inclusive(|byte| *byte == 0);
    let kept: Vec<u8> = parts
        .filter(|part| !part.starts_with(b"SEQNUM="))
        .flatten()
        .copied()
        .collect();
    let len = u32::try_from(HEADER + kept.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(TYPE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(kept);
    message
}

/// `struct sockaddr_nl`.
pub(super) fn address(port: u32, groups: u32) -> Vec<u8> {
    let mut bytes = (c::AF_NETLINK as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&port.to_ne_bytes());
    bytes.extend_from_slice(&groups.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_about_devices_come_from_the_kernel_again() {
        // Of this thread alone: nobody else hears of it.
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            return;
        }
        let listener = socket::socket(
            c::AF_NETLINK,
            c::SOCK_RAW | c::SOCK_NONBLOCK,
            c::NETLINK_KOBJECT_UEVENT,
        )
        .unwrap();
        let state = NetlinkSocket {
            groups: vec![1, 2],
            ..NetlinkSocket::default()
        };
        socket::bind(listener.as_fd(), &address(0, 0)).unwrap();
        memberships(listener.as_fd(), &state, NETLINK_ADD_MEMBERSHIP).unwrap();
        let text = b"change@/devices/x\0ACTION=change\0SUBSYSTEM=kup\0SEQNUM=77\0";
        for (port, groups) in [(0, 1), (4711, 2)] {
            let data = text.to_vec();
            queue_again(&NetlinkMessage { port, groups, data }).unwrap();
        }
        let receive = || {
            loop {
                let got = socket::receive(listener.as_fd(), c::MSG_DONTWAIT, 4096).unwrap();
                // Devices of the host may tell of themselves meanwhile.
                if got.data.starts_with(b"change@/devices/x") {
                    return got;
                }
            }
        };
        let (first, second) = (receive(), receive());
        assert_eq!(first.source, address(0, 1));
        let (kept, number) = first.data.split_at(text.len() - b"SEQNUM=77\0".len());
        assert_eq!(kept, &text[..kept.len()]);
        assert!(
            number.starts_with(b"SEQNUM=") && number.ends_with(b"\0"),
            "{number:?}"
        );
        assert_eq!(
            (&second.source[8..12], &second.data[..]),
            (&[2, 0, 0, 0][..], &text[..])
        );
        memberships(listener.as_fd(), &state, NETLINK_DROP_MEMBERSHIP).unwrap();
        queue_again(&NetlinkMessage {
            port: 0,
            groups: 1,
            data: text.to_vec(),
        })
        .unwrap_or(());
        assert!(socket::receive(listener.as_fd(), c::MSG_DONTWAIT, 4096).is_err());
    }
}
