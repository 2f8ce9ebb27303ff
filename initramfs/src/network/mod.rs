//! Network interfaces with their addresses, routes, rules and permanent neighbours: recorded before the jump, set up
//! again after it, before any socket exists. What would be lost is refused ([`check`]).
//!
//! Interfaces are found again by their hardware address, since names depend on the order of
//! probing; they get their old name back. Addresses and routes are kept as the kernel dumps them
//! (rtnetlink(7)) and sent again, with the new interface numbers.

mod links;
mod lost;
mod neighbours;
mod rules;

pub use lost::check;
use persist_mem::manifest::{Link, Network};
use sys::Errno;
use sys::rtnetlink::messages::{is_ours, leads_through, link_of, renumbered, with_link};
use sys::rtnetlink::{self, ADDRESS_FIXED, Netlink, ROUTE_FIXED};

/// Records the network of this process's namespace.
///
/// # Errors
/// The kernel does not answer.
pub fn capture() -> Result<Network, Errno> {
    let netlink = Netlink::open()?;
    let payloads = |dump: Vec<(u16, Vec<u8>)>| dump.into_iter().map(|(_, payload)| payload);
    let addresses = netlink.dump(rtnetlink::GETADDR, &[0; ADDRESS_FIXED])?;
    let routes = netlink.dump(rtnetlink::GETROUTE, &[0; ROUTE_FIXED])?;
    let (tunnels, links): (Vec<Link>, Vec<Link>) =
        links::all().into_iter().partition(links::is_open_tunnel);
    let leads_through_tunnel = |route: &[u8]| {
        let mut all = tunnels.iter();
        all.any(|tunnel| leads_through(route, tunnel.index))
    };
    let routes = payloads(routes).filter(|route| is_ours(route) && !leads_through_tunnel(route));
    Ok(Network {
        links,
        addresses: payloads(addresses).collect(),
        routes: routes.collect(),
        rules: rules::dump(&netlink)?,
        neighbours: neighbours::dump(&netlink)?,
    })
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
        let Some(now) = links::find(link) else {
            failed.push(format!(
                "the network interface {} ({}) is not there",
                link.name, link.hardware
            ));
            continue;
        };
        numbers.push((link.index, now.index));
        if let Err(errno) = links::bring_up(&netlink, link, &now) {
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
    failed.extend(rules::restore(&netlink, &network.rules));
    failed.extend(neighbours::restore(&netlink, &network.neighbours, &numbers));
    failed
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
