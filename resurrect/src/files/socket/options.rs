//! Socket options: what differs from a new socket's value is set.

use super::Making;
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{Socket, SocketOption, SocketState};
use std::os::fd::{AsFd, BorrowedFd};
use sys::{Errno, Result, socket};

const SO_TXREHASH: i32 = 74;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;
pub(super) const SO_BUF_LOCK: i32 = 72;

/// When an option takes its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Before a name is bound.
    Early,
    /// When the queues are full and everything is connected.
    Late,
}

/// Options without which a connection is not made as it was.
const OF_CONNECTING: &[(i32, i32)] = &[
    (c::SOL_SOCKET, c::SO_REUSEADDR),
    (c::SOL_SOCKET, c::SO_REUSEPORT),
    (c::SOL_SOCKET, c::SO_BINDTODEVICE),
    (c::SOL_SOCKET, c::SO_MARK),
    (c::SOL_IP, c::IP_FREEBIND),
    (c::SOL_IP, c::IP_TRANSPARENT),
    (c::SOL_IP, c::IP_UNICAST_IF),
    (c::SOL_IPV6, c::IPV6_V6ONLY),
    (c::SOL_IPV6, 78 /* IPV6_FREEBIND */),
    (c::SOL_IPV6, 75 /* IPV6_TRANSPARENT */),
    (c::SOL_IPV6, 76 /* IPV6_UNICAST_IF */),
    (c::SOL_TCP, c::TCP_MAXSEG),
];

/// Options that change how a socket is connected or its queue filled. Those of a connection come late: packets
/// of the other end would change them, and some change the other end.
fn when(socket: &Socket, option: &SocketOption) -> When {
    let connection =
        matches!(&socket.state, SocketState::Inet(state) if state.connection.is_some());
    let late = match (option.level, option.name) {
        _ if socket.domain == c::AF_UNIX => true,
        line if connection => !OF_CONNECTING.contains(&line),
        (c::SOL_SOCKET, name) => [
            c::SO_PASSCRED,
            c::SO_PASSSEC,
            SO_PASSPIDFD,
            SO_PASSRIGHTS,
            c::SO_RCVLOWAT,
            c::SO_SNDBUF,
            c::SO_RCVBUF,
            SO_BUF_LOCK,
            c::SO_PEEK_OFF,
        ]
        .contains(&name),
        // Connections change their window's bound by themselves.
        (c::SOL_TCP, name) => [c::TCP_CORK, c::TCP_WINDOW_CLAMP].contains(&name),
        (c::SOL_UDP, name) => name == c::UDP_CORK,
        // What is in its queue may not pass them any more.
        (255 | 58, _) => true,
        // It is the own address from then on.
        (c::SOL_IPV6, name) => name == c::IPV6_PKTINFO,
        _ => false,
    };
    if late { When::Late } else { When::Early }
}

/// Sets those options whose time it is.
pub(super) fn set(
    making: &Making<'_>,
    fd: BorrowedFd<'_>,
    time: When,
) -> core::result::Result<(), ResurrectError> {
    let wanted = || {
        let options = making.socket.options.iter();
        options.filter(|option| time == When::Late || when(making.socket, option) == time)
    };
    // Some options change others (IP_TOS the priority, buffers their lock), so twice.
    for _ in 0..2 {
        for option in wanted() {
            if let Err(errno) = set_one(fd, option) {
                let (level, name, value) = (option.level, option.name, &option.value);
                log::error!("socket option {level}:{name} cannot be set to {value:?}: {errno}");
                // A kernel that does not know the option or the value is no reason to end everyone.
                let unknown = matches!(
                    errno,
                    Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP
                );
                if !unknown && !of_another_index(option, errno) {
                    return Err(making.failed("setting an option")(errno));
                }
            }
        }
    }
    for option in wanted() {
        let now = socket::option(fd, option.level, option.name, option.value.len());
        if now.is_ok_and(|now| now != option.value && now != shown(option)) {
            let (level, name) = (option.level, option.name);
            log::warn!("socket option {level}:{name} is not what it was");
        }
    }
    Ok(())
}

/// Whether it has the number of an interface that this kernel counts otherwise.
fn of_another_index(option: &SocketOption, errno: Errno) -> bool {
    const BY_INDEX: &[(i32, i32)] = &[
        (c::SOL_IP, c::IP_MULTICAST_IF),
        (c::SOL_IP, c::IP_UNICAST_IF),
        (c::SOL_IPV6, c::IPV6_MULTICAST_IF),
        (c::SOL_IPV6, 76 /* IPV6_UNICAST_IF */),
        (c::SOL_IPV6, c::IPV6_PKTINFO),
    ];
    BY_INDEX.contains(&(option.level, option.name))
        && matches!(errno, Errno::ENODEV | Errno::EADDRNOTAVAIL)
}

fn set_one(fd: BorrowedFd<'_>, option: &SocketOption) -> Result<()> {
    let (level, name) = (option.level, option.name);
    let off = |value: &[u8]| value.iter().all(|byte| *byte == 0);
    // A name of an interface is told to who has room for the longest one. To set it again would make a connected socket
    // forget its route, and with it IP_MTU.
    let least = match (level, name) {
        (c::SOL_SOCKET, c::SO_BINDTODEVICE) => c::IFNAMSIZ,
        _ => 4,
    };
    match socket::option(fd, level, name, option.value.len().max(least)) {
        Ok(now) if now == option.value => return Ok(()),
        // Kernels show some options in another length.
        Ok(now) if off(&now) && off(&option.value) => return Ok(()),
        // This kernel does not have it, and it was off.
        Err(_) if off(&option.value) => return Ok(()),
        // Newer kernels have it for TCP alone, where alone it ever meant something.
        Err(Errno::EOPNOTSUPP) if (level, name) == (c::SOL_SOCKET, SO_TXREHASH) => return Ok(()),
        // What is on with every unix socket of newer kernels, older ones do without being asked.
        Err(Errno::ENOPROTOOPT) if (level, name) == (c::SOL_SOCKET, SO_PASSRIGHTS) => {
            return Ok(());
        }
        _ => {}
    }
    let forced = match (level, name) {
        (c::SOL_SOCKET, c::SO_SNDBUF) => c::SO_SNDBUFFORCE,
        (c::SOL_SOCKET, c::SO_RCVBUF) => c::SO_RCVBUFFORCE,
        (c::SOL_SOCKET, c::SO_LINGER) => return set_linger(fd, &option.value),
        _ => return socket::set_option(fd, level, name, &option.value),
    };
    // The kernel doubles what it is given (socket(7)).
    socket::set_int_option(fd, level, forced, size(option) / 2)
}

/// What the kernel shows of an option once it is set.
fn shown(option: &SocketOption) -> Vec<u8> {
    match (option.level, option.name) {
        (c::SOL_SOCKET, c::SO_SNDBUF | c::SO_RCVBUF) => size(option).to_ne_bytes().to_vec(),
        // The address of `struct ip_mreqn`, without the group before it and the interface behind.
        (c::SOL_IP, c::IP_MULTICAST_IF) if option.value.len() > 4 => {
            option.value.get(4..8).unwrap_or_default().to_vec()
        }
        _ => option.value.clone(),
    }
}

/// The size of a buffer, up to the next even number: TCP lets buffers grow to odd sizes, and no program can ask for one
/// of these. What fits in still does in the next larger one.
fn size(option: &SocketOption) -> i32 {
    let word = option.value.get(..4).and_then(|w| w.try_into().ok());
    let size = word.map_or(0, i32::from_ne_bytes);
    size.saturating_add(size & 1)
}

/// The kernel keeps the time also when it is switched off, and takes one only when it is switched on.
fn set_linger(fd: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
    let (level, name) = (c::SOL_SOCKET, c::SO_LINGER);
    let on = 1i32.to_ne_bytes();
    if let Some(time) = value.get(on.len()..) {
        socket::set_option(fd, level, name, &[&on, time].concat())?;
    }
    socket::set_option(fd, level, name, value)
}

/// What a listening unix socket hands on to those who connect (Linux 6.16): `passes`, or what it will have itself.
pub(super) fn pass(making: &Making<'_>, fd: BorrowedFd<'_>, passes: Option<u8>) -> Result<()> {
    let names = [c::SO_PASSCRED, c::SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS];
    for (bit, name) in names.into_iter().enumerate() {
        let line = (c::SOL_SOCKET, name);
        let own = |option: &&SocketOption| (option.level, option.name) == line;
        let own = making.socket.options.iter().find(own);
        let wanted = match (passes, own) {
            (Some(passes), _) => passes >> bit & 1 == 1,
            (None, Some(own)) => own.value.iter().any(|byte| *byte != 0),
            (None, None) => continue,
        };
        let now = socket::int_option(fd, line.0, name);
        if now.is_ok_and(|now| (now != 0) != wanted) {
            socket::set_int_option(fd, line.0, name, wanted.into())?;
        }
    }
    Ok(())
}

/// Buffers so large that everything fits in; [`set`] gives them their sizes afterwards.
pub(super) fn enlarge(fd: impl AsFd) {
    const ENOUGH: i32 = 256 << 20;
    for name in [c::SO_SNDBUFFORCE, c::SO_RCVBUFFORCE] {
        // Without the privilege the old size has to do.
        let _ = socket::set_int_option(fd.as_fd(), c::SOL_SOCKET, name, ENOUGH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::{Connection, InetSocket};

    fn int(level: i32, name: i32, value: i32) -> SocketOption {
        SocketOption {
            level,
            name,
            value: value.to_ne_bytes().to_vec(),
        }
    }

    #[test]
    fn buffers_take_the_size_the_kernel_showed() {
        let fd = socket::socket(c::AF_INET, c::SOCK_DGRAM, 0).unwrap();
        for option in [
            int(c::SOL_SOCKET, c::SO_RCVBUF, 99_998),
            int(c::SOL_SOCKET, c::SO_SNDBUF, 9 << 20),
            int(c::SOL_SOCKET, SO_BUF_LOCK, 2),
        ] {
            set_one(fd.as_fd(), &option).unwrap();
            let now = socket::option(fd.as_fd(), option.level, option.name, 4).unwrap();
            assert_eq!(now, option.value);
        }
    }

    #[test]
    fn an_odd_size_of_a_buffer_becomes_the_next_larger_one() {
        let fd = socket::socket(c::AF_INET, c::SOCK_STREAM, 0).unwrap();
        let option = int(c::SOL_SOCKET, c::SO_RCVBUF, 99_999);
        set_one(fd.as_fd(), &option).unwrap();
        let now = socket::option(fd.as_fd(), option.level, option.name, 4).unwrap();
        assert_eq!(now, 100_000i32.to_ne_bytes());
        assert_eq!(now, shown(&option));
    }

    #[test]
    fn of_the_interface_for_groups_the_address_is_shown() {
        let fd = socket::socket(c::AF_INET, c::SOCK_DGRAM, 0).unwrap();
        let lo = [[0; 4], [127, 0, 0, 1], 1i32.to_ne_bytes()].concat();
        let option = SocketOption {
            value: lo,
            ..int(c::SOL_IP, c::IP_MULTICAST_IF, 0)
        };
        set_one(fd.as_fd(), &option).unwrap();
        let now = socket::option(fd.as_fd(), option.level, option.name, 12).unwrap();
        assert_eq!(now, shown(&option));
    }

    #[test]
    fn what_is_unknown_and_off_is_left_alone() {
        let fd = socket::socket(c::AF_INET, c::SOCK_DGRAM, 0).unwrap();
        assert_eq!(set_one(fd.as_fd(), &int(c::SOL_SOCKET, 9999, 0)), Ok(()));
        assert!(set_one(fd.as_fd(), &int(c::SOL_SOCKET, 9999, 1)).is_err());
    }

    #[test]
    fn buffers_of_internet_sockets_come_late() {
        let mut socket = internet(None);
        let rcvbuf = int(c::SOL_SOCKET, c::SO_RCVBUF, 0);
        assert_eq!(when(&socket, &rcvbuf), When::Late);
        let v6only = int(c::SOL_IPV6, c::IPV6_V6ONLY, 1);
        assert_eq!(when(&socket, &v6only), When::Early);
        let ttl = int(c::SOL_IP, c::IP_TTL, 7);
        assert_eq!(when(&socket, &ttl), When::Early);
        socket = internet(Some(Connection::default()));
        assert_eq!(when(&socket, &ttl), When::Late);
        assert_eq!(when(&socket, &v6only), When::Early);
    }

    fn internet(connection: Option<Connection>) -> Socket {
        Socket {
            domain: c::AF_INET6,
            kind: c::SOCK_STREAM,
            protocol: 0,
            owner: (0, 0),
            mode: 0,
            options: Vec::new(),
            filter: Vec::new(),
            filter_locked: false,
            state: SocketState::Inet(InetSocket {
                connection,
                ..InetSocket::default()
            }),
        }
    }
}
