//! Whether a socket of IPv6 can be connected again: where no route leads to its peer any more nothing connects it. For IPv4
//! the loopback interface would (net/ipv4/route.c, `ip_route_output_key_hash_rcu`).

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use nix::libc as c;
use std::os::fd::{AsFd, BorrowedFd};
use sys::{Errno, socket};

/// Refuses one that can not, on one kernel. Nothing is sent.
pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    whole_host: bool,
    remote: &[u8],
) -> Result<(), FreezerError> {
    /// `::ffff:0:0/96`
    const OF_IPV4: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let host = remote.get(8..24).unwrap_or_default();
    if whole_host || common.domain != c::AF_INET6 || host.is_empty() || host.starts_with(OF_IPV4) {
        return Ok(());
    }
    match try_it(open.copy.as_fd(), remote) {
        Err(
            errno @ (Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::EADDRNOTAVAIL
            | Errno::EACCES
            | Errno::EINVAL),
        ) => Err(open.refuse(format!("no route leads to its peer any more: {errno}"))),
        // Whatever else it is, it is not the way.
        _ => Ok(()),
    }
}

/// Connects another socket that takes the same way.
fn try_it(own: BorrowedFd<'_>, remote: &[u8]) -> sys::Result<()> {
    const DEVICE: (i32, i32) = (c::SOL_SOCKET, c::SO_BINDTODEVICE);
    const MARK: (i32, i32) = (c::SOL_SOCKET, c::SO_MARK);
    let other = socket::socket(c::AF_INET6, c::SOCK_DGRAM, 0)?;
    let device = socket::option(own, DEVICE.0, DEVICE.1, c::IFNAMSIZ)?;
    if !device.is_empty() {
        socket::set_option(other.as_fd(), DEVICE.0, DEVICE.1, &device)?;
    }
    let mark = socket::int_option(own, MARK.0, MARK.1)?;
    if mark != 0 {
        socket::set_int_option(other.as_fd(), MARK.0, MARK.1, mark)?;
    }
    // Of a raw socket the port is a protocol, and without one nothing is connected.
    let mut remote = remote.to_vec();
    if let Some(port) = remote.get_mut(2..4) {
        port.copy_from_slice(&[0, 9]);
    }
    // Labels of flows belong to sockets.
    if let Some(flow) = remote.get_mut(4..8) {
        flow.fill(0);
    }
    socket::connect(other.as_fd(), &remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: [u8; 16]) -> Vec<u8> {
        let family = (c::AF_INET6 as u16).to_ne_bytes();
        [&family[..], &[0, 9], &[0; 4], &host, &[0; 4]].concat()
    }

    #[test]
    fn the_way_of_a_device_counts() {
        let Ok(own) = socket::socket(c::AF_INET6, c::SOCK_DGRAM, 0) else {
            return;
        };
        let (mut here, mut nowhere) = ([0; 16], [0; 16]);
        here[15] = 1;
        // 2001:db8::/32 is for examples, and no host's own.
        nowhere[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        let (level, name) = (c::SOL_SOCKET, c::SO_BINDTODEVICE);
        socket::set_option(own.as_fd(), level, name, b"lo\0").unwrap();
        let unreachable = Err(Errno::ENETUNREACH);
        let way = |host| try_it(own.as_fd(), &address(host));
        assert!([Ok(()), Err(Errno::EADDRNOTAVAIL)].contains(&way(here)));
        assert_eq!(way(nowhere), unreachable);
    }
}
