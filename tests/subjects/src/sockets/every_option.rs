//! Every option that a socket has: set to something else than a new socket's value, and asked for again.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use anyhow::Result;
use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, IPPROTO_ICMP, IPPROTO_ICMPV6, SO_PRIORITY,
    SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, SOL_UDP,
};

use crate::kit::files::close;
use crate::kit::net::{name, pair, set_option, set_option_bytes, socket};
use crate::kit::{Setting, Watch, errno, loopback, same, sys};

const SOL_NETLINK: i32 = 270;
const SOL_PACKET: i32 = 263;
const SOL_RAW: i32 = 255;
/// A protocol for trying things out.
const OF_NOBODY: i32 = 253;

/// Numbers beyond the last option of a level.
const NUMBERS: i32 = 110;

/// Options that tell of something else than what was set: errors, cookies, statistics, packets that came last,
/// routes that are remembered.
const NOT_STATE: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_ERROR),
    (SOL_SOCKET, 49 /* SO_INCOMING_CPU */),
    (SOL_SOCKET, 55 /* SO_MEMINFO */),
    (SOL_SOCKET, 56 /* SO_INCOMING_NAPI_ID */),
    (SOL_SOCKET, 57 /* SO_COOKIE */),
    (SOL_SOCKET, 71 /* SO_NETNS_COOKIE */),
    (SOL_SOCKET, 77 /* SO_PEERPIDFD */),
    (SOL_IP, 9 /* IP_PKTOPTIONS */),
    (SOL_IP, 14 /* IP_MTU */),
    (SOL_IPV6, 6 /* IPV6_2292PKTOPTIONS */),
    (SOL_IPV6, 24 /* IPV6_MTU */),
    (SOL_IPV6, 61 /* IPV6_PATHMTU */),
    (SOL_TCP, libc::TCP_INFO),
    (SOL_TCP, libc::TCP_QUICKACK),
    (SOL_TCP, 24 /* TCP_TIMESTAMP */),
    (SOL_TCP, 26 /* TCP_CC_INFO */),
    (SOL_TCP, 28 /* TCP_SAVED_SYN */),
    (SOL_TCP, 35 /* TCP_ZEROCOPY_RECEIVE */),
    (SOL_PACKET, 6 /* PACKET_STATISTICS */),
    (SOL_PACKET, 21 /* PACKET_ROLLOVER_STATS */),
];

/// Ones, for what is on or off; other values.
const OF_SOCKETS: &[i32] = &[
    1, 2, 5, 6, 9, 10, 11, 16, 34, 40, 41, 43, 45, 60, 69, 75, 76, 82, 84, 29, 64,
];
const OF_IP: &[i32] = &[5, 6, 7, 8, 11, 12, 13, 15, 18, 19, 20, 22, 24, 25, 26];
const OF_IPV6: &[i32] = &[
    2, 3, 4, 5, 8, 11, 25, 30, 31, 33, 36, 49, 51, 53, 56, 58, 60, 62, 66, 74, 75, 77, 78,
];
const OF_TCP: &[i32] = &[1, 3, 16, 17, 30, 34, 36];
const OF_UDP: &[i32] = &[1, 101, 102, 104];

/// An option to be set: level, number, value.
type Line = (i32, i32, Vec<u8>);

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What else is set.
fn other_values() -> Vec<Line> {
    let times = |seconds: i64, micros: i64| [seconds.to_ne_bytes(), micros.to_ne_bytes()].concat();
    vec![
        (SOL_SOCKET, libc::SO_RCVBUF, words(&[120_000])),
        (SOL_SOCKET, libc::SO_SNDBUF, words(&[100_000])),
        (SOL_SOCKET, libc::SO_LINGER, words(&[1, 7])),
        (SOL_SOCKET, libc::SO_RCVLOWAT, words(&[3])),
        (SOL_SOCKET, libc::SO_RCVTIMEO, times(3, 500_000)),
        (SOL_SOCKET, libc::SO_SNDTIMEO, times(4, 500_000)),
        (SOL_SOCKET, libc::SO_MARK, words(&[77])),
        (SOL_SOCKET, 37 /* SO_TIMESTAMPING */, words(&[0x19])),
        (SOL_SOCKET, libc::SO_PEEK_OFF, words(&[3])),
        (SOL_SOCKET, libc::SO_BUSY_POLL, words(&[50])),
        (
            SOL_SOCKET,
            47, /* SO_MAX_PACING_RATE */
            (1_u64 << 33).to_ne_bytes().to_vec(),
        ),
        (SOL_SOCKET, 61 /* SO_TXTIME */, words(&[1, 3])),
        (SOL_SOCKET, 74 /* SO_TXREHASH */, words(&[0])),
        (SOL_SOCKET, 83 /* SO_PASSRIGHTS */, words(&[0])),
        (SOL_IP, libc::IP_TOS, words(&[0x10])),
        (SOL_IP, libc::IP_TTL, words(&[44])),
        (SOL_IP, libc::IP_OPTIONS, vec![7, 7, 4, 0, 0, 0, 0, 1]),
        (SOL_IP, libc::IP_MTU_DISCOVER, words(&[2])),
        (SOL_IP, libc::IP_MINTTL, words(&[5])),
        (SOL_IP, libc::IP_MULTICAST_TTL, words(&[9])),
        (SOL_IP, libc::IP_MULTICAST_LOOP, words(&[0])),
        (SOL_IP, libc::IP_MULTICAST_ALL, words(&[0])),
        (SOL_IP, libc::IP_UNICAST_IF, words(&[1_i32.to_be()])),
        (
            SOL_IP,
            51, /* IP_LOCAL_PORT_RANGE */
            words(&[60_000 | 61_000 << 16]),
        ),
        (SOL_IP, libc::IP_MULTICAST_IF, vec![127, 0, 0, 1]),
        (SOL_IPV6, libc::IPV6_UNICAST_HOPS, words(&[44])),
        (SOL_IPV6, libc::IPV6_MULTICAST_IF, words(&[1])),
        (SOL_IPV6, libc::IPV6_MULTICAST_HOPS, words(&[9])),
        (SOL_IPV6, libc::IPV6_MULTICAST_LOOP, words(&[0])),
        (SOL_IPV6, 29 /* IPV6_MULTICAST_ALL */, words(&[0])),
        (SOL_IPV6, libc::IPV6_MTU_DISCOVER, words(&[2])),
        (SOL_IPV6, libc::IPV6_TCLASS, words(&[0x20])),
        (SOL_IPV6, 70 /* IPV6_AUTOFLOWLABEL */, words(&[0])),
        (SOL_IPV6, 72 /* IPV6_ADDR_PREFERENCES */, words(&[2])),
        (SOL_IPV6, 73 /* IPV6_MINHOPCOUNT */, words(&[6])),
        (SOL_IPV6, libc::IPV6_HOPOPTS, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (SOL_IPV6, libc::IPV6_DSTOPTS, vec![0, 0, 1, 4, 0, 0, 0, 0]),
    ]
}

/// What else is set of protocols.
fn of_protocols() -> Vec<Line> {
    vec![
        (SOL_TCP, libc::TCP_MAXSEG, words(&[1200])),
        (SOL_TCP, libc::TCP_KEEPIDLE, words(&[77])),
        (SOL_TCP, libc::TCP_KEEPINTVL, words(&[33])),
        (SOL_TCP, libc::TCP_KEEPCNT, words(&[4])),
        (SOL_TCP, libc::TCP_SYNCNT, words(&[3])),
        (SOL_TCP, libc::TCP_LINGER2, words(&[20])),
        (SOL_TCP, libc::TCP_DEFER_ACCEPT, words(&[9])),
        (SOL_TCP, libc::TCP_CONGESTION, b"reno".to_vec()),
        (SOL_TCP, libc::TCP_USER_TIMEOUT, words(&[4444])),
        (SOL_TCP, libc::TCP_FASTOPEN, words(&[5])),
        (SOL_TCP, libc::TCP_NOTSENT_LOWAT, words(&[9999])),
        (SOL_TCP, 27 /* TCP_SAVE_SYN */, words(&[2])),
        (
            SOL_TCP,
            libc::TCP_FASTOPEN_KEY,
            b"0123456789abcdef".to_vec(),
        ),
        (SOL_TCP, 37 /* TCP_TX_DELAY */, words(&[100])),
        (SOL_TCP, 44 /* TCP_RTO_MAX_MS */, words(&[50_000])),
        (SOL_TCP, 45 /* TCP_RTO_MIN_US */, words(&[70_000])),
        (SOL_TCP, 46 /* TCP_DELACK_MAX_US */, words(&[90_000])),
        (SOL_UDP, libc::UDP_SEGMENT, words(&[1200])),
        (SOL_RAW, 1 /* ICMP_FILTER */, words(&[0x55])),
        (SOL_RAW, 7 /* IPV6_CHECKSUM */, words(&[4])),
        (58, 1 /* ICMPV6_FILTER */, vec![0x55; 32]),
        (SOL_PACKET, 7 /* PACKET_COPY_THRESH */, words(&[9000])),
        (SOL_PACKET, 10 /* PACKET_VERSION */, words(&[1])),
        (SOL_PACKET, 12 /* PACKET_RESERVE */, words(&[16])),
    ]
}

/// The value, or the error.
fn ask(fd: RawFd, level: i32, name: i32) -> Result<Vec<u8>, i32> {
    let mut last = 0;
    // Some want to be asked for as many bytes as they have.
    for room in [512_u32, 4] {
        let (mut bytes, mut len) = (vec![0_u8; room as usize], room);
        let at = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer has the length that is given.
        if unsafe { libc::getsockopt(fd, level, name, at, &raw mut len) } == 0 {
            bytes.truncate(len as usize);
            return Ok(bytes);
        }
        last = errno();
    }
    Err(last)
}

type Values = BTreeMap<(i32, i32), Vec<u8>>;

/// All that can be asked for.
fn values(fd: RawFd, left_out: &[(i32, i32)]) -> Values {
    let levels = [
        SOL_SOCKET,
        SOL_IP,
        SOL_IPV6,
        SOL_TCP,
        SOL_UDP,
        SOL_RAW,
        58,
        SOL_PACKET,
        SOL_NETLINK,
    ];
    let mut found = Values::new();
    for line in levels
        .into_iter()
        .flat_map(|level| (0..NUMBERS).map(move |name| (level, name)))
    {
        if !NOT_STATE.contains(&line)
            && !left_out.contains(&line)
            && let Ok(value) = ask(fd, line.0, line.1)
        {
            found.insert(line, value);
        }
    }
    found
}

/// Sets what can be set, and gives those lines.
fn set_all(fd: RawFd) -> Vec<(i32, i32)> {
    let ones = [
        (SOL_SOCKET, OF_SOCKETS),
        (SOL_IP, OF_IP),
        (SOL_IPV6, OF_IPV6),
        (SOL_TCP, OF_TCP),
        (SOL_UDP, OF_UDP),
        (SOL_PACKET, &[8, 9, 14, 15, 17, 19, 20, 23]),
        (SOL_NETLINK, &[3, 4, 5, 8, 10, 11, 12]),
    ];
    let ones = ones.into_iter().flat_map(|(level, names)| {
        let line = move |name: &i32| (level, *name, 1_i32.to_ne_bytes().to_vec());
        names.iter().map(line)
    });
    let taken = |(level, name, value): Line| {
        let set = set_option_bytes(fd, level, name, &value);
        set.is_ok().then_some((level, name))
    };
    ones.chain(other_values())
        .chain(of_protocols())
        .filter_map(taken)
        .collect()
}

fn release() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?)
}

/// Nothing may change. Another kernel has its own idea of what was never set.
fn keep(sockets: Vec<RawFd>, set: &[RawFd], left_out: &'static [(i32, i32)]) -> Result<Watch> {
    let mut before = Vec::new();
    for fd in &sockets {
        let lines = if set.contains(fd) {
            set_all(*fd)
        } else {
            Vec::new()
        };
        before.push((*fd, lines, values(*fd, left_out)));
    }
    let (kernel, first) = (release()?, sockets[0]);
    Ok(Watch::new(move || {
        let same_kernel = release()? == kernel;
        for (number, (fd, lines, values_before)) in before.iter().enumerate() {
            let now = values(*fd, left_out);
            for (line, value) in values_before {
                // Linux 7 has SO_PASSCRED and SO_TXREHASH for some kinds of sockets only.
                let gone = || ask(*fd, line.0, line.1) == Err(libc::EOPNOTSUPP);
                if same_kernel || lines.contains(line) && !gone() {
                    let what = format!("option {line:?} of socket {number}");
                    same(&what, &Some(value), &now.get(line))?;
                }
            }
        }
        Ok(())
    })
    .spoiled_by(move || set_option(first, SOL_SOCKET, SO_PRIORITY, 5)))
}

/// Lets nothing come to them: raw sockets get what others send.
fn deafen(all: &[RawFd]) -> Result<()> {
    // ret #0
    let program = libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let filter = libc::sock_fprog {
        len: 1,
        filter: (&raw const program).cast_mut(),
    };
    for fd in all {
        // SAFETY: the program is alive and as long as it says.
        let done = unsafe {
            let (at, len) = ((&raw const filter).cast(), size_of_val(&filter) as u32);
            libc::setsockopt(*fd, SOL_SOCKET, libc::SO_ATTACH_FILTER, at, len)
        };
        sys("SO_ATTACH_FILTER", done)?;
    }
    // What came before, and what was on its way then.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let mut byte = 0_u8;
    for fd in all {
        // SAFETY: one byte of this function.
        while unsafe { libc::recv(*fd, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) } >= 0 {}
    }
    Ok(())
}

/// Sockets of these kinds, as far as this machine has them; every one is set, and one of each is left as it is.
fn of_kinds(kinds: &[(i32, i32, i32)]) -> Result<Watch> {
    loopback()?;
    let (mut all, mut set, mut hear) = (Vec::new(), Vec::new(), Vec::new());
    for (family, kind, protocol) in kinds {
        if let (Ok(one), Ok(new)) = (
            socket(*family, *kind, *protocol),
            socket(*family, *kind, *protocol),
        ) {
            if *kind == SOCK_RAW {
                hear.extend([one, new]);
            }
            all.extend([one, new]);
            set.push(one);
        }
    }
    deafen(&hear)?;
    keep(all, &set, &[])
}

/// UDP, raw, ICMP.
pub(crate) fn datagrams(_: &Setting) -> Result<Watch> {
    of_kinds(&[
        (AF_INET, SOCK_DGRAM, 0),
        (AF_INET6, SOCK_DGRAM, 0),
        (AF_INET, SOCK_RAW, OF_NOBODY),
        (AF_INET6, SOCK_RAW, OF_NOBODY),
        (AF_INET, SOCK_RAW, IPPROTO_ICMP),
        (AF_INET6, SOCK_RAW, IPPROTO_ICMPV6),
        (AF_INET, SOCK_DGRAM, IPPROTO_ICMP),
        (AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6),
    ])
}

/// TCP; one listens.
pub(crate) fn streams(_: &Setting) -> Result<Watch> {
    let listener = socket(AF_INET, SOCK_STREAM, 0)?;
    super::listening::listen(listener, 5)?;
    let kinds = [(AF_INET, SOCK_STREAM, 0), (AF_INET6, SOCK_STREAM, 0)];
    Ok(of_kinds(&kinds)?.and(keep(vec![listener], &[], &[])?))
}

/// Unix, netlink, packet.
pub(crate) fn others(_: &Setting) -> Result<Watch> {
    loopback()?;
    let ends = [pair(SOCK_STREAM)?, pair(SOCK_DGRAM)?].concat();
    let single = [
        socket(AF_UNIX, SOCK_STREAM, 0)?,
        socket(AF_NETLINK, SOCK_RAW, 0)?,
        socket(AF_PACKET, SOCK_RAW, 0)?,
    ];
    let set = [&ends[..1], &ends[2..3], &single].concat();
    keep([&ends[..], &single].concat(), &set, &[])
}

/// The ends of a connection to a host.
fn connection(family: i32, host: &[u8]) -> Result<[RawFd; 2]> {
    let listener = socket(family, SOCK_STREAM, 0)?;
    let mut address = vec![0_u8; if family == AF_INET { 16 } else { 28 }];
    address[0] = family as u8;
    let at = if family == AF_INET { 4 } else { 8 };
    address[at..at + host.len()].copy_from_slice(host);
    let client = socket(family, SOCK_STREAM, 0)?;
    // SAFETY: the addresses have the lengths that are given; null asks for no address.
    let server = unsafe {
        let len = address.len() as u32;
        sys("bind", libc::bind(listener, address.as_ptr().cast(), len))?;
        sys("listen", libc::listen(listener, 1))?;
        let address = name(listener, false)?;
        sys(
            "connect",
            libc::connect(client, address.as_ptr().cast(), len),
        )?;
        let null = std::ptr::null_mut();
        sys("accept", libc::accept(listener, null, null.cast()))?
    };
    close(listener);
    Ok([client, server as RawFd])
}

/// Connections over IPv4 and IPv6, to a host and to any: the options of one end are set, or those of the other.
pub(crate) fn connections(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut loopback6 = [0; 16];
    loopback6[15] = 1;
    let mut all = Vec::new();
    let mut set = Vec::new();
    for end in [0, 1] {
        for made in [
            connection(AF_INET, &[127, 0, 0, 1])?,
            connection(AF_INET, &[0; 4])?,
        ]
        .into_iter()
        .chain(connection(AF_INET6, &loopback6))
        .chain(connection(AF_INET6, &[0; 16]))
        {
            all.extend(made);
            set.push(made[end]);
        }
    }
    // Their window's bound changes with what comes, and with it their segments.
    const LEFT_OUT: &[(i32, i32)] = &[
        (SOL_TCP, libc::TCP_WINDOW_CLAMP),
        (SOL_TCP, libc::TCP_MAXSEG),
    ];
    keep(all, &set, LEFT_OUT)
}
