//! Messages with descriptors, credentials and other control data (cmsg(3)).

use super::{ADDRESS_MAX, number, owned};
use crate::Result;
use crate::raw::syscall;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// SCM_MAX_FD (include/net/scm.h) descriptors, credentials and some more.
const CONTROL_MAX: usize = 4096;
/// Bytes of `struct cmsghdr` on x86_64: length u64, level i32, type i32.
const CMSG_HEADER: usize = 16;
/// `SCM_PIDFD` (include/linux/socket.h).
const SCM_PIDFD: i32 = 4;

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

#[cfg(test)]
mod tests {
    use super::super::{pair, set_int_option};
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
}
