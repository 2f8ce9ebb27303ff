//! Network interfaces with their addresses and routes: recorded before the jump, set up again after
//! it, before any socket exists.
//!
//! Interfaces are found again by their hardware address, since names depend on the order of
//! probing; they get their old name back. Addresses and routes are kept as the kernel dumps them
//! (rtnetlink(7)) and sent again, with the new interface numbers.

use persist_mem::manifest::{Link, Network};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Errno;
use sys::rtnetlink::messages::{
    is_ours, leads_through, link_message, link_of, renumbered, with_link,
};
use sys::rtnetlink::{self, ADDRESS_FIXED, Netlink, ROUTE_FIXED, attribute};

/// How long an interface may take to appear.
const WAIT: Duration = Duration::from_secs(5);
const IFF_UP: u32 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;

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

/// Interfaces that are up and cannot be made again: those without a device, `lo` and tunnels apart, which
/// come with the descriptors that they are open on.
#[must_use]
pub fn check() -> Vec<String> {
    links(Path::new("/sys/class/net"))
        .into_iter()
        .filter(|link| link.up && !link.physical && link.name != "lo" && !is_open_tunnel(link))
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
    let addresses = netlink.dump(rtnetlink::GETADDR, &[0; ADDRESS_FIXED])?;
    let routes = netlink.dump(rtnetlink::GETROUTE, &[0; ROUTE_FIXED])?;
    let (tunnels, links): (Vec<Link>, Vec<Link>) = links(Path::new("/sys/class/net"))
        .into_iter()
        .partition(is_open_tunnel);
    let leads_through_tunnel = |route: &[u8]| {
        let mut all = tunnels.iter();
        all.any(|tunnel| leads_through(route, tunnel.index))
    };
    let routes = payloads(routes).filter(|route| is_ours(route) && !leads_through_tunnel(route));
    Ok(Network {
        links,
        addresses: payloads(addresses).collect(),
        routes: routes.collect(),
    })
}

/// Whether an interface is one of `/dev/net/tun` that a process has open: without one it has no carrier.
fn is_open_tunnel(link: &Link) -> bool {
    let directory = Path::new("/sys/class/net").join(&link.name);
    let carrier = std::fs::read_to_string(directory.join("carrier"));
    // Of one that is down it cannot be asked; such are not made again by anybody else either.
    directory.join("tun_flags").exists() && carrier.map_or(true, |carrier| carrier.trim() == "1")
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
        if let Err(errno) = netlink.change(rtnetlink::NEWADDR, &message) {
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
            match netlink.change(rtnetlink::NEWROUTE, &renumbered(route, &numbers)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_network_is_understood() {
        let network = capture().unwrap();
        assert!(
            network.links.iter().any(|link| link.name == "lo"),
            "{network:?}"
        );
    }
}
