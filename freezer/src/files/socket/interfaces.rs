//! Network interfaces that a socket names and that no upgrade makes again: those without a device.

use super::super::Open;
use crate::FreezerError;
use nix::libc as c;
use nix::net::if_::if_indextoname;
use persist_mem::manifest::{Socket, SocketOption, SocketState};
use std::path::Path;

/// Refuses a socket that names one, since it could not be made.
pub(super) fn check(open: &Open<'_>, found: &Socket) -> Result<(), FreezerError> {
    let lost = named(found).find(|name| !comes_back(name));
    lost.map_or(Ok(()), |name| {
        Err(open.refuse(format!(
            "it names the network interface {name}, which is virtual; such are not made again yet"
        )))
    })
}

/// Whether the new kernel has it: a device, `lo`, or a tunnel, which comes with who has it open.
fn comes_back(name: &str) -> bool {
    let directory = Path::new("/sys/class/net").join(name);
    let there = |file: &str| directory.join(file).exists();
    name == "lo" || there("device") || there("tun_flags") || !directory.exists()
}

fn named(found: &Socket) -> impl Iterator<Item = String> {
    let of_state: Vec<String> = match &found.state {
        SocketState::Packet(state) => {
            let members = state.memberships.iter().map(|(name, ..)| name);
            state.interface.iter().chain(members).cloned().collect()
        }
        SocketState::Inet(state) => {
            let groups = state.groups.iter();
            groups.map(|group| group.interface.clone()).collect()
        }
        _ => Vec::new(),
    };
    found.options.iter().filter_map(of_option).chain(of_state)
}

/// The interface that an option names or has the number of.
fn of_option(option: &SocketOption) -> Option<String> {
    const IPV6_UNICAST_IF: i32 = 76;
    let value = &option.value;
    let word = |at: usize| value.get(at..at + 4)?.first_chunk().copied();
    let index = match (option.level, option.name) {
        (c::SOL_SOCKET, c::SO_BINDTODEVICE) => {
            let name = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(name.to_vec())
                .ok()
                .filter(|name| !name.is_empty());
        }
        (c::SOL_IP, c::IP_UNICAST_IF) | (c::SOL_IPV6, IPV6_UNICAST_IF) => {
            u32::from_be_bytes(word(0)?)
        }
        // `struct ip_mreqn`: group, address, index.
        (c::SOL_IP, c::IP_MULTICAST_IF) => u32::from_ne_bytes(word(8)?),
        (c::SOL_IPV6, c::IPV6_MULTICAST_IF) => u32::from_ne_bytes(word(0)?),
        // `struct in6_pktinfo`: address, index.
        (c::SOL_IPV6, c::IPV6_PKTINFO) => u32::from_ne_bytes(word(16)?),
        _ => return None,
    };
    let name = if_indextoname(index).ok()?;
    name.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(level: i32, name: i32, value: &[u8]) -> SocketOption {
        SocketOption {
            level,
            name,
            value: value.to_vec(),
        }
    }

    #[test]
    fn options_name_interfaces() {
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let found = [
            option(c::SOL_SOCKET, c::SO_BINDTODEVICE, b"lo\0"),
            option(c::SOL_IP, c::IP_UNICAST_IF, &lo.to_be_bytes()),
            option(c::SOL_IPV6, c::IPV6_MULTICAST_IF, &lo.to_ne_bytes()),
            option(
                c::SOL_IP,
                c::IP_MULTICAST_IF,
                &[[0; 4], [0; 4], lo.to_ne_bytes()].concat(),
            ),
        ];
        assert!(
            found
                .iter()
                .all(|option| of_option(option).as_deref() == Some("lo"))
        );
        assert_eq!(
            of_option(&option(c::SOL_IP, c::IP_MULTICAST_IF, &[0; 4])),
            None
        );
        assert_eq!(
            of_option(&option(c::SOL_SOCKET, c::SO_BINDTODEVICE, b"")),
            None
        );
        assert!(comes_back("lo"));
    }
}
