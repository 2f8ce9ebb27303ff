//! Network interfaces: found in `/sys/class/net` and by rtnetlink(7), and found again on the new kernel.

use persist_mem::manifest::Link;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Errno;
use sys::rtnetlink::messages::{link_index, link_message};
use sys::rtnetlink::{self, LINK_FIXED, Netlink, attribute, attributes};

/// How long an interface may take to appear.
const WAIT: Duration = Duration::from_secs(5);
const IFF_UP: u32 = 1;
/// `IFF_NOARP`, `IFF_PROMISC`, `IFF_ALLMULTI`.
const IFF_SET: u32 = 0x80 | 0x100 | 0x200;
const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const TXQLEN: u16 = 13;
const IFALIAS: u16 = 20;
const GROUP: u16 = 27;
const PROP_LIST: u16 = 52;
const ALT_IFNAME: u16 = 53;
const PERM_ADDRESS: u16 = 54;
/// `RTM_NEWLINKPROP`, and `NLA_F_NESTED` of its list.
const NEWLINKPROP: u16 = 108;
const NESTED: u16 = 1 << 15;

/// All interfaces of this process's namespace.
pub(super) fn all() -> Vec<Link> {
    let netlink = Netlink::open();
    let messages = netlink.and_then(|netlink| netlink.dump(rtnetlink::GETLINK, &[0; LINK_FIXED]));
    let messages = messages.unwrap_or_default();
    let mut found: Vec<Link> = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let mut link = described(&entry)?;
            let mut all = messages.iter().map(|(_, payload)| payload);
            if let Some(message) = all.find(|message| link_index(message) == link.index) {
                complete(&mut link, message);
            }
            Some(link)
        })
        .collect();
    found.sort_by_key(|link| link.index);
    found
}

/// As its directory tells.
fn described(entry: &std::fs::DirEntry) -> Option<Link> {
    let read = |file: &str| {
        std::fs::read_to_string(entry.path().join(file))
            .map(|text| text.trim().to_owned())
            .ok()
    };
    let number = |file: &str| read(file)?.parse().ok();
    let flags = read("flags")?;
    let device = std::fs::canonicalize(entry.path().join("device")).ok();
    Some(Link {
        name: entry.file_name().into_string().ok()?,
        index: number("ifindex")?,
        hardware: read("address").unwrap_or_default(),
        up: u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()? & IFF_UP != 0,
        mtu: number("mtu")?,
        physical: device.is_some(),
        device: device
            .and_then(|device| Some(device.to_str()?.to_owned()))
            .unwrap_or_default(),
        permanent: Vec::new(),
        flags: 0,
        queue: number("tx_queue_len")?,
        group: number("netdev_group")?,
        alias: read("ifalias").unwrap_or_default(),
        names: Vec::new(),
    })
}

/// What only its `RTM_NEWLINK` message tells.
fn complete(link: &mut Link, message: &[u8]) {
    let flags = message.get(8..12).and_then(<[u8]>::first_chunk);
    link.flags = flags.map_or(0, |bytes| u32::from_ne_bytes(*bytes)) & IFF_SET;
    for (kind, value) in attributes(message, LINK_FIXED) {
        match kind {
            PERM_ADDRESS if value.iter().any(|byte| *byte != 0) => link.permanent = value.to_vec(),
            PROP_LIST => {
                let names = attributes(value, 0).into_iter();
                let names = names.filter(|(kind, _)| *kind == ALT_IFNAME);
                let text = |(_, name): (u16, &[u8])| {
                    let name = String::from_utf8_lossy(name);
                    name.trim_end_matches('\0').to_owned()
                };
                link.names = names.map(text).collect();
            }
            _ => {}
        }
    }
}

/// Whether an interface is one of `/dev/net/tun` that a process has open: without one it has no carrier.
pub(super) fn is_open_tunnel(link: &Link) -> bool {
    let directory = Path::new("/sys/class/net").join(&link.name);
    let carrier = std::fs::read_to_string(directory.join("carrier"));
    // Of one that is down it cannot be asked; such are not made again by anybody else either.
    directory.join("tun_flags").exists() && carrier.map_or(true, |carrier| carrier.trim() == "1")
}

/// The same interface on this kernel.
pub(super) fn find(link: &Link) -> Option<Link> {
    let end = Instant::now() + if link.physical { WAIT } else { Duration::ZERO };
    loop {
        let found = all().into_iter().find(|now| is_same(link, now));
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Devices that tell no address of their own get one by chance, and are known by their place.
fn is_same(link: &Link, now: &Link) -> bool {
    if !link.physical {
        return now.name == link.name;
    }
    if link.permanent.is_empty() || now.permanent.is_empty() {
        return now.physical && (now.hardware == link.hardware || now.device == link.device);
    }
    now.physical && now.permanent == link.permanent
}

/// Old name, address, MTU and the like, and up when it was. What cannot be set does not keep it from the rest; the
/// first error is told.
pub(super) fn bring_up(netlink: &Netlink, link: &Link, now: &Link) -> Result<(), Errno> {
    let mut done = Ok(());
    let mut send = |kind: u16, message: &[u8]| {
        let sent = netlink.change(kind, message);
        done = done.and(sent);
    };
    let with =
        |kind: u16, value: &[u8]| [link_message(now.index, 0, 0), attribute(kind, value)].concat();
    if now.name != link.name {
        let name = [link.name.as_bytes(), &[0]].concat();
        send(rtnetlink::NEWLINK, &with(IFNAME, &name));
    }
    if let (true, Some(address)) = (now.hardware != link.hardware, octets(&link.hardware)) {
        send(rtnetlink::NEWLINK, &with(ADDRESS, &address));
    }
    let numbers = [
        (MTU, now.mtu, link.mtu),
        (TXQLEN, now.queue, link.queue),
        (GROUP, now.group, link.group),
    ];
    for (kind, is, was) in numbers {
        if is != was {
            send(rtnetlink::NEWLINK, &with(kind, &was.to_ne_bytes()));
        }
    }
    if now.alias != link.alias {
        send(rtnetlink::NEWLINK, &with(IFALIAS, link.alias.as_bytes()));
    }
    for name in link.names.iter().filter(|name| !now.names.contains(name)) {
        let name = attribute(ALT_IFNAME, &[name.as_bytes(), &[0]].concat());
        send(NEWLINKPROP, &with(PROP_LIST | NESTED, &name));
    }
    let (flags, mask) = if link.up {
        (link.flags | IFF_UP, IFF_SET | IFF_UP)
    } else {
        (link.flags, IFF_SET)
    };
    if link.up || now.flags != link.flags {
        send(rtnetlink::NEWLINK, &link_message(now.index, flags, mask));
    }
    done
}

/// A hardware address that reads `02:00:00:00:00:01`.
fn octets(address: &str) -> Option<Vec<u8>> {
    let parts = address.split(':');
    let octets = parts.map(|part| u8::from_str_radix(part, 16).ok());
    octets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(permanent: &[u8], hardware: &str, device: &str) -> Link {
        Link {
            name: "eth0".into(),
            index: 2,
            hardware: hardware.into(),
            up: true,
            mtu: 1500,
            physical: true,
            device: device.into(),
            permanent: permanent.to_vec(),
            flags: 0,
            queue: 1000,
            group: 0,
            alias: String::new(),
            names: Vec::new(),
        }
    }

    #[test]
    fn it_is_the_same_by_what_the_device_says() {
        let changed = link(&[2, 0, 0, 0, 0, 1], "02:00:00:00:00:09", "/a");
        let ours = link(&[2, 0, 0, 0, 0, 1], "02:00:00:00:00:01", "/b");
        let other = link(&[2, 0, 0, 0, 0, 2], "02:00:00:00:00:09", "/a");
        assert!(is_same(&changed, &ours));
        assert!(!is_same(&changed, &other));
        assert!(is_same(&link(&[], "02:00:00:00:00:07", "/a"), &other));
        assert!(is_same(&link(&[], "02:00:00:00:00:09", "/c"), &other));
        assert!(!is_same(&link(&[], "02:00:00:00:00:07", "/c"), &other));
        assert_eq!(octets("02:0a").unwrap(), [2, 10]);
        assert!(octets("").is_none());
    }

    /// In a namespace of the thread's own.
    #[test]
    fn what_was_set_is_set_again() {
        let ip = |arguments: &str| {
            let mut ip = std::process::Command::new("ip");
            let done = ip.args(arguments.split(' ')).status();
            assert!(done.unwrap().success(), "ip {arguments}");
        };
        let told = |netlink: &Netlink, link: &mut Link| {
            let all = netlink.dump(rtnetlink::GETLINK, &[0; LINK_FIXED]).unwrap();
            let mut all = all.iter().map(|(_, payload)| payload);
            let named = all.find(|message| {
                let name = (IFNAME, &b"cable\0"[..]);
                attributes(message, LINK_FIXED).contains(&name)
            });
            let message = named.unwrap();
            link.index = link_index(message);
            complete(link, message);
            let kinds = [ADDRESS, MTU, TXQLEN, IFALIAS, GROUP, PROP_LIST];
            let found = attributes(message, LINK_FIXED).into_iter();
            let found = found.filter(|(kind, _)| kinds.contains(kind));
            let mut found: Vec<_> = found.map(|(kind, value)| (kind, value.to_vec())).collect();
            found.sort();
            let flags = u32::from_ne_bytes(message[8..12].try_into().unwrap());
            (found, flags & (IFF_SET | IFF_UP))
        };
        let in_namespace = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let made = "link add name cable mtu 1500 type veth peer name other";
            ip(made);
            ip("link set cable mtu 1400 txqueuelen 77 alias words group 9 promisc on");
            ip("link set cable address 02:00:00:00:00:77");
            ip("link property add dev cable altname wire");
            ip("link set cable up");
            let netlink = Netlink::open().unwrap();
            let mut was = link(&[], "02:00:00:00:00:77", "");
            let before = told(&netlink, &mut was);
            (was.mtu, was.queue, was.group, was.alias) = (1400, 77, 9, "words".into());
            assert_eq!(was.names, ["wire"]);
            was.name = "cable".into();
            ip("link del cable");
            ip(made);
            let mut now = link(&[], "", "");
            now.name = "cable".into();
            assert_ne!(told(&netlink, &mut now), before);
            bring_up(&netlink, &was, &now).unwrap();
            assert_eq!(told(&netlink, &mut now), before);
        };
        std::thread::spawn(in_namespace).join().unwrap();
    }
}
