//! Netlink sockets that have lost messages: the next receipt says `ENOBUFS` (netlink(7)).
//!
//! The kernel says so to members of a group whose buffer is full when something is sent to the group. So the
//! buffer is made as small as can be, one message is sent to a group that nobody is in, a second one while the
//! first is on its way out of the queue: the queue is empty, but the buffer is not.

use super::Making;
use super::netlink::{SOL_NETLINK, address};
use crate::ResurrectError;
use nix::libc as c;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::socket::{self, Outgoing};
use sys::{Errno, Pid, held_receive};

const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_DROP_MEMBERSHIP: i32 = 2;
/// More than the smallest buffer takes (`SOCK_MIN_RCVBUF`).
const LARGE: usize = 8192;

/// Has the next receipt of a new socket fail with `ENOBUFS`. It has no filter yet and is in no group.
pub(super) fn tell(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    overrun(fd, making.socket.protocol)
        .map_err(making.failed("telling it that it has lost messages"))
}

fn overrun(fd: BorrowedFd<'_>, protocol: i32) -> sys::Result<()> {
    // It comes back to its size with its options.
    socket::set_int_option(fd, c::SOL_SOCKET, c::SO_RCVBUF, 0)?;
    let (sender, port) = sender(protocol)?;
    let group = join(fd, protocol)?;
    let to = address(port, 1 << (group - 1));
    let send = || {
        let message = Outgoing {
            data: &[0; LARGE],
            to: &to,
            ..Outgoing::default()
        };
        match socket::send(sender.as_fd(), &message, 0) {
            // Nobody got it.
            Err(Errno::ESRCH | Errno::ENOBUFS) => Ok(()),
            sent => sent.map(drop),
        }
    };
    let done = send().and_then(|()| held_receive::hold(fd, send));
    socket::set_int_option(fd, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)?;
    done?;
    if socket::events(fd)? & c::POLLERR == 0 {
        return Err(Errno::ENOBUFS);
    }
    Ok(())
}

/// A socket that sends to groups, and its port: a message to a group goes to a port as well, to its own.
fn sender(protocol: i32) -> sys::Result<(OwnedFd, u32)> {
    let sender = socket::socket(c::AF_NETLINK, c::SOCK_RAW, protocol)?;
    socket::bind(sender.as_fd(), &address(0, 0))?;
    let name = socket::name(sender.as_fd())?;
    let port = name.get(4..8).and_then(|word| word.try_into().ok());
    Ok((sender, port.map_or(0, u32::from_ne_bytes)))
}

/// Makes it a member of a group that nobody is in.
fn join(fd: BorrowedFd<'_>, protocol: i32) -> sys::Result<i32> {
    let taken = taken(protocol)?;
    let mut last = Errno::EBUSY;
    // The groups that an address can name.
    for group in (1..=32).rev().filter(|group| taken & 1 << (group - 1) == 0) {
        match socket::set_int_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group) {
            Ok(()) => return Ok(group),
            // There is none of that number.
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// Mask of the groups of a protocol that somebody is in, from `/proc/net/netlink`.
fn taken(protocol: i32) -> sys::Result<u32> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let bytes = sys::procdir::read(me, "net/netlink")?;
    let text = String::from_utf8_lossy(&bytes);
    // sk, protocol, port, groups, ...
    let groups = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let same = words.get(1)?.parse() == Ok(protocol);
        let groups = u32::from_str_radix(words.get(3)?, 16).ok();
        groups.filter(|_| same)
    });
    Ok(groups.fold(0, |all, one| all | one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_receipt_says_that_messages_are_lost() {
        for protocol in [c::NETLINK_ROUTE, c::NETLINK_KOBJECT_UEVENT] {
            let fd = socket::socket(c::AF_NETLINK, c::SOCK_RAW, protocol).unwrap();
            match overrun(fd.as_fd(), protocol) {
                // Without privileges.
                Err(Errno::EPERM) => return,
                done => done.unwrap(),
            }
            let receive = || socket::receive(fd.as_fd(), c::MSG_DONTWAIT, 100).map(drop);
            assert_eq!(receive(), Err(Errno::ENOBUFS));
            assert_eq!(receive(), Err(Errno::EAGAIN));
        }
    }
}
