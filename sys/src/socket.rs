//! Sockets with addresses and options as the kernel's bytes. nix types addresses and options one by
//! one; what carries a socket must treat those it does not know the same way as those it does.

use crate::Result;
use crate::raw::syscall;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Largest address of any family (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;
/// SCM_MAX_FD (include/net/scm.h) descriptors, credentials and some more.
const CONTROL_MAX: usize = 4096;
/// Bytes of `struct cmsghdr` on x86_64: length u64, level i32, type i32.
const CMSG_HEADER: usize = 16;
/// `SCM_PIDFD` (include/linux/socket.h).
const SCM_PIDFD: i32 = 4;

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

/// getsockopt(2) with what `value` holds as input; cut to what the kernel gives.
///
/// # Errors
/// `ENOPROTOOPT` when the socket has no such option, and what the option says.
pub fn query_option(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    mut value: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut len = u32::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    let args = [
        number(fd),
        level as u64,
        name as u64,
        value.as_mut_ptr() as u64,
        (&raw mut len) as u64,
        0,
    ];
    // SAFETY: `value` has `len` bytes; SO_GET_FILTER, whose length counts instructions, is kept out.
    if (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    value.truncate(len as usize);
    Ok(value)
}

/// getsockopt(2) of an option of at most `capacity` bytes.
///
/// # Errors
/// As [`query_option`].
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, capacity: usize) -> Result<Vec<u8>> {
    query_option(fd, level, name, vec![0; capacity])
}

/// getsockopt(2) of an `int`.
///
/// # Errors
/// As [`query_option`].
pub fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let value = option(fd, level, name, 4)?;
    let mut word = [0; 4];
    word[..value.len()].copy_from_slice(&value);
    Ok(i32::from_ne_bytes(word))
}

/// setsockopt(2). Options whose value holds a pointer have functions of their own.
///
/// # Errors
/// `ENOPROTOOPT`, `EPERM`, `EINVAL`.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let programs = [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF];
    if level == libc::SOL_SOCKET && programs.contains(&name) {
        return Err(Errno::EINVAL);
    }
    set_raw(fd, level, name, value)
}

fn set_raw(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let args = [
        number(fd),
        level as u64,
        name as u64,
        value.as_ptr() as u64,
        value.len() as u64,
        0,
    ];
    // SAFETY: the kernel reads `value.len()` bytes; where they hold a pointer, the caller vouches.
    unsafe { syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// setsockopt(2) of an `int`.
///
/// # Errors
/// As [`set_option`].
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// The attached classic BPF program (`SO_GET_FILTER`, socket(7)), one `struct sock_filter` in each
/// u64; empty when there is none.
///
/// # Errors
/// `EACCES` when the filter is not a classic one.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u64>> {
    let mut count = 0u32;
    let ask = |pointer: u64, count: &mut u32| {
        let args = [
            number(fd),
            libc::SOL_SOCKET as u64,
            libc::SO_GET_FILTER as u64,
            pointer,
            core::ptr::from_mut(count) as u64,
            0,
        ];
        // SAFETY: with a count of 0 nothing is written; else `pointer` has room for `count`
        // instructions of 8 bytes.
        unsafe { syscall(libc::SYS_getsockopt, args) }
    };
    ask(0, &mut count)?;
    let mut program = vec![0u64; count as usize];
    if count > 0 {
        ask(program.as_mut_ptr() as u64, &mut count)?;
    }
    Ok(program)
}

/// Attaches a classic BPF program as [`filter`] gives it.
///
/// # Errors
/// `EINVAL` when the kernel's checker does not take it.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    attach(fd, libc::SO_ATTACH_FILTER, program)
}

/// Attaches a classic BPF program that chooses among the sockets of one port
/// (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)).
///
/// # Errors
/// `EINVAL` when the socket shares its port with none.
pub fn attach_port_program(fd: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn attach(fd: BorrowedFd<'_>, name: i32, program: &[u64]) -> Result<()> {
    let count = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // struct sock_fprog: u16 count, padding, pointer.
    let mut value = [0u8; 16];
    value[..2].copy_from_slice(&count.to_ne_bytes());
    value[8..].copy_from_slice(&(program.as_ptr() as u64).to_ne_bytes());
    set_raw(fd, libc::SOL_SOCKET, name, &value)
}

/// Sender of a message (`struct ucred`): pid, uid, gid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Credentials {
    /// From the bytes of a `struct ucred`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Credentials> {
        let word = |at: usize| Some(bytes.get(at..at + 4)?.try_into().unwrap_or([0; 4]));
        Some(Credentials {
            pid: i32::from_ne_bytes(word(0)?),
            uid: u32::from_ne_bytes(word(4)?),
            gid: u32::from_ne_bytes(word(8)?),
        })
    }

    fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.uid.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.gid.to_ne_bytes());
        bytes
    }
}

/// A control message other than descriptors and credentials: level, type, value.
pub type Control = (i32, i32, Vec<u8>);

/// What [`receive`] got.
#[derive(Debug, Default)]
pub struct Received {
    /// The bytes.
    pub data: Vec<u8>,
    /// Address of the sender, bytes of its `struct sockaddr`; empty when unnamed.
    pub source: Vec<u8>,
    /// Descriptors that came with it (SCM_RIGHTS).
    pub fds: Vec<OwnedFd>,
    /// Who sent it (SCM_CREDENTIALS).
    pub credentials: Option<Credentials>,
    /// Other control messages.
    pub control: Vec<Control>,
    /// `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_EOR`, ...
    pub flags: i32,
}

/// recvmsg(2) of up to `capacity` bytes.
///
/// # Errors
/// `EAGAIN` with `MSG_DONTWAIT` when there is nothing.
pub fn receive(fd: BorrowedFd<'_>, flags: i32, capacity: usize) -> Result<Received> {
    receive_into(fd, flags, capacity, false)
}

/// As [`receive`], with a byte behind the `capacity` that cannot be written. A stream's queue is copied
/// piece by piece as it was sent; the piece that reaches that byte fails, and what is before it is got.
///
/// # Errors
/// `EFAULT` when it is the first piece.
pub fn receive_whole_pieces(fd: BorrowedFd<'_>, flags: i32, capacity: usize) -> Result<Received> {
    receive_into(fd, flags, capacity, true)
}

fn receive_into(fd: BorrowedFd<'_>, flags: i32, capacity: usize, fault: bool) -> Result<Received> {
    let mut data = vec![0u8; capacity];
    let mut source = vec![0u8; ADDRESS_MAX];
    let mut control = vec![0u64; CONTROL_MAX / 8];
    let mut parts = [
        libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: capacity,
        },
        // Nothing is ever mapped at the lowest page (vm.mmap_min_addr).
        libc::iovec {
            iov_base: core::ptr::without_provenance_mut(8),
            iov_len: 1,
        },
    ];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
    header.msg_name = source.as_mut_ptr().cast();
    header.msg_namelen = ADDRESS_MAX as u32;
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = if fault { 2 } else { 1 };
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MAX;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let args = [number(fd), (&raw mut header) as u64, flags as u64, 0, 0, 0];
    // SAFETY: every buffer of the header is live and as long as the header says; the part that is no
    // buffer makes the kernel fail, not write.
    let got = unsafe { syscall(libc::SYS_recvmsg, args) }?;
    data.truncate(usize::try_from(got).unwrap_or(capacity));
    data.shrink_to_fit();
    source.truncate(header.msg_namelen as usize);
    let mut received = Received {
        data,
        source,
        flags: header.msg_flags,
        ..Received::default()
    };
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let used = header.msg_controllen.min(bytes.len());
    for (level, kind, value) in control_messages(&bytes[..used]) {
        sort_in(&mut received, level, kind, value);
    }
    Ok(received)
}

/// Splits a control buffer (cmsg(3)).
fn control_messages(mut bytes: &[u8]) -> Vec<Control> {
    let mut found = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<CMSG_HEADER>() {
        let [
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            v0,
            v1,
            v2,
            v3,
            t0,
            t1,
            t2,
            t3,
        ] = *head;
        let len = u64::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]) as usize;
        let Some(value) = bytes.get(CMSG_HEADER..len) else {
            break;
        };
        let level = i32::from_ne_bytes([v0, v1, v2, v3]);
        let kind = i32::from_ne_bytes([t0, t1, t2, t3]);
        found.push((level, kind, value.to_vec()));
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    found
}

fn sort_in(received: &mut Received, level: i32, kind: i32, value: Vec<u8>) {
    let descriptors = || {
        value
            .chunks_exact(4)
            .map(|word| i32::from_ne_bytes(word.try_into().unwrap_or([0xff; 4])))
            .filter(|fd| *fd >= 0)
            .map(|fd| owned(fd as u64))
    };
    match (level, kind) {
        (libc::SOL_SOCKET, libc::SCM_RIGHTS) => received.fds.extend(descriptors()),
        (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
            received.credentials = Credentials::from_bytes(&value);
        }
        // Made anew by the kernel at every receipt: nothing of the message.
        (libc::SOL_SOCKET, SCM_PIDFD) => drop(descriptors().collect::<Vec<_>>()),
        _ => received.control.push((level, kind, value)),
    }
}

/// What [`send`] sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// Where to, bytes of a `struct sockaddr`; empty for the connected peer.
    pub to: &'a [u8],
    /// Descriptors to send along.
    pub fds: &'a [BorrowedFd<'a>],
    /// Sender to name instead of this process.
    pub credentials: Option<Credentials>,
    /// Other control messages: level, type, value.
    pub control: &'a [Control],
}

/// sendmsg(2). Gives the number of bytes sent.
///
/// # Errors
/// `EAGAIN`, `EPIPE`, `ENOBUFS`, `ETOOMANYREFS`.
pub fn send(fd: BorrowedFd<'_>, message: &Outgoing<'_>, flags: i32) -> Result<usize> {
    let mut control: Vec<u8> = Vec::new();
    if !message.fds.is_empty() {
        let numbers = message.fds.iter().map(AsRawFd::as_raw_fd);
        let value: Vec<u8> = numbers.flat_map(i32::to_ne_bytes).collect();
        push_control(&mut control, libc::SOL_SOCKET, libc::SCM_RIGHTS, &value);
    }
    if let Some(credentials) = message.credentials {
        let value = credentials.to_bytes();
        push_control(
            &mut control,
            libc::SOL_SOCKET,
            libc::SCM_CREDENTIALS,
            &value,
        );
    }
    for (level, kind, value) in message.control {
        push_control(&mut control, *level, *kind, value);
    }
    // The kernel wants it aligned.
    let words: Vec<u64> = control
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect();
    let mut part = libc::iovec {
        iov_base: message.data.as_ptr().cast_mut().cast(),
        iov_len: message.data.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
    header.msg_name = message.to.as_ptr().cast_mut().cast();
    header.msg_namelen = u32::try_from(message.to.len()).map_err(|_| Errno::EINVAL)?;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !words.is_empty() {
        header.msg_control = words.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len();
    }
    let flags = flags | libc::MSG_NOSIGNAL;
    let args = [
        number(fd),
        (&raw const header) as u64,
        flags as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel only reads, and every buffer is as long as the header says.
    let sent = unsafe { syscall(libc::SYS_sendmsg, args) }?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

fn push_control(control: &mut Vec<u8>, level: i32, kind: i32, value: &[u8]) {
    control.extend_from_slice(&((CMSG_HEADER + value.len()) as u64).to_ne_bytes());
    control.extend_from_slice(&level.to_ne_bytes());
    control.extend_from_slice(&kind.to_ne_bytes());
    control.extend_from_slice(value);
    control.resize(control.len().next_multiple_of(8), 0);
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
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_and_credentials_travel() {
        let (a, b) = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
        set_int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let me = Credentials {
            pid: std::process::id().cast_signed(),
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
        };
        let message = Outgoing {
            data: b"both",
            fds: &[a.as_fd(), b.as_fd()],
            credentials: Some(me),
            ..Outgoing::default()
        };
        assert_eq!(send(a.as_fd(), &message, 0).unwrap(), 4);
        for flags in [libc::MSG_PEEK, 0] {
            let got = receive(b.as_fd(), flags | libc::MSG_DONTWAIT, 100).unwrap();
            assert_eq!(got.data, b"both");
            assert_eq!(got.fds.len(), 2);
            assert_eq!(got.credentials, Some(me));
            assert_eq!(got.flags & libc::MSG_CTRUNC, 0);
        }
        let empty = receive(b.as_fd(), libc::MSG_DONTWAIT, 1).unwrap_err();
        assert_eq!(empty, Errno::EAGAIN);
    }

    #[test]
    fn pieces_of_a_stream_are_told_apart() {
        let (a, b) = pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        for data in [&b"one"[..], b"three"] {
            let message = Outgoing {
                data,
                ..Outgoing::default()
            };
            send(a.as_fd(), &message, 0).unwrap();
        }
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        assert_eq!(receive(b.as_fd(), flags, 9).unwrap().data, b"onethree");
        let first = |capacity| receive_whole_pieces(b.as_fd(), flags, capacity);
        assert_eq!(first(7).unwrap().data, b"one");
        assert_eq!(first(3).unwrap().data, b"one");
        assert_eq!(first(2).unwrap_err(), Errno::EFAULT);
    }

    #[test]
    fn a_filter_comes_back_as_it_was_attached() {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(filter(socket.as_fd()).unwrap(), Vec::<u64>::new());
        // BPF_LD|BPF_W|BPF_ABS 0; BPF_RET|BPF_K 0xffff
        let program = [0x20u64, 0x06 | (0xffff << 32)];
        attach_filter(socket.as_fd(), &program).unwrap();
        assert_eq!(filter(socket.as_fd()).unwrap(), program);
        assert_eq!(
            attach_filter(socket.as_fd(), &[0xff]).unwrap_err(),
            Errno::EINVAL
        );
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
