//! Sockets with addresses and options as the kernel's bytes. nix types addresses and options one by
//! one; what carries a socket must treat those it does not know the same way as those it does.

mod messages;
mod options;

use crate::Result;
use crate::raw::syscall;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use messages::{Control, Credentials, Outgoing, Received, receive, receive_whole_pieces, send};
pub use options::{
    attach_filter, attach_port_program, filter, int_option, option, query_option, set_int_option,
    set_option,
};

/// Largest address of any family (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;

fn number(fd: BorrowedFd<'_>) -> u64 {
    fd.as_raw_fd() as u64
}

fn owned(fd: u64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

/// socket(2), close-on-exec.
///
/// # Errors
/// `EAFNOSUPPORT`, `EPROTONOSUPPORT`, `EPERM`.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC;
    let args = [domain as u64, kind as u64, protocol as u64, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_socket, args) }.map(owned)
}

/// socketpair(2), close-on-exec.
///
/// # Errors
/// `EOPNOTSUPP` when the family has no pairs.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Result<(OwnedFd, OwnedFd)> {
    let kind = kind | libc::SOCK_CLOEXEC;
    let mut ends = [-1i32; 2];
    let args = [
        domain as u64,
        kind as u64,
        protocol as u64,
        ends.as_mut_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: `ends` takes two descriptors.
    unsafe { syscall(libc::SYS_socketpair, args) }?;
    Ok((owned(ends[0] as u64), owned(ends[1] as u64)))
}

/// bind(2) to an address given as the bytes of its `struct sockaddr`.
///
/// # Errors
/// `EADDRINUSE`, `EACCES`, `EINVAL`.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let args = [
        number(fd),
        address.as_ptr() as u64,
        address.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads `address.len()` bytes.
    unsafe { syscall(libc::SYS_bind, args) }.map(drop)
}

/// connect(2) to an address given as the bytes of its `struct sockaddr`.
///
/// # Errors
/// `ECONNREFUSED`, `EAGAIN`, `EINPROGRESS` and what else connect(2) lists.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let args = [
        number(fd),
        address.as_ptr() as u64,
        address.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads `address.len()` bytes.
    unsafe { syscall(libc::SYS_connect, args) }.map(drop)
}

/// listen(2).
///
/// # Errors
/// `EADDRINUSE`, `EOPNOTSUPP`.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> Result<()> {
    let args = [number(fd), u64::from(backlog), 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_listen, args) }.map(drop)
}

/// accept4(2), close-on-exec.
///
/// # Errors
/// `EAGAIN`, `EINVAL`.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let args = [number(fd), 0, 0, libc::SOCK_CLOEXEC as u64, 0, 0];
    // SAFETY: null pointers ask for no address.
    unsafe { syscall(libc::SYS_accept4, args) }.map(owned)
}

/// shutdown(2): `SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.
///
/// # Errors
/// `ENOTCONN`.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_shutdown, [number(fd), how as u64, 0, 0, 0, 0]) }.map(drop)
}

fn address(nr: i64, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as u32;
    let args = [
        number(fd),
        bytes.as_mut_ptr() as u64,
        (&raw mut len) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: `bytes` has `len` bytes.
    unsafe { syscall(nr, args) }?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// getsockname(2): the bytes of the `struct sockaddr`.
///
/// # Errors
/// `ENOTSOCK`.
pub fn name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(libc::SYS_getsockname, fd)
}

/// getpeername(2).
///
/// # Errors
/// `ENOTCONN`.
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(libc::SYS_getpeername, fd)
}

/// `SIOCOUTQ`: for unix sockets memory of what was sent and not received yet, 0 when there is none;
/// for TCP bytes not acknowledged.
///
/// # Errors
/// `EINVAL` for a listening socket.
pub fn unsent(fd: BorrowedFd<'_>) -> Result<u32> {
    int_ioctl(fd, libc::TIOCOUTQ)
}

/// `SIOCINQ`: bytes to be received, of the next datagram where there are datagrams.
///
/// # Errors
/// `EINVAL` for a listening socket.
pub fn unread(fd: BorrowedFd<'_>) -> Result<u32> {
    int_ioctl(fd, libc::FIONREAD)
}

fn int_ioctl(fd: BorrowedFd<'_>, request: u64) -> Result<u32> {
    let mut value = 0i32;
    let args = [number(fd), request, (&raw mut value) as u64, 0, 0, 0];
    // SAFETY: both requests write one int.
    unsafe { syscall(libc::SYS_ioctl, args) }?;
    Ok(value.cast_unsigned())
}

/// poll(2) without waiting: which of `POLLIN`, `POLLPRI`, `POLLRDHUP`, `POLLERR`, `POLLHUP` hold.
///
/// # Errors
/// `ENOMEM`.
pub fn events(fd: BorrowedFd<'_>) -> Result<i16> {
    let mut asked = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, as stated.
    unsafe { syscall(libc::SYS_poll, [(&raw mut asked) as u64, 1, 0, 0, 0, 0]) }?;
    Ok(asked.revents)
}

/// Whether an address of the Internet is one of this host's, whatever its port.
#[must_use]
pub fn is_local(address: &[u8]) -> bool {
    let mut any_port = address.to_vec();
    if let Some(port) = any_port.get_mut(2..4) {
        port.fill(0);
    }
    let domain = i32::from(address.first().copied().unwrap_or(0));
    socket(domain, libc::SOCK_DGRAM, 0).is_ok_and(|fd| bind(fd.as_fd(), &any_port).is_ok())
}

/// `SIOCUNIXFILE` (include/uapi/linux/un.h): an O_PATH descriptor of the file that a unix socket is
/// bound to, wherever the file is now.
///
/// # Errors
/// `ENOENT` when it is not bound, or not to a path; `EPERM` without CAP_NET_ADMIN.
pub fn bound_file(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCUNIXFILE: u64 = 0x89e0;
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_ioctl, [number(fd), SIOCUNIXFILE, 0, 0, 0, 0]) }.map(owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn addresses_of_this_host_are_told() {
        let of = |host: [u8; 4]| [&[2, 0, 0, 80][..], &host, &[0; 8]].concat();
        assert!(is_local(&of([127, 0, 0, 1])));
        assert!(!is_local(&of([192, 0, 2, 1])));
        assert!(!is_local(&[]));
    }

    #[test]
    fn the_file_of_a_name_is_found_after_it_moved() {
        let dir = std::env::temp_dir().join(format!("kupgrade-sockets-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(bound_file(socket.as_fd()).unwrap_err(), Errno::ENOENT);
        let mut address = vec![1u8, 0];
        address.extend_from_slice(dir.join("a").as_os_str().as_encoded_bytes());
        bind(socket.as_fd(), &address).unwrap();
        std::fs::rename(dir.join("a"), dir.join("b")).unwrap();
        let file = bound_file(socket.as_fd()).unwrap();
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(std::fs::read_link(link).unwrap(), dir.join("b"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
