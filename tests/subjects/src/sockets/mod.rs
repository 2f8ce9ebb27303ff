//! Sockets.

mod churn;
mod every_option;
mod listening;
mod netlink;
mod packet;
mod packet_queues;
mod packet_rings;
mod signed;
mod tcp_closed;
mod tcp_more;
mod tcp_queues;
mod tcp_segments;
mod udp;
mod udp_queues;
mod udp_reports;
mod unconnected;
mod unix_control;
mod unix_named;
mod unix_pair;
mod unix_rights;
mod unix_room;
mod vsock;
mod waiting;

use crate::registry::{Group, subject};

/// Sockets.
pub(crate) const GROUP: Group = Group {
    name: "sockets",
    subjects: &[
        subject(
            "unix-stream",
            "unix stream pairs with queued bytes",
            unix_pair::stream,
        ),
        subject(
            "unix-datagram",
            "unix datagram pairs with queued messages",
            unix_pair::datagram,
        ),
        subject(
            "unix-seqpacket",
            "unix seqpacket pairs with queued messages",
            unix_pair::seqpacket,
        ),
        subject(
            "unix-shutdown",
            "unix sockets with halves shut down",
            unix_pair::shutdown,
        ),
        subject(
            "unix-widowed",
            "unix sockets whose peer is closed",
            unix_pair::widowed,
        ),
        subject(
            "unix-reset",
            "packets of unix sockets behind an error that nobody was told (ECONNRESET)",
            unix_pair::reset,
        ),
        subject(
            "unix-family",
            "unix pairs between parent and child",
            unix_pair::family,
        ),
        subject(
            "unix-room",
            "full unix streams in small pieces, read in part",
            unix_room::small_pieces,
        ),
        subject(
            "unix-urgent",
            "urgent data of unix streams, unread and read",
            unix_room::urgent,
        ),
        subject(
            "unix-churn",
            "unix pairs that come and go without a pause",
            churn::unix,
        ),
        subject(
            "unix-options",
            "options of unix sockets",
            unix_pair::options,
        ),
        subject(
            "unix-listening",
            "named unix sockets that listen",
            unix_named::listening,
        ),
        subject(
            "unix-abstract",
            "abstract unix sockets that listen",
            unix_named::abstract_name,
        ),
        subject(
            "unix-pending",
            "connections that nobody has accepted yet, with data",
            unix_named::pending,
        ),
        subject(
            "unix-pending-inherited",
            "connections that nobody has accepted yet, to a socket that two processes have listened on",
            unix_named::inherited,
        ),
        subject(
            "unix-connected",
            "accepted connections of named sockets",
            unix_named::connected,
        ),
        subject(
            "unix-unlinked",
            "listening unix sockets whose path is gone",
            unix_named::unlinked,
        ),
        subject(
            "unix-bound-datagram",
            "bound datagram sockets, connected from several sides",
            unix_named::datagrams,
        ),
        subject(
            "unix-listen-lowered",
            "more connections that nobody has accepted yet than the listening unix socket would take by now",
            unix_named::lowered,
        ),
        subject(
            "unix-full-datagram",
            "full queues of bound datagram sockets that are each other's peers",
            unix_named::full_datagrams,
        ),
        subject(
            "unix-turned",
            "a unix datagram pair of which one end has another peer since",
            unix_named::turned,
        ),
        subject(
            "unix-turned-away",
            "unix datagram pairs of which one end has let go of the other",
            unconnected::turned_away,
        ),
        subject(
            "socket-shut-down",
            "sockets that were shut down without a connection",
            unconnected::shut_down,
        ),
        subject(
            "tcp-beside-listener",
            "a TCP socket bound to an address before another one listened there",
            unconnected::beside_a_listener,
        ),
        subject(
            "socket-lingered",
            "the time of SO_LINGER when that is off",
            unconnected::lingered,
        ),
        subject(
            "unix-unbound",
            "unix sockets that are neither bound nor connected",
            unix_named::unbound,
        ),
        subject("unix-rights", "descriptors in flight", unix_control::rights),
        subject(
            "unix-rights-involved",
            "an epoll and a locked file in flight",
            unix_control::involved,
        ),
        subject(
            "unix-rights-cycle",
            "a socket in flight in itself",
            unix_control::cycle,
        ),
        subject(
            "unix-rights-unreached",
            "a terminal in flight beside both ends of the pair that it is in flight in",
            unix_control::unreached,
        ),
        subject(
            "unix-rights-unaccepted",
            "descriptors in flight of clients that nobody has accepted yet",
            unix_rights::unaccepted,
        ),
        subject(
            "unix-rights-lost",
            "an eventfd in flight that nobody holds, of a client that nobody has accepted yet",
            unix_rights::lost,
        ),
        subject(
            "unix-rights-hidden",
            "descriptors in flight in empty messages that were peeked at, and beside urgent data",
            unix_rights::hidden,
        ),
        subject(
            "unix-credentials",
            "credentials in flight",
            unix_control::credentials,
        ),
        subject(
            "unix-named-sender",
            "credentials in flight that name somebody else",
            unix_control::named_sender,
        ),
        subject("unix-peercred", "SO_PEERCRED", unix_control::peercred),
        subject("udp", "bound and connected UDP sockets", udp::start),
        subject(
            "udp-queue",
            "queued UDP datagrams with their senders",
            udp::queue,
        ),
        subject("udp-options", "options of UDP sockets", udp::options),
        subject(
            "udp-v6-headers",
            "IPv6 extension headers of UDP sockets",
            udp::extension_headers,
        ),
        subject(
            "udp-shutdown",
            "UDP sockets with halves shut down",
            udp::shutdown,
        ),
        subject(
            "udp-interface",
            "the route of a connected UDP socket on an interface",
            udp::on_interface,
        ),
        subject("udp6", "UDP over IPv6", udp::v6),
        subject("multicast", "multicast memberships", udp::multicast),
        subject(
            "multicast-order",
            "multicast groups, in the order in which they were joined",
            udp::multicast_order,
        ),
        subject(
            "every-option-udp",
            "every option of UDP, raw and ICMP sockets",
            every_option::datagrams,
        ),
        subject(
            "every-option-tcp",
            "every option of TCP sockets without a connection",
            every_option::streams,
        ),
        subject(
            "every-option-connection",
            "every option of TCP connections",
            every_option::connections,
        ),
        subject(
            "tcp-segments",
            "segment sizes that TCP connections have come to use",
            tcp_segments::start,
        ),
        subject(
            "every-option-others",
            "every option of unix, netlink and packet sockets",
            every_option::others,
        ),
        subject(
            "tcp-urgent",
            "urgent data of TCP, unread, read and in line",
            tcp_queues::urgent,
        ),
        subject(
            "tcp-full",
            "TCP connections with more sent than the other end has room for",
            tcp_queues::full,
        ),
        subject(
            "tcp-closed",
            "TCP connections whose other end was closed with more sent than there is room for",
            tcp_closed::start,
        ),
        subject(
            "tcp-halves",
            "TCP connections with halves shut down, at one end and at both",
            tcp_closed::halves,
        ),
        subject(
            "tcp-closed-unaccepted",
            "TCP clients that have sent more than there is room for, and gone before they were accepted",
            tcp_closed::unaccepted,
        ),
        subject(
            "tcp-large",
            "a TCP connection with much that nobody has read",
            tcp_queues::large,
        ),
        subject(
            "tcp-more",
            "TCP data that waits for more to follow (MSG_MORE)",
            tcp_more::held_back,
        ),
        subject(
            "vsock",
            "sockets of virtual machines (vsock) without a connection",
            vsock::start,
        ),
        subject(
            "tcp-broken-sending",
            "TCP connections that were broken with more sent than was acknowledged, and nobody was told",
            tcp_queues::broken_sending,
        ),
        subject(
            "tcp-broken",
            "TCP connections that were broken or refused, and nobody was told",
            tcp_queues::broken,
        ),
        subject(
            "udp-refused",
            "UDP sockets whose datagram was refused, and nobody was told",
            udp::refused,
        ),
        subject(
            "udp-reports",
            "reports of refused datagrams that nobody has asked for (IP_RECVERR, MSG_ERRQUEUE)",
            udp_reports::refused,
        ),
        subject(
            "packet-fanout-program",
            "packet sockets of a fan-out group with a classic BPF program that chooses",
            packet_queues::chosen,
        ),
        subject(
            "tcp-peek-place",
            "a place where a TCP connection is peeked at (SO_PEEK_OFF)",
            tcp_more::peeked,
        ),
        subject(
            "tcp-signed",
            "listening TCP sockets with keys (TCP_MD5SIG)",
            signed::listening,
        ),
        subject("tcp-listening", "listening TCP sockets", listening::v4),
        subject(
            "tcp-shared-before",
            "listening TCP sockets of one port that may not be shared any more",
            listening::shared_before,
        ),
        subject(
            "tcp-remembered",
            "a listening TCP socket whose port open and ended connections have as well",
            listening::remembered,
        ),
        subject(
            "mptcp-listening",
            "listening sockets of multipath TCP",
            listening::multipath,
        ),
        subject(
            "tcp6-listening",
            "listening TCP sockets of IPv6, v6-only and not",
            listening::v6,
        ),
        subject(
            "tcp-options",
            "options of listening TCP sockets",
            listening::options,
        ),
        subject(
            "tcp-unbound",
            "TCP sockets that are neither bound nor connected",
            listening::unbound,
        ),
        subject(
            "tcp-bound",
            "TCP sockets that are bound only",
            listening::bound,
        ),
        subject(
            "unix-linked",
            "listening unix sockets with several paths (hard links)",
            unix_named::linked,
        ),
        subject(
            "unix-relinked",
            "a listening unix socket whose path was linked to another one and removed",
            unix_named::relinked,
        ),
        subject(
            "unix-passed-on",
            "what clients that wait take over from a listening unix socket",
            unix_named::passed_on,
        ),
        subject(
            "unix-pidfd",
            "senders of a unix stream that asks for pidfds (SO_PASSPIDFD)",
            unix_control::pidfd,
        ),
        subject(
            "unix-empty",
            "empty messages of unix sockets, one of them peeked at",
            unix_control::empty,
        ),
        subject(
            "tcp-pending",
            "TCP connections that nobody has accepted yet, with data",
            waiting::pending,
        ),
        subject(
            "tcp-pending-mapped",
            "TCP clients of IPv4 that wait at a listener of IPv6",
            waiting::pending_mapped,
        ),
        subject(
            "tcp-pending-broken",
            "TCP clients that have broken off before they were accepted, with data",
            waiting::pending_broken,
        ),
        subject(
            "tcp-deferred",
            "clients of a listening TCP socket that waits for their first data",
            waiting::deferred,
        ),
        subject(
            "tcp-over",
            "a TCP connection that is over, with data that nobody has read",
            waiting::over,
        ),
        subject(
            "tcp-itself",
            "a TCP connection of a socket with itself",
            waiting::with_itself,
        ),
        subject(
            "tcp-asking",
            "TCP connections that have been asked for and not answered",
            waiting::asking,
        ),
        subject(
            "reuseport",
            "sockets of one port with a classic BPF program that chooses",
            waiting::chosen,
        ),
        subject(
            "udp-corked",
            "UDP datagrams that are not complete (UDP_CORK, MSG_MORE)",
            udp::corked,
        ),
        subject(
            "udp-own-address",
            "connected UDP sockets bound to an address, with queued datagrams",
            udp::own_address,
        ),
        subject(
            "udp-group-queue",
            "UDP sockets of one port (SO_REUSEPORT) with queued datagrams",
            udp_queues::of_a_group,
        ),
        subject(
            "udp-mapped-queue",
            "queued datagrams of IPv4 in a socket of IPv6",
            udp_queues::of_both_protocols,
        ),
        subject(
            "udp-from-both-protocols",
            "queued datagrams of IPv4 that a socket of IPv6 has sent",
            udp_queues::from_both_protocols,
        ),
        subject(
            "udp-nearer-since",
            "queued datagrams for an address that another UDP socket has bound since",
            udp_queues::nearer_since,
        ),
        subject(
            "udp-headers",
            "destination, hops and service of queued datagrams",
            udp_queues::as_they_were_sent,
        ),
        subject(
            "udp-ip-options",
            "queued datagrams with options of IP that their sender has changed since",
            udp_queues::with_options,
        ),
        subject(
            "udp-together",
            "queued datagrams that came together (UDP_GRO)",
            udp_queues::together,
        ),
        subject(
            "udp-empty",
            "empty datagrams, one of them peeked at",
            udp_queues::empty,
        ),
        subject(
            "udp-without-port",
            "UDP sockets that are bound to an address and no port",
            udp_queues::without_port,
        ),
        subject(
            "udp-to-host",
            "UDP sockets that are connected to a host and no port",
            udp_queues::connected_without_port,
        ),
        subject(
            "udp-bound-host",
            "UDP sockets bound to the host that routing would choose, which stays without a peer",
            udp_queues::bound_host,
        ),
        subject(
            "udp-chosen-port",
            "ports of UDP sockets that the kernel has chosen, and that go with the peer",
            udp_queues::chosen_port,
        ),
        subject(
            "address-gone",
            "sockets bound to an address that the host does not have any more",
            udp::address_gone,
        ),
        subject(
            "udp-shared-before",
            "UDP sockets of one port that may not be shared any more",
            udp::shared_before,
        ),
        subject("udp-lite", "UDP-Lite with queued datagrams", udp::lite),
        subject(
            "raw-queue",
            "packets of raw sockets that nobody has read",
            packet_queues::raw_sockets,
        ),
        subject(
            "icmp-queue",
            "answers to ICMP sockets that nobody has read",
            packet_queues::icmp,
        ),
        subject(
            "packet-fanout",
            "packet sockets of a fan-out group",
            packet_queues::fanout,
        ),
        subject(
            "packet-queue",
            "packets of the loopback interface that packet sockets have not read",
            packet_queues::packets,
        ),
        subject(
            "netlink-process",
            "netlink messages of processes that nobody has read",
            netlink::from_process,
        ),
        subject("raw", "raw sockets", packet::raw_socket),
        subject(
            "raw-beside-udp",
            "a raw socket of UDP hears nothing of an upgrade",
            packet_queues::raw_beside_udp,
        ),
        subject("icmp", "ICMP sockets", packet::icmp),
        subject("packet", "packet sockets", packet::packet),
        subject(
            "packet-ring-frames",
            "rings of packet sockets, read in part",
            packet_rings::frames,
        ),
        subject(
            "packet-ring-blocks",
            "rings of packet sockets in blocks (TPACKET_V3)",
            packet_rings::blocks,
        ),
        subject(
            "packet-ring-full",
            "full rings of packet sockets",
            packet_rings::full,
        ),
        subject(
            "packet-ring-sent",
            "a packet socket's ring of packets to be sent",
            packet_rings::sent,
        ),
        subject("netlink", "netlink sockets with groups", netlink::start),
        subject(
            "netlink-bound-in-vain",
            "netlink sockets that have asked for a port that another one has",
            netlink::bound_in_vain,
        ),
        subject(
            "netlink-queue",
            "netlink sockets with a list as an answer that nobody has read",
            netlink::queue,
        ),
        subject(
            "netlink-single",
            "netlink sockets with an answer about one interface that nobody has read",
            netlink::single,
        ),
        subject(
            "netlink-done",
            "netlink sockets with an acknowledgement that nobody has read",
            netlink::done,
        ),
        subject(
            "netlink-group-queue",
            "messages to groups of netlink that nobody has read are there, or said to be lost",
            netlink::group_queue,
        ),
        subject(
            "udp-turned-to-ipv4",
            "a UDP socket that was connected to a host of IPv6, and then to one of IPv4",
            unconnected::turned_to_ipv4,
        ),
        subject("netlink-uevent", "uevent netlink sockets", netlink::uevent),
        subject(
            "uevent-queue",
            "uevents that nobody has read are there, or said to be lost",
            netlink::uevent_queue,
        ),
    ],
};
