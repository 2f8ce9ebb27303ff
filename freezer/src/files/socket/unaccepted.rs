//! Connections that nobody has accepted, read from the kernel's memory: the sockets that accept(2) would give
//! are in no process's table, but the listening socket leads to them.

use super::pieces::{self, Piece};
use super::tcp::buffers::{self, Received};
use crate::kernel::{Kernel, Unreadable, half};
use nix::libc as c;
use persist_mem::manifest::{PeerCredentials, SocketMessage};
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a connection that waits to be accepted");
/// More than any backlog (net.core.somaxconn) that programs have.
const MOST: usize = 1 << 16;

/// A unix connection.
#[derive(Debug)]
pub(super) struct Unix {
    /// What the client has sent.
    pub(super) sent: Vec<SocketMessage>,
    /// The open files in flight in each of that, by where the kernel has them.
    pub(super) files: Vec<Vec<u64>>,
    /// Whom the server will see.
    pub(super) credentials: Option<PeerCredentials>,
    /// Which of `SO_PASSCRED` and the like it has already.
    pub(super) passes: Option<u8>,
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Tcp {
    /// `TCP_ESTABLISHED` and so on.
    pub(super) state: u8,
    /// The error that its next call is told.
    pub(super) error: i32,
    /// The address it was made to, bytes of the `struct sockaddr`.
    pub(super) local: Vec<u8>,
    /// The client's.
    pub(super) remote: Vec<u8>,
    /// What the client has sent.
    pub(super) sent: Vec<u8>,
    /// How far.
    pub(super) received: Received,
}

/// The connections of a listening unix socket, in order: a buffer in its queue stands for each
/// (net/unix/af_unix.c, unix_stream_connect).
pub(super) fn unix(fd: BorrowedFd<'_>) -> Result<Vec<Unix>, Unreadable> {
    crate::kernel::look(|kernel| {
        let listener = kernel.own_sock(fd)?;
        let mut found = Vec::new();
        for buffer in kernel.queue(listener)? {
            let sk = kernel.of_buffer(&buffer, "sk")?;
            found.push(unix_connection(kernel, sk)?);
        }
        Ok(found)
    })
}

fn unix_connection(kernel: &mut Kernel, sk: u64) -> Result<Unix, Unreadable> {
    let pieces = pieces::in_queue(kernel, sk)?;
    let files = pieces.iter().map(|piece| piece.files.clone()).collect();
    let message = |piece: Piece| SocketMessage {
        data: piece.data,
        credentials: piece.credentials,
        urgent: piece.urgent,
        ..SocketMessage::default()
    };
    Ok(Unix {
        sent: pieces.into_iter().map(message).collect(),
        files,
        credentials: peer(kernel, sk)?,
        passes: match kernel.fields(sk, "sock", &["sk_scm_recv_flags"]) {
            Ok(found) => found.first().map(|flags| *flags as u8),
            Err(Unreadable::NoField(_)) => None,
            Err(why) => return Err(why),
        },
    })
}

/// `SO_PEERCRED` and `SO_PEERGROUPS` of a socket.
fn peer(kernel: &mut Kernel, sk: u64) -> Result<Option<PeerCredentials>, Unreadable> {
    let found = kernel.fields(sk, "sock", &["sk_peer_pid", "sk_peer_cred"])?;
    let [pid, credentials] = found[..] else {
        return Err(WRONG);
    };
    if pid == 0 || credentials == 0 {
        return Ok(None);
    }
    let found = kernel.fields(credentials, "cred", &["euid", "egid", "group_info"])?;
    let [uid, gid, groups] = found[..] else {
        return Err(WRONG);
    };
    let count = kernel.fields(groups, "group_info", &["ngroups"])?[0] as usize;
    let first = kernel.btf().field("group_info", "gid")?.offset;
    if count > MOST {
        return Err(WRONG);
    }
    let bytes = kernel.read(&[(groups.wrapping_add(first), count * 4)])?;
    let bytes = bytes.into_iter().flatten().next().ok_or(WRONG)?;
    let groups = (0..count).map(|n| half(&bytes, n as u64 * 4));
    Ok(Some(PeerCredentials {
        pid: kernel.number_of(pid)?,
        uid: uid as u32,
        gid: gid as u32,
        groups: groups.collect::<Option<_>>().ok_or(WRONG)?,
    }))
}

/// The connections of a listening TCP socket, in order (include/net/request_sock.h).
pub(super) fn tcp(fd: BorrowedFd<'_>) -> Result<Vec<Tcp>, Unreadable> {
    const HEAD: &str = "icsk_accept_queue.rskq_accept_head";
    crate::kernel::look(|kernel| {
        let listener = kernel.own_sock(fd)?;
        let mut request = kernel.fields(listener, "inet_connection_sock", &[HEAD])?[0];
        let mut found = Vec::new();
        while request != 0 {
            let next = kernel.fields(request, "request_sock", &["dl_next", "sk"])?;
            let [next, sk] = next[..] else {
                return Err(WRONG);
            };
            found.push(tcp_connection(kernel, sk)?);
            if found.len() > MOST {
                return Err(WRONG);
            }
            request = next;
        }
        Ok(found)
    })
}

fn tcp_connection(kernel: &mut Kernel, sk: u64) -> Result<Tcp, Unreadable> {
    let state = kernel.fields(sk, "sock_common", &["skc_state"])?;
    let error = kernel.fields(sk, "sock", &["sk_err"])?;
    let (mut local, remote) = addresses(kernel, sk)?;
    // One that is over has given back its port, and shows it nevertheless.
    let port = kernel.fields(sk, "inet_sock", &["inet_sport"])?;
    let port = port.first().copied().ok_or(WRONG)? as u16;
    let place = local.get_mut(2..4).ok_or(WRONG)?;
    place.copy_from_slice(&port.to_ne_bytes());
    Ok(Tcp {
        state: state.first().copied().ok_or(WRONG)? as u8,
        error: error.first().copied().ok_or(WRONG)? as i32,
        local,
        remote,
        sent: buffers::bytes(kernel, sk)?,
        received: buffers::received(kernel, sk)?,
    })
}

/// The own address of a socket of IP and its peer's, bytes of a `struct sockaddr` each.
pub(super) fn addresses(kernel: &mut Kernel, sk: u64) -> Result<(Vec<u8>, Vec<u8>), Unreadable> {
    const COMMON: &str = "sock_common";
    let found = kernel.fields(sk, COMMON, &["skc_family", "skc_dport", "skc_num"])?;
    let [family, dport, number] = found[..] else {
        return Err(WRONG);
    };
    let ports = [(number as u16).to_be_bytes(), (dport as u16).to_ne_bytes()];
    let (hosts, len) = if family as i32 == c::AF_INET {
        (["skc_rcv_saddr", "skc_daddr"], 4)
    } else {
        (["skc_v6_rcv_saddr", "skc_v6_daddr"], 16)
    };
    let mut addresses = Vec::new();
    for (host, port) in hosts.into_iter().zip(ports) {
        let at = sk.wrapping_add(kernel.btf().field(COMMON, host)?.offset);
        let host = kernel.read(&[(at, len)])?.pop().flatten().ok_or(WRONG)?;
        let family = (family as u16).to_ne_bytes();
        addresses.push(if len == 4 {
            [&family[..], &port, &host, &[0; 8]].concat()
        } else {
            [&family[..], &port, &[0; 4], &host, &[0; 4]].concat()
        });
    }
    let remote = addresses.pop().ok_or(WRONG)?;
    Ok((addresses.pop().ok_or(WRONG)?, remote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::readable;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    #[test]
    fn what_unix_clients_have_sent() {
        let name = format!("kupgrade-unaccepted-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut first = UnixStream::connect_addr(&address).unwrap();
        let _second = UnixStream::connect_addr(&address).unwrap();
        first.write_all(b"one").unwrap();
        first.write_all(&[7; 70_000]).unwrap();
        drop(first);
        let Some(found) = readable(unix(listener.as_fd())) else {
            return;
        };
        let me = std::process::id().cast_signed();
        let data = |one: &Unix| one.sent.iter().flat_map(|m| m.data.clone()).collect();
        let data: Vec<Vec<u8>> = found.iter().map(data).collect();
        assert_eq!(data, [[&b"one"[..], &[7; 70_000]].concat(), vec![]]);
        for one in &found {
            assert_eq!(one.credentials.as_ref().map(|c| c.pid), Some(me));
            assert!(one.files.concat().is_empty());
        }
        assert_eq!(found[0].sent[0].credentials.map(|c| c.0), Some(me));
    }

    #[test]
    fn what_tcp_clients_have_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut first = TcpStream::connect(address).unwrap();
        let second = TcpStream::connect(address).unwrap();
        first.write_all(b"one").unwrap();
        first.write_all(&[7; 70_000]).unwrap();
        first.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let Some(found) = readable(tcp(listener.as_fd())) else {
            return;
        };
        let port = |one: &Tcp| u16::from_be_bytes([one.remote[2], one.remote[3]]);
        let [a, b] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(a.sent, [&b"one"[..], &[7; 70_000]].concat());
        assert_eq!((a.state, b.state), (8, 1));
        assert_eq!(b.sent, []);
        assert_eq!(port(a), first.local_addr().unwrap().port());
        assert_eq!(port(b), second.local_addr().unwrap().port());
        assert_eq!(b.local[..2], 2u16.to_ne_bytes());
        assert_eq!(b.local[4..8], [127, 0, 0, 1]);
    }
}
