//! What an upgrade would lose of the network, and so is refused: a host must not come back without its firewall.

use super::links;
use std::path::Path;
use sys::Errno;
use sys::rtnetlink::{self, Netlink, TRAFFIC_FIXED, attributes};

/// Everything of the host's namespace that is not made again, in words.
#[must_use]
pub fn check() -> Vec<String> {
    let mut found: Vec<String> = virtual_interfaces().collect();
    let dumps = [
        filter_tables as fn() -> Result<Vec<String>, Errno>,
        disciplines,
        next_hops,
        security,
    ];
    for dump in dumps {
        match dump() {
            Ok(refused) => found.extend(refused),
            // What a kernel does not know it does not have.
            Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => found.push(format!(
                "the network: the kernel does not tell all of it: {errno}"
            )),
        }
    }
    found.extend(old_filter_tables());
    found
}

/// Interfaces that are up and cannot be made again: those without a device, `lo` and tunnels apart, which
/// come with the descriptors that they are open on.
fn virtual_interfaces() -> impl Iterator<Item = String> {
    let all = links::all().into_iter();
    all.filter(|link| {
        link.up && !link.physical && link.name != "lo" && !links::is_open_tunnel(link)
    })
    .map(|link| {
        format!(
            "the network interface {} is virtual; such are not made again yet",
            link.name
        )
    })
}

/// Tables of nftables (nft(8)); iptables makes such ones, too. A kernel that has not loaded it has none.
fn filter_tables() -> Result<Vec<String>, Errno> {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE` (linux/netfilter/nf_tables.h).
    const GET_TABLE: u16 = 10 << 8 | 1;
    /// Bytes of `struct nfgenmsg`.
    const FIXED: usize = 4;
    const NAME: u16 = 1;
    if !Path::new("/sys/module/nf_tables").exists() {
        return Ok(Vec::new());
    }
    let tables = Netlink::to_filters()?.dump(GET_TABLE, &[0; FIXED])?;
    let names = tables.iter().map(|(_, table)| {
        let family = match table.first() {
            Some(1) => "inet",
            Some(2) => "ip",
            Some(3) => "arp",
            Some(5) => "netdev",
            Some(7) => "bridge",
            Some(10) => "ip6",
            _ => "unknown",
        };
        format!("{family} {}", text(attributes(table, FIXED), NAME))
    });
    let refused = names.map(|name| {
        format!("table {name} of nftables: packet filters are not made again yet; the host would be open")
    });
    Ok(refused.collect())
}

/// Tables of the iptables of old (`iptables-legacy`), which are there once somebody has looked at them.
fn old_filter_tables() -> Vec<String> {
    let mut found = Vec::new();
    for (program, file) in [
        ("iptables", "/proc/net/ip_tables_names"),
        ("ip6tables", "/proc/net/ip6_tables_names"),
        ("arptables", "/proc/net/arp_tables_names"),
    ] {
        let names = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(names.split_whitespace().map(|name| {
            format!(
                "table {name} of {program}: packet filters are not made again yet; \
                 unload its module if it has no rules"
            )
        }));
    }
    found
}

/// Queueing disciplines (tc(8)) that an interface does not have by itself.
fn disciplines() -> Result<Vec<String>, Errno> {
    const KIND: u16 = 1;
    // Those that differ in speed alone, and what holds them.
    const PLAIN: [&str; 7] = [
        "noqueue",
        "noop",
        "mq",
        "pfifo_fast",
        "pfifo",
        "fq",
        "fq_codel",
    ];
    let all = Netlink::open()?.dump(rtnetlink::GETQDISC, &[0; TRAFFIC_FIXED])?;
    let links = links::all();
    let refused = all.iter().filter_map(|(_, discipline)| {
        let kind = text(attributes(discipline, TRAFFIC_FIXED), KIND);
        let index = u32::from_ne_bytes(discipline.get(4..8)?.try_into().ok()?);
        let link = links.iter().find(|link| link.index == index)?;
        let lost = link.up && !links::is_open_tunnel(link) && !PLAIN.contains(&kind.as_str());
        lost.then(|| {
            format!(
                "the queueing discipline {kind} of interface {} (tc) is not made again yet",
                link.name
            )
        })
    });
    Ok(refused.collect())
}

/// Next hops that routes share (ip-nexthop(8)).
fn next_hops() -> Result<Vec<String>, Errno> {
    /// Bytes of `struct nhmsg`.
    const FIXED: usize = 8;
    let all = Netlink::open()?.dump(rtnetlink::GETNEXTHOP, &[0; FIXED])?;
    let refused = (!all.is_empty()).then(|| {
        format!(
            "{} next hops (ip nexthop): such are not made again yet",
            all.len()
        )
    });
    Ok(refused.into_iter().collect())
}

/// Policies and keys of IPsec (ip-xfrm(8)). A kernel that has not loaded it has none.
fn security() -> Result<Vec<String>, Errno> {
    /// `XFRM_MSG_GETSA`, `XFRM_MSG_GETPOLICY` (linux/xfrm.h).
    const GET: [(u16, &str); 2] = [(0x12, "keys"), (0x15, "policies")];
    if !Path::new("/sys/module/xfrm_user").exists() {
        return Ok(Vec::new());
    }
    let netlink = Netlink::to_security()?;
    let mut found = Vec::new();
    for (kind, what) in GET {
        if !netlink.dump(kind, &[])?.is_empty() {
            found.push(format!(
                "{what} of IPsec (ip xfrm): such are not made again yet"
            ));
        }
    }
    Ok(found)
}

/// An attribute that is a text.
fn text(attributes: Vec<(u16, &[u8])>, kind: u16) -> String {
    let found = attributes.iter().find(|(is, _)| *is == kind);
    let bytes = found.map_or(&[][..], |(_, value)| value);
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_asked_for() {
        for dump in [filter_tables, disciplines, next_hops, security] {
            let told = dump();
            assert!(
                !matches!(told, Err(errno) if errno != Errno::EOPNOTSUPP),
                "{told:?}"
            );
        }
    }
}
