//! Sockets.

use super::DescriptionId;
use serde::{Deserialize, Serialize};

/// A socket. It has one open file description for all its life, so it needs no name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_*`.
    pub domain: i32,
    /// `SOCK_*` without flags.
    pub kind: i32,
    /// Protocol within the domain.
    pub protocol: i32,
    /// User and group of its inode (fchown(2)); what it sends counts as this user's (`sk_uid`).
    pub owner: (u32, u32),
    /// Permission bits of its inode (fchmod(2)).
    pub mode: u32,
    /// Every option that can be read and set, in the order they are to be set.
    pub options: Vec<SocketOption>,
    /// The classic BPF program attached, one `struct sock_filter` each, empty when there is none.
    pub filter: Vec<u64>,
    /// `SO_LOCK_FILTER`.
    pub filter_locked: bool,
    /// What the family adds.
    pub state: SocketState,
}

/// One option as getsockopt(2) gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*`.
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// What a family of sockets adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketState {
    /// AF_UNIX.
    Unix(UnixSocket),
    /// AF_INET and AF_INET6.
    Inet(InetSocket),
    /// AF_NETLINK.
    Netlink(NetlinkSocket),
    /// AF_PACKET.
    Packet(PacketSocket),
    /// AF_VSOCK.
    Vsock(VsockSocket),
}

/// A socket of virtual machines (vsock(7)) without a connection.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VsockSocket {
    /// `struct sockaddr_vm` that it is bound to, empty when it is not.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The backlog of one that listens.
    pub backlog: Option<u32>,
}

/// A unix socket (unix(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnixSocket {
    /// The name as bound: a path, or an abstract name with its leading NUL; empty when unnamed.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Where the file of a path name is; None when the name is no path or the file was removed.
    pub file: Option<UnixFile>,
    /// Whom it talks to.
    pub link: UnixLink,
    /// Whom it was connected, paired or made listening by (`SO_PEERCRED`, `SO_PEERGROUPS`).
    pub peer_credentials: Option<PeerCredentials>,
    /// `SHUT_RD` as 1, `SHUT_WR` as 2.
    pub shutdown: u8,
    /// Messages received and not read; one element for each piece that a stream's bytes were sent in.
    pub queue: Vec<SocketMessage>,
}

/// The file that a unix socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixFile {
    /// Its absolute path, which need not be the name.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Its other names (link(2)) in the same directory.
    pub links: Vec<Vec<u8>>,
    /// User and group.
    pub owner: (u32, u32),
    /// Permission bits.
    pub mode: u32,
}

/// Whom a unix socket talks to.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UnixLink {
    /// Nobody.
    #[default]
    None,
    /// Clients that connect.
    Listening {
        /// listen(2)'s argument, as the kernel bounded it.
        backlog: u32,
        /// Connections not accepted yet, in the order they came.
        waiting: Vec<Waiting>,
    },
    /// A socket that lives. A stream's peer names it in turn.
    Connected(DescriptionId),
    /// A connection that the listening socket named has not accepted yet.
    Waiting(DescriptionId),
    /// A socket that was closed.
    Gone {
        /// The name it had.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// It was closed with messages unread, and nobody has been told (`ECONNRESET`).
        reset: bool,
    },
    /// A socket of a process that is not carried, found again by its name.
    External {
        /// The name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
}

/// A connection that nobody has accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Waiting {
    /// The client; None when it has closed its end.
    pub client: Option<DescriptionId>,
    /// What the client has sent. None until somebody looks, which takes the connection out of the queue.
    pub sent: Option<Vec<SocketMessage>>,
    /// Whom the server will see; None when nobody has looked.
    pub credentials: Option<PeerCredentials>,
    /// What it took over from the listening socket as it was made (Linux 6.16): `SO_PASSCRED` as 1, `SO_PASSSEC` as
    /// 2, `SO_PASSPIDFD` as 4, `SO_PASSRIGHTS` as 8. None where that is done when it is accepted.
    pub passes: Option<u8>,
}

/// A process as a peer saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerCredentials {
    /// Its id.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A message in a socket's receive queue.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketMessage {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Who sent it: bytes of the `struct sockaddr`, empty when unnamed.
    #[serde(with = "serde_bytes")]
    pub source: Vec<u8>,
    /// Descriptions in flight with it.
    pub fds: Vec<DescriptionId>,
    /// pid, uid, gid of the sender, where the receiver asks for them.
    pub credentials: Option<(i32, u32, u32)>,
    /// Where it was sent to, where the receiver asks for it (IP_PKTINFO); else empty.
    #[serde(with = "serde_bytes")]
    pub destination: Vec<u8>,
    /// Bytes before `data` that were sent with it and have been read. They count for its sender's room.
    pub consumed: u32,
    /// It is urgent (`MSG_OOB`): a byte, or a mark where that byte was when it has been read.
    pub urgent: bool,
    /// The header of IP that it came with, as far as it is known; else empty.
    #[serde(with = "serde_bytes")]
    pub header: Vec<u8>,
    /// Bytes of each of the datagrams that came as this one (`UDP_GRO`, udp(7)); 0 when it came alone.
    pub segment: u16,
}

/// A socket of IP: TCP, UDP, ICMP, raw.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InetSocket {
    /// Its own address, bytes of the `struct sockaddr`; empty when it is not bound.
    #[serde(with = "serde_bytes")]
    pub local: Vec<u8>,
    /// The kernel has chosen its port, and forgets it when the socket is disconnected (UDP).
    pub chosen_port: bool,
    /// It was bound to its own host, which it has also when it is disconnected (UDP, as far as is known).
    pub bound_host: bool,
    /// Its peer's address; empty when it is not connected.
    #[serde(with = "serde_bytes")]
    pub remote: Vec<u8>,
    /// listen(2)'s argument, as the kernel bounded it; None when it does not listen.
    pub backlog: Option<u32>,
    /// Of what has no connection: `SHUT_RD` as 1, `SHUT_WR` as 2.
    pub shutdown: u8,
    /// Connections not accepted yet, in the order they came.
    pub waiting: Vec<WaitingConnection>,
    /// What it has to do with the other sockets of its port (`SO_REUSEPORT`).
    pub group: Option<PortGroup>,
    /// The error that the next call will be told (`SO_ERROR`), 0 for none.
    pub error: i32,
    /// The address that it has asked for a connection, which has not answered yet (TCP_SYN_SENT): bytes of the
    /// `struct sockaddr`; else empty.
    #[serde(with = "serde_bytes")]
    pub asks: Vec<u8>,
    /// The TCP connection, when it has or had one.
    pub connection: Option<Connection>,
    /// Multicast groups it joined.
    pub groups: Vec<MulticastGroup>,
    /// Datagrams, or bytes of a connection, received and not read.
    pub queue: Vec<SocketMessage>,
    /// A datagram that it has begun to send.
    pub pending: Option<PendingDatagram>,
    /// Datagrams that were refused, and it has not asked which (`MSG_ERRQUEUE`), the oldest first.
    pub refused: Vec<RefusedDatagram>,
}

/// A datagram that this host has refused, since nobody was there: what ICMP has told of it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RefusedDatagram {
    /// Where it went, bytes of the `struct sockaddr`.
    #[serde(with = "serde_bytes")]
    pub to: Vec<u8>,
    /// The first bytes of it, as far as ICMP has quoted it.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// How long all of it was.
    pub len: u32,
}

/// A datagram that is not complete (`UDP_CORK`, `MSG_MORE`; udp(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PendingDatagram {
    /// What there is of it.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Where it will go, bytes of the `struct sockaddr`.
    #[serde(with = "serde_bytes")]
    pub to: Vec<u8>,
}

/// A TCP connection that nobody has accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitingConnection {
    /// The client; None when it has closed its end.
    pub client: Option<DescriptionId>,
    /// The address it was made to, bytes of the `struct sockaddr`.
    #[serde(with = "serde_bytes")]
    pub local: Vec<u8>,
    /// The client's.
    #[serde(with = "serde_bytes")]
    pub remote: Vec<u8>,
    /// What the client has sent.
    #[serde(with = "serde_bytes")]
    pub sent: Vec<u8>,
    /// The urgent byte in it.
    pub urgent: Option<Urgent>,
    /// Sequence number of the byte behind it.
    pub next: u32,
    /// As [`Connection::closing`].
    #[serde(with = "serde_bytes")]
    pub closing: Option<Vec<u8>>,
    /// How the client has broken it off.
    pub broken: Option<Broken>,
}

/// How a client has broken off a connection that nobody has accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broken {
    /// At once: who accepts it is told `ECONNRESET`.
    Reset,
    /// After it had finished: who accepts it is told `EPIPE`.
    Finished,
}

/// The last urgent byte (`MSG_OOB`, tcp(7)) of what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Urgent {
    /// Its place in what has not been read.
    pub at: u32,
    /// It has been read by itself: only the mark is there.
    pub read: bool,
}

/// Sockets that share a port (`SO_REUSEPORT`).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortGroup {
    /// Its place among them.
    pub place: u32,
    /// The classic BPF program that chooses among them, one `struct sock_filter` each, empty when there is
    /// none.
    pub program: Vec<u64>,
}

/// A TCP connection between two sockets of the host, or one that is over.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connection {
    /// The other end; None when it was closed, or nobody has accepted it yet.
    pub peer: Option<DescriptionId>,
    /// The listening socket that has not accepted it yet.
    pub waits_for: Option<DescriptionId>,
    /// This end has sent its last byte (`SHUT_WR`).
    pub finished: bool,
    /// The other end has.
    pub ended: bool,
    /// This end wants no more (`SHUT_RD`, `SHUT_RDWR`), though the other has not finished.
    pub deaf: bool,
    /// It is over (TCP_CLOSE): nothing is left of it but what nobody has read.
    pub over: bool,
    /// It was never made: connect(2) failed.
    pub failed: bool,
    /// The urgent byte in what was received.
    pub urgent: Option<Urgent>,
    /// Sequence number of the byte behind what was received.
    pub next: u32,
    /// What it has sent and the other end has not got.
    #[serde(with = "serde_bytes")]
    pub unsent: Vec<u8>,
    /// Sequence number of the first byte of that.
    pub first: u32,
    /// The other end was closed, and this is what it has still to send before its last byte.
    #[serde(with = "serde_bytes")]
    pub closing: Option<Vec<u8>>,
    /// The segment size that it has come to use (`TCP_MAXSEG`), 0 when that is not known.
    pub segment: u32,
}

/// Membership in a multicast group, `struct group_filter` as `MCAST_MSFILTER` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MulticastGroup {
    /// Name of the interface; numbers change with the kernel.
    pub interface: String,
    /// The group: bytes of its `struct sockaddr`.
    #[serde(with = "serde_bytes")]
    pub group: Vec<u8>,
    /// `MCAST_INCLUDE` or `MCAST_EXCLUDE`.
    pub mode: u32,
    /// Sources in or out, bytes of their `struct sockaddr`.
    pub sources: Vec<Vec<u8>>,
    /// Its place among all groups of the host, the last one that was joined first.
    pub place: u32,
}

/// A netlink socket (netlink(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetlinkSocket {
    /// Its port id; None when it is not bound.
    pub port: Option<u32>,
    /// It shows that port only: when it asked for it, another one had it.
    pub in_vain: bool,
    /// Groups it is a member of.
    pub groups: Vec<u32>,
    /// Port and group mask it is connected to.
    pub peer: Option<(u32, u32)>,
    /// Messages to its groups were lost, and it has not been told (`ENOBUFS`).
    pub lost: bool,
    /// Messages that were not read yet, the oldest first: those about devices (NETLINK_KOBJECT_UEVENT), and those
    /// that another process has sent to it alone.
    pub unread: Vec<NetlinkMessage>,
    /// What it has asked the kernel, which nothing of the answer was read of; empty when there is none.
    #[serde(with = "serde_bytes")]
    pub question: Vec<u8>,
}

/// A message of a netlink socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkMessage {
    /// Port of the sender, 0 for the kernel.
    pub port: u32,
    /// Mask of the groups it was sent to.
    pub groups: u32,
    /// What it says.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// A packet socket (packet(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PacketSocket {
    /// EtherType it takes, host byte order; 0 for none.
    pub protocol: u16,
    /// Name of the interface it is bound to.
    pub interface: Option<String>,
    /// Memberships: name of the interface, `PACKET_MR_*`, address.
    pub memberships: Vec<(String, u16, Vec<u8>)>,
    /// The group that it shares its packets with (`PACKET_FANOUT`).
    pub fanout: Option<Fanout>,
    /// Packets of the loopback interface that nobody has read, the oldest first.
    pub queue: Vec<UnreadPacket>,
    /// Rings that it shares with its program.
    pub rings: Option<Box<PacketRings>>,
}

/// Rings of a packet socket (packet(7), Documentation/networking/packet_mmap.rst). They are one mapping, the one of
/// received packets first.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PacketRings {
    /// The socket's inode, by which mappings name it.
    pub inode: u64,
    /// Of received packets.
    pub received: Option<PacketRing>,
    /// Of packets to be sent.
    pub sent: Option<PacketRing>,
    /// What is in them: offsets and bytes.
    pub contents: Vec<(u32, serde_bytes::ByteBuf)>,
}

/// A ring of a packet socket: `struct tpacket_req3`, and where the kernel is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PacketRing {
    /// Bytes of a block.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Number of frames.
    pub frames: u32,
    /// The rest is only of rings of blocks (`TPACKET_V3`): after how many milliseconds a block is handed over.
    pub retire: u32,
    /// Bytes of a block that are the program's.
    pub private: u32,
    /// `TP_FT_REQ_*`
    pub features: u32,
    /// The next frame; or how many blocks were handed over.
    pub position: u64,
    /// The program has the next block yet, so that packets are lost.
    pub full: bool,
}

impl PacketRing {
    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::from(self.block_size) * u64::from(self.blocks)
    }

    /// It has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a frame is.
    #[must_use]
    pub fn frame(&self, number: u32) -> u64 {
        let in_block = (self.block_size / self.frame_size.max(1)).max(1);
        let block = u64::from(number / in_block) * u64::from(self.block_size);
        block + u64::from(number % in_block) * u64::from(self.frame_size)
    }
}

impl PacketRings {
    /// Bytes of their mapping.
    #[must_use]
    pub fn len(&self) -> u64 {
        let both = [self.received, self.sent];
        both.iter().flatten().map(PacketRing::len).sum()
    }

    /// There is nothing to map.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the second one begins.
    #[must_use]
    pub fn start_of_sent(&self) -> u64 {
        self.received.as_ref().map_or(0, PacketRing::len)
    }
}

/// A packet of the loopback interface.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnreadPacket {
    /// `PACKET_HOST`, `PACKET_OUTGOING` and so on.
    pub kind: u8,
    /// All of it, with the Ethernet header.
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

/// A packet socket's place in a fan-out group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fanout {
    /// The value of `PACKET_FANOUT`: the group's number, its type, flags.
    pub value: u32,
    /// Its place among the members.
    pub place: u32,
}
