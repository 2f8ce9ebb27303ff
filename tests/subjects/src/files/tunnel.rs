//! Network interfaces whose packets a process reads and writes (/dev/net/tun).

use std::fs;
use std::net::UdpSocket;

use anyhow::{Context, Result, bail};
use libc::{O_NONBLOCK, O_RDWR};

use crate::kit::files::{close, open, read, ready, write};
use crate::kit::{Setting, Watch, args, not_here, raw, same, sys};

/// _IOW('T', number, int) and _IOR.
const fn put(number: u64) -> u64 {
    0x4004_5400 | number
}
const fn get(number: u64) -> u64 {
    0x8004_5400 | number
}
const TUNSETIFF: u64 = put(202);
const TUNSETPERSIST: u64 = put(203);
const TUNSETOWNER: u64 = put(204);
const TUNSETGROUP: u64 = put(206);
const TUNGETIFF: u64 = get(210);
const TUNGETSNDBUF: u64 = get(211);
const TUNSETSNDBUF: u64 = put(212);
const TUNGETVNETHDRSZ: u64 = get(215);
const TUNSETVNETHDRSZ: u64 = put(216);
const TUNSETQUEUE: u64 = put(217);
const IFF_TUN: u16 = 1;
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_DETACH_QUEUE: u16 = 0x400;

/// Who may use the tunnel.
const OWNER: u64 = 1234;
const GROUP: u64 = 2345;

/// struct ifreq: a name, and what is said or asked of it.
type Request = [u8; 40];

fn request(name: &str, value: &[u8]) -> Request {
    let mut request = [0; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..16 + value.len()].copy_from_slice(value);
    request
}

fn ioctl(fd: i32, number: u64, argument: u64) -> i64 {
    raw(libc::SYS_ioctl, args([fd as u64, number, argument]))
}

/// Opens one and attaches it to an interface.
fn attached(name: &str, flags: u16) -> Result<i32> {
    let Ok(tun) = open("/dev/net/tun", O_RDWR | O_NONBLOCK) else {
        return not_here("no tun devices");
    };
    let mut request = request(name, &flags.to_ne_bytes());
    match ioctl(tun, TUNSETIFF, request.as_mut_ptr() as u64) {
        0 => Ok(tun),
        _ => not_here("no tun device to be had"),
    }
}

/// The interface, through ioctls on any socket (netdevice(7)).
struct Interface {
    name: &'static str,
    /// How the addresses and routes begin that lead through it.
    networks: &'static [&'static str],
    socket: i32,
}

impl Interface {
    fn new(name: &'static str, networks: &'static [&'static str]) -> Result<Self> {
        let socket = crate::kit::net::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        Ok(Self {
            name,
            networks,
            socket,
        })
    }

    fn set(&self, what: u64, value: &[u8]) -> Result<()> {
        let request = request(self.name, value);
        let done = ioctl(self.socket, what, request.as_ptr() as u64);
        sys("setting the interface up", done).map(drop)
    }

    fn get(&self, what: u64) -> Result<[u8; 16]> {
        let mut request = request(self.name, &[]);
        let done = ioctl(self.socket, what, request.as_mut_ptr() as u64);
        sys("asking for the interface", done)?;
        request[16..32].first_chunk().copied().context("16 bytes")
    }

    /// An address of `struct sockaddr_in`.
    fn set_address(&self, what: u64, address: [u8; 4]) -> Result<()> {
        self.set(what, &sockaddr(address))
    }

    fn up(&self) -> Result<()> {
        let flags = (libc::IFF_UP | libc::IFF_MULTICAST) as u16;
        self.set(libc::SIOCSIFFLAGS, &flags.to_ne_bytes())
    }

    /// What is seen of it.
    fn seen(&self) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        for what in [
            libc::SIOCGIFINDEX,
            libc::SIOCGIFFLAGS,
            libc::SIOCGIFMTU,
            libc::SIOCGIFTXQLEN,
            libc::SIOCGIFHWADDR,
        ] {
            seen.push(format!("{what:#x}: {:?}", self.get(what)?));
        }
        for file in ["/proc/net/route", "/proc/net/if_inet6"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            let ours = text.lines().filter(|line| line.contains(self.name));
            // Flags of an IPv6 address tell whether it is looked for elsewhere at present.
            let shown = |line: &str| match file {
                "/proc/net/if_inet6" => line.split_whitespace().take(4).collect(),
                _ => line.to_owned(),
            };
            seen.extend(ours.map(shown));
        }
        seen.extend(leaves(self.networks)?);
        for setting in ["rp_filter", "forwarding", "proxy_arp"] {
            let path = format!("/proc/sys/net/ipv4/conf/{}/{setting}", self.name);
            seen.push(fs::read_to_string(&path).context(path)?);
        }
        Ok(seen)
    }
}

/// Routes of the kernel's table that begin so, local ones too, with what they are.
fn leaves(networks: &[&str]) -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/net/fib_trie").context("/proc/net/fib_trie")?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let leaf = |pair: &[&str]| {
        let address = pair[0].strip_prefix("|-- ")?;
        let ours = networks.iter().any(|start| address.starts_with(start));
        ours.then(|| format!("{address} {}", pair[1]))
    };
    Ok(lines.windows(2).filter_map(leaf).collect())
}

/// Whether rtnetlink(7) tells of an interface that it belongs to [`OWNER`] and [`GROUP`].
fn is_owned(interface: &Interface) -> Result<bool> {
    let socket = crate::kit::net::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)?;
    let index = interface.get(libc::SIOCGIFINDEX)?;
    // RTM_GETLINK with NLM_F_REQUEST; struct ifinfomsg behind the header.
    let mut message = vec![32, 0, 0, 0, 18, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend(&index[..4]);
    message.extend([0; 8]);
    write(socket, &message)?;
    let answer = read(socket, 16384)?;
    close(socket);
    // IFLA_TUN_OWNER and IFLA_TUN_GROUP.
    Ok([(1, OWNER), (2, GROUP)].into_iter().all(|(kind, id)| {
        let attribute = [[8, 0, kind, 0], (id as u32).to_ne_bytes()].concat();
        answer.windows(8).any(|part| part == attribute)
    }))
}

fn sockaddr([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [2, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// What is seen through a descriptor.
fn through(tun: i32, numbers: &[u64]) -> Result<(Request, Vec<i32>)> {
    let mut request = [0; 40];
    sys(
        "TUNGETIFF",
        ioctl(tun, TUNGETIFF, request.as_mut_ptr() as u64),
    )?;
    let mut values = Vec::new();
    for number in numbers {
        let mut value = 0;
        sys("a number", ioctl(tun, *number, &raw mut value as u64))?;
        values.push(value);
    }
    Ok((request, values))
}

/// Packets of this port that can be read now.
fn packets(tun: i32, port: u16) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    while ready(tun, libc::POLLIN)? & libc::POLLIN != 0 {
        let packet = read(tun, 4096)?;
        // IPv4 and UDP to that port; the kernel sends some of its own.
        let udp = packet.len() > 28 && packet[0] == 0x45 && packet[9] == 17;
        if udp && packet[22..24] == port.to_be_bytes() {
            found.push(packet[28..].to_vec());
        }
    }
    Ok(found)
}

/// An IPv4 tunnel that goes with its descriptor, with addresses and routes; two packets wait.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    const PORT: u16 = 4711;
    let tun = attached("kuptun", IFF_TUN | IFF_NO_PI)?;
    let interface = std::rc::Rc::new(Interface::new("kuptun", &["10.98.", "10.99."])?);
    let shown = interface.clone();
    sys("TUNSETOWNER", ioctl(tun, TUNSETOWNER, OWNER))?;
    sys("TUNSETGROUP", ioctl(tun, TUNSETGROUP, GROUP))?;
    let sndbuf = 100_000;
    sys(
        "TUNSETSNDBUF",
        ioctl(tun, TUNSETSNDBUF, &raw const sndbuf as u64),
    )?;
    interface.set(libc::SIOCSIFMTU, &1400_i32.to_ne_bytes())?;
    interface.set(libc::SIOCSIFTXQLEN, &77_i32.to_ne_bytes())?;
    interface.set_address(libc::SIOCSIFADDR, [10, 99, 7, 1])?;
    interface.set_address(libc::SIOCSIFNETMASK, [255, 255, 255, 0])?;
    fs::write("/proc/sys/net/ipv4/conf/kuptun/proxy_arp", "1")?;
    interface.up()?;
    route(&interface, [10, 98, 0, 0], [10, 99, 7, 2])?;
    let socket = UdpSocket::bind("10.99.7.1:0")?;
    let send = move || {
        for word in ["one", "two"] {
            // Through the gateway.
            socket.send_to(word.as_bytes(), ("10.98.0.5", PORT))?;
        }
        anyhow::Ok(())
    };
    send()?;
    let expected = vec![b"one".to_vec(), b"two".to_vec()];
    let observe = move || Ok((through(tun, &[TUNGETSNDBUF])?, shown.seen()?));
    Ok(Watch::keep(observe)?
        .and(Watch::new(move || {
            same("its owners", &true, &is_owned(&interface)?)?;
            same("packets", &expected, &packets(tun, PORT)?)?;
            send()?;
            same("packets", &expected, &packets(tun, PORT)?)?;
            answer(tun)?;
            send()
        }))
        .spoiled_by(move || packets(tun, PORT).map(drop)))
}

/// A route through a gateway (SIOCADDRT, struct rtentry).
fn route(interface: &Interface, net: [u8; 4], gateway: [u8; 4]) -> Result<()> {
    // SAFETY: zeros are a valid structure.
    let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
    // SAFETY: an address of IPv4 is as large as any.
    let address =
        |bytes| unsafe { std::mem::transmute::<[u8; 16], libc::sockaddr>(sockaddr(bytes)) };
    entry.rt_dst = address(net);
    entry.rt_gateway = address(gateway);
    entry.rt_genmask = address([255, 255, 0, 0]);
    entry.rt_flags = 3; // RTF_UP | RTF_GATEWAY
    let done = ioctl(interface.socket, libc::SIOCADDRT, &raw const entry as u64);
    sys("SIOCADDRT", done).map(drop)
}

/// A packet that is written arrives at a socket of the host.
fn answer(tun: i32) -> Result<()> {
    let socket = UdpSocket::bind("10.99.7.1:0")?;
    socket.set_read_timeout(Some(crate::kit::SOON))?;
    let port = socket.local_addr()?.port().to_be_bytes();
    let mut packet = vec![
        0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 7, 2, 10, 99, 7, 1,
    ];
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    // From port 9, without a checksum.
    packet.extend([0, 9, port[0], port[1], 0, 10, 0, 0]);
    packet.extend(b"hi");
    write(tun, &packet)?;
    let mut got = [0; 8];
    let (len, from) = socket.recv_from(&mut got)?;
    same("what came", b"hi".as_slice(), &got[..len])?;
    same("who sent it", "10.99.7.2:9", &from.to_string())
}

/// A persistent Ethernet tunnel with two descriptors, one of which takes no part.
pub(crate) fn tap(_: &Setting) -> Result<Watch> {
    let flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR;
    let queues = [attached("kuptap", flags)?, attached("kuptap", flags)?];
    let detach = request("", &IFF_DETACH_QUEUE.to_ne_bytes());
    sys(
        "TUNSETQUEUE",
        ioctl(queues[1], TUNSETQUEUE, detach.as_ptr() as u64),
    )?;
    sys("TUNSETPERSIST", ioctl(queues[0], TUNSETPERSIST, 1))?;
    let size = 12;
    sys(
        "TUNSETVNETHDRSZ",
        ioctl(queues[0], TUNSETVNETHDRSZ, &raw const size as u64),
    )?;
    let interface = Interface::new("kuptap", &[])?;
    // sa_family ARPHRD_ETHER, then the address.
    interface.set(libc::SIOCSIFHWADDR, &[1, 0, 2, 0x5e, 1, 2, 3, 4])?;
    interface.up()?;
    let observe = move || {
        let through = queues.map(|queue| through(queue, &[TUNGETVNETHDRSZ]));
        let [first, second] = through;
        Ok((first?, second?, interface.seen()?))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        close(queues[1]);
        attached("kuptap", flags).map(drop)
    }))
}

/// Packets are handed over unfinished (`TUNSETOFFLOAD`): without their checksums, also one that waits.
pub(crate) fn offloads(_: &Setting) -> Result<Watch> {
    const PORT: u16 = 4713;
    const TUNSETOFFLOAD: u64 = put(208);
    /// `TUN_F_CSUM`, `TUN_F_TSO4`.
    const CHECKSUMS_AND_SEGMENTS: u64 = 3;
    let tun = attached("kupoff", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)?;
    sys(
        "TUNSETOFFLOAD",
        ioctl(tun, TUNSETOFFLOAD, CHECKSUMS_AND_SEGMENTS),
    )?;
    let interface = Interface::new("kupoff", &[])?;
    interface.set_address(libc::SIOCSIFADDR, [10, 97, 7, 1])?;
    interface.set_address(libc::SIOCSIFNETMASK, [255, 255, 255, 0])?;
    interface.up()?;
    let socket = UdpSocket::bind("10.97.7.1:0")?;
    let send = move || socket.send_to(b"unfinished", ("10.97.7.2", PORT)).map(drop);
    send()?;
    // Flags and the place of the checksum (struct virtio_net_hdr), and what was sent.
    let take = move || {
        let mut found = Vec::new();
        while ready(tun, libc::POLLIN)? & libc::POLLIN != 0 {
            let packet = read(tun, 4096)?;
            let udp = packet.len() > 38 && packet[10] == 0x45 && packet[19] == 17;
            if udp && packet[32..34] == PORT.to_be_bytes() {
                found.push((packet[0], packet[6..10].to_vec(), packet[38..].to_vec()));
            }
        }
        anyhow::Ok(found)
    };
    let expected = vec![(1, vec![20, 0, 6, 0], b"unfinished".to_vec())];
    Ok(Watch::new(move || {
        same("the packet that waits", &expected, &take()?)?;
        send()?;
        same("a packet", &expected, &take()?)?;
        send().map_err(Into::into)
    })
    .spoiled_by(move || sys("TUNSETOFFLOAD", ioctl(tun, TUNSETOFFLOAD, 0)).map(drop)))
}

/// Opened, and not attached to anything yet.
pub(crate) fn idle(_: &Setting) -> Result<Watch> {
    let Ok(tun) = open("/dev/net/tun", O_RDWR) else {
        return not_here("no tun devices");
    };
    Ok(Watch::new(move || match through(tun, &[]) {
        Ok(_) => bail!("it is attached"),
        Err(error) => same(
            "the error",
            &true,
            &error.to_string().contains("descriptor in bad state"),
        ),
    })
    .spoiled_by(move || {
        let mut request = request("kupidle", &IFF_TUN.to_ne_bytes());
        sys(
            "TUNSETIFF",
            ioctl(tun, TUNSETIFF, request.as_mut_ptr() as u64),
        )
        .map(drop)
    }))
}
