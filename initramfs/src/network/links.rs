//! Network interfaces: found in `/sys/class/net`, and found again on the new kernel.

use persist_mem::manifest::Link;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Errno;
use sys::rtnetlink::messages::link_message;
use sys::rtnetlink::{self, Netlink, attribute};

/// How long an interface may take to appear.
const WAIT: Duration = Duration::from_secs(5);
const IFF_UP: u32 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;

/// All interfaces of this process's namespace.
pub(super) fn all() -> Vec<Link> {
    let mut found: Vec<Link> = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let read = |file: &str| {
                std::fs::read_to_string(entry.path().join(file))
                    .map(|text| text.trim().to_owned())
                    .ok()
            };
            let flags = read("flags")?;
            Some(Link {
                name: entry.file_name().into_string().ok()?,
                index: read("ifindex")?.parse().ok()?,
                hardware: read("address").unwrap_or_default(),
                up: u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()? & IFF_UP != 0,
                mtu: read("mtu")?.parse().ok()?,
                physical: entry.path().join("device").exists(),
            })
        })
        .collect();
    found.sort_by_key(|link| link.index);
    found
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
        let found = all().into_iter().find(|now| {
            if link.physical {
                now.physical && now.hardware == link.hardware
            } else {
                now.name == link.name
            }
        });
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Old name, old MTU, and up when it was.
pub(super) fn bring_up(netlink: &Netlink, link: &Link, now: &Link) -> Result<(), Errno> {
    if now.name != link.name {
        let name = [link.name.as_bytes(), &[0]].concat();
        netlink.change(
            rtnetlink::NEWLINK,
            &[link_message(now.index, 0, 0), attribute(IFNAME, &name)].concat(),
        )?;
    }
    if now.mtu != link.mtu {
        let mtu = attribute(MTU, &link.mtu.to_ne_bytes());
        netlink.change(
            rtnetlink::NEWLINK,
            &[link_message(now.index, 0, 0), mtu].concat(),
        )?;
    }
    if link.up {
        netlink.change(rtnetlink::NEWLINK, &link_message(now.index, IFF_UP, IFF_UP))?;
    }
    Ok(())
}
