//! What messages say of interfaces, addresses and routes, and the same for another kernel, where interfaces
//! have other numbers.

use super::{ADDRESS_FIXED, ROUTE_FIXED, attribute, attributes};

/// Route attributes with an interface number (RTA_IIF, RTA_OIF).
const ROUTE_LINKS: [u16; 2] = [3, RTA_OIF];
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// `rtm_protocol` of routes the kernel makes by itself.
const BY_KERNEL: u8 = 2;
const BY_REDIRECT: u8 = 1;
const CLONED: u32 = 0x200;

/// Whether somebody but the kernel made the route.
#[must_use]
pub fn is_ours(route: &[u8]) -> bool {
    let protocol = route.get(5).copied().unwrap_or(BY_KERNEL);
    let flags = route
        .get(8..12)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_ne_bytes(*b));
    !matches!(protocol, BY_KERNEL | BY_REDIRECT) && flags & CLONED == 0
}

/// Whether a route leads out through interface `index`.
#[must_use]
pub fn leads_through(route: &[u8], index: u32) -> bool {
    let found = attributes(route, ROUTE_FIXED);
    found
        .iter()
        .any(|(kind, value)| *kind == RTA_OIF && *value == index.to_ne_bytes())
}

/// Whether a route has several ways, one of which leads out through interface `index`.
#[must_use]
pub fn also_leads_through(route: &[u8], index: u32) -> bool {
    let found = attributes(route, ROUTE_FIXED);
    let ways = found.iter().find(|(kind, _)| *kind == RTA_MULTIPATH);
    let mut rest = ways.map_or(&[][..], |(_, value)| value);
    // struct rtnexthop: length, flags, hops, interface; attributes behind it.
    while let Some([l0, l1, _, _, number @ ..]) = rest.first_chunk::<8>() {
        if *number == index.to_ne_bytes() {
            return true;
        }
        let len = usize::from(u16::from_ne_bytes([*l0, *l1])).max(8);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// A `struct ifinfomsg` that sets the flags of `mask` to `flags`.
#[must_use]
pub fn link_message(index: u32, flags: u32, mask: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [index, flags, mask] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message
}

/// Number of an interface that a message describes (`ifi_index`).
#[must_use]
pub fn link_index(link: &[u8]) -> u32 {
    link_of(link)
}

/// Number of an address's interface (`ifa_index`).
#[must_use]
pub fn link_of(address: &[u8]) -> u32 {
    address
        .get(4..8)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_ne_bytes(*b))
}

/// An address message for this kernel's interface; None when that is not there.
#[must_use]
pub fn with_link(address: &[u8], numbers: &[(u32, u32)]) -> Option<Vec<u8>> {
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
#[must_use]
pub fn renumbered(route: &[u8], numbers: &[(u32, u32)]) -> Vec<u8> {
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
    fn ways_of_a_route() {
        let mut route = vec![0; ROUTE_FIXED];
        route.extend(attribute(RTA_OIF, &7_u32.to_ne_bytes()));
        assert!(leads_through(&route, 7) && !leads_through(&route, 8));
        let mut ways = Vec::new();
        for number in [3_u32, 9] {
            ways.extend([8, 0, 0, 0]);
            ways.extend(number.to_ne_bytes());
        }
        let mut route = vec![0; ROUTE_FIXED];
        route.extend(attribute(RTA_MULTIPATH, &ways));
        assert!(also_leads_through(&route, 9) && !also_leads_through(&route, 7));
    }
}
