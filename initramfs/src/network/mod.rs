//! Network interfaces with their addresses and routes: recorded before the jump, set up again after
//! it, before any socket exists.
//!
//! Interfaces are found again by their hardware address, since names depend on the order of
//! probing; they get their old name back. Addresses and routes are kept as the kernel dumps them
//! (rtnetlink(7)) and sent again, with the new interface numbers.

mod netlink;

use netlink::{Netlink, attribute, attributes};
use persist_mem::manifest::{Link, Network};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Errno;

/// How long an interface may take to appear.
const WAIT: Duration = Duration::from_secs(5);
const IFF_UP: u32 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
/// Route attributes with an interface number (RTA_IIF, RTA_OIF).
const ROUTE_LINKS: [u16; 2] = [3, 4];
/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS_FIXED: usize = 8;
const ROUTE_FIXED: usize = 12;
/// `rtm_protocol` of routes the kernel makes by itself.
const BY_KERNEL: u8 = 2;
const BY_REDIRECT: u8 = 1;
const CLONED: u32 = 0x200;

/// Reads the interfaces below `net` (`/sys/class/net`).
fn links(net: &Path) -> Vec<Link> {
    let mut found: Vec<Link> = std::fs::read_dir(net)
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

/// Interfaces that are up and cannot be made again: those without a device, `lo` apart.
#[must_use]
pub fn check() -> Vec<String> {
    links(Path::new("/sys/class/net"))
        .into_iter()
        .filter(|link| link.up && !link.physical && link.name != "lo")
        .map(|link| {
            format!(
                "the network interface {} is virtual; such are not made again yet",
                link.name
            )
        })
        .collect()
}

/// Records the network of this process's namespace.
///
/// # Errors
/// The kernel does not answer.
pub fn capture() -> Result<Network, Errno> {
    let netlink = Netlink::open()?;
    let payloads = |dump: Vec<(u16, Vec<u8>)>| dump.into_iter().map(|(_, payload)| payload);
    let addresses = netlink.dump(netlink::GETADDR, &[0; ADDRESS_FIXED])?;
    let routes = netlink.dump(netlink::GETROUTE, &[0; ROUTE_FIXED])?;
    Ok(Network {
        links: links(Path::new("/sys/class/net")),
        addresses: payloads(addresses).collect(),
        routes: payloads(routes).filter(|route| is_ours(route)).collect(),
    })
}

/// Whether somebody but the kernel made the route.
fn is_ours(route: &[u8]) -> bool {
    let protocol = route.get(5).copied().unwrap_or(BY_KERNEL);
    let flags = route
        .get(8..12)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_ne_bytes(*b));
    !matches!(protocol, BY_KERNEL | BY_REDIRECT) && flags & CLONED == 0
}

/// Sets it up again. Returns what could not be, in words.
#[must_use]
pub fn restore(network: &Network) -> Vec<String> {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(errno) => return vec![format!("no network: {errno}")],
    };
    let mut failed = Vec::new();
    let mut numbers: Vec<(u32, u32)> = Vec::new();
    for link in network.links.iter().filter(|l| l.up || l.physical) {
        let Some(now) = find(link) else {
            failed.push(format!(
                "the network interface {} ({}) is not there",
                link.name, link.hardware
            ));
            continue;
        };
        numbers.push((link.index, now.index));
        if let Err(errno) = bring_up(&netlink, link, &now) {
            failed.push(format!("the network interface {}: {errno}", link.name));
        }
    }
    for address in &network.addresses {
        let Some(message) = with_link(address, &numbers) else {
            continue;
        };
        if let Err(errno) = netlink.change(netlink::NEWADDR, &message) {
            failed.push(format!(
                "an address of interface {}: {errno}",
                link_of(address)
            ));
        }
    }
    // Routes through gateways come after the routes to these; two rounds order them.
    let mut rest: Vec<&Vec<u8>> = network.routes.iter().collect();
    for last in [false, true] {
        rest.retain(|route| {
            match netlink.change(netlink::NEWROUTE, &renumbered(route, &numbers)) {
                Ok(()) => false,
                Err(errno) if last => {
                    failed.push(format!("a route: {errno}"));
                    false
                }
                Err(_) => true,
            }
        });
    }
    failed
}

/// The same interface on this kernel.
fn find(link: &Link) -> Option<Link> {
    let end = Instant::now() + if link.physical { WAIT } else { Duration::ZERO };
    loop {
        let found = links(Path::new("/sys/class/net")).into_iter().find(|now| {
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
fn bring_up(netlink: &Netlink, link: &Link, now: &Link) -> Result<(), Errno> {
    if now.name != link.name {
        let name = [link.name.as_bytes(), &[0]].concat();
        netlink.change(
            netlink::NEWLINK,
            &[link_message(now.index, false), attribute(IFNAME, &name)].concat(),
        )?;
    }
    if now.mtu != link.mtu {
        let mtu = attribute(MTU, &link.mtu.to_ne_bytes());
        netlink.change(
            netlink::NEWLINK,
            &[link_message(now.index, false), mtu].concat(),
        )?;
    }
    if link.up {
        netlink.change(netlink::NEWLINK, &link_message(now.index, true))?;
    }
    Ok(())
}

/// `struct ifinfomsg`.
fn link_message(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { IFF_UP } else { 0 };
    let mut message = vec![0; 4];
    for word in [index, flags, flags] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message
}

/// Number of an address's interface (`ifa_index`).
fn link_of(address: &[u8]) -> u32 {
    address
        .get(4..8)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_ne_bytes(*b))
}

/// An address message for this kernel's interface; None when that is not there.
fn with_link(address: &[u8], numbers: &[(u32, u32)]) -> Option<Vec<u8>> {
    const FLAGS: u16 = 8;
    /// IFA_F_NODAD: the address was this host's a moment ago.
    const NO_PROBE: u32 = 2;
    /// IFA_F_HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE; the others tell states.
    const ASKED_FOR: u32 = 0x10 | 0x100 | 0x200;
    let old = link_of(address);
    let (_, new) = numbers.iter().find(|(was, _)| *was == old)?;
    let mut message = address.get(..ADDRESS_FIXED)?.to_vec();
    message[4..8].copy_from_slice(&new.to_ne_bytes());
    let mut flags = NO_PROBE;
    for (kind, value) in attributes(address, ADDRESS_FIXED) {
        if kind == FLAGS {
            let was = value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
            flags |= was & ASKED_FOR;
        } else {
            message.extend(attribute(kind, value));
        }
    }
    message.extend(attribute(FLAGS, &flags.to_ne_bytes()));
    Some(message)
}

/// A route message with this kernel's interface numbers.
fn renumbered(route: &[u8], numbers: &[(u32, u32)]) -> Vec<u8> {
    let mut message = route.get(..ROUTE_FIXED).unwrap_or_default().to_vec();
    // `rtm_flags` tells states (linkdown); what was asked for is not among them but for RTNH_F_ONLINK.
    const ONLINK: u32 = 4;
    if let Some(flags) = message.get_mut(8..12) {
        let old = <[u8; 4]>::try_from(&*flags).map_or(0, u32::from_ne_bytes);
        flags.copy_from_slice(&(old & ONLINK).to_ne_bytes());
    }
    const CACHE_INFO: u16 = 12;
    for (kind, value) in attributes(route, ROUTE_FIXED) {
        if kind == CACHE_INFO {
            continue;
        }
        let number = value.first_chunk().map(|b| u32::from_ne_bytes(*b));
        let new = numbers
            .iter()
            .find(|(old, _)| Some(*old) == number)
            .map(|(_, new)| new.to_ne_bytes());
        match new {
            Some(new) if ROUTE_LINKS.contains(&kind) => message.extend(attribute(kind, &new)),
            _ => message.extend(attribute(kind, value)),
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_get_the_new_numbers() {
        let mut address = vec![2, 8, 0, 0];
        address.extend(7_u32.to_ne_bytes());
        address.extend(attribute(2, &[10, 0, 0, 1]));
        address.extend(attribute(8, &0x280_u32.to_ne_bytes()));
        let message = with_link(&address, &[(7, 3)]).unwrap();
        assert_eq!(link_of(&message), 3);
        let [local, flags] = attributes(&message, ADDRESS_FIXED)[..] else {
            panic!("{message:?}")
        };
        assert_eq!(local, (2, &[10, 0, 0, 1][..]));
        assert_eq!(flags, (8, &0x202_u32.to_ne_bytes()[..]));
        assert!(with_link(&address, &[(6, 3)]).is_none());
        let mut route = vec![0; ROUTE_FIXED];
        route.extend(attribute(4, &7_u32.to_ne_bytes()));
        let message = renumbered(&route, &[(7, 3)]);
        assert_eq!(
            attributes(&message, ROUTE_FIXED)[0],
            (4, &3_u32.to_ne_bytes()[..])
        );
    }

    #[test]
    fn the_kernels_own_routes_are_left_to_it() {
        let mut route = vec![0; ROUTE_FIXED];
        route[5] = BY_KERNEL;
        assert!(!is_ours(&route));
        route[5] = 3;
        assert!(is_ours(&route));
        route[8..12].copy_from_slice(&CLONED.to_ne_bytes());
        assert!(!is_ours(&route));
    }

    #[test]
    fn this_hosts_network_is_understood() {
        let network = capture().unwrap();
        assert!(
            network.links.iter().any(|link| link.name == "lo"),
            "{network:?}"
        );
    }
}
