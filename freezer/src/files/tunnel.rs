//! `/dev/net/tun`: several descriptions, one network interface.
//!
//! An interface that is not persistent goes with its last descriptor, and on another kernel all of them are
//! new: so what was set up on it, addresses and routes among that, belongs to the descriptor.

use super::Open;
use crate::{FreezerError, proc};
use persist_mem::manifest::{DescriptionKind, Manifest, Tunnel};
use std::os::fd::{AsFd, BorrowedFd};
use sys::rtnetlink::{self, ADDRESS_FIXED, LINK_FIXED, Netlink, ROUTE_FIXED, attributes, messages};
use sys::{Errno, tun};

/// Link attributes (linux/if_link.h).
const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const QDISC: u16 = 6;
const MASTER: u16 = 10;
const TXQLEN: u16 = 13;
const LINKINFO: u16 = 18;
const INFO_DATA: u16 = 2;
const TUN_OWNER: u16 = 1;
const TUN_GROUP: u16 = 2;
const XDP: u16 = 43;
const XDP_ATTACHED: u16 = 2;
/// `IFF_*` of if.h that users set: UP, DEBUG, NOARP, PROMISC, ALLMULTI, MULTICAST, DYNAMIC.
const SET_BY_USERS: u32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;
/// Largest packet.
const PACKET: usize = 1 << 17;
/// Packets that may wait: the longest queue that is taken.
const MOST: usize = 1 << 16;

/// The interfaces found so far.
#[derive(Default)]
pub(super) struct Tunnels(Vec<Tunnel>);

impl Tunnels {
    pub(super) fn capture(&mut self, open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
        let found = examine(open)?;
        let interface = found.as_ref().map(|(tunnel, _)| tunnel.name.clone());
        let detached = found.as_ref().is_some_and(|(_, detached)| *detached);
        if let Some((tunnel, _)) = found
            && !self.0.iter().any(|known| known.name == tunnel.name)
        {
            self.0.push(tunnel);
        }
        Ok(DescriptionKind::Tunnel {
            path: open.link.to_vec(),
            interface,
            detached,
            unread: Vec::new(),
        })
    }

    pub(super) fn finish(self) -> Vec<Tunnel> {
        self.0
    }
}

/// The interface of a descriptor, and whether it takes no part at present. None when it has no interface.
/// What is not carried is refused; nothing is changed.
pub(super) fn examine(open: &Open<'_>) -> Result<Option<(Tunnel, bool)>, FreezerError> {
    let fd = open.copy.as_fd();
    let found = tun::interface(fd).map_err(open.call("asking for its interface"))?;
    let Some((name, flags)) = found else {
        return Ok(None);
    };
    let filtered = tun::has_filter(fd).map_err(open.call("asking for its filter"))?;
    if filtered {
        return Err(open.refuse("its filter (TUNATTACHFILTER) cannot be read and is not carried"));
    }
    let settings = tun::settings(fd).map_err(open.call("asking for its settings"))?;
    let netlink = Netlink::open().map_err(open.call("asking for interfaces"))?;
    let link = link(open, &netlink, &name)?;
    let offloads = tun::offloads(&name).map_err(open.call("asking for its offloads"))?;
    let routes = routes(open, &netlink, link.index)?;
    let tunnel = Tunnel {
        index: link.index,
        flags: flags & !(tun::DETACHED | tun::PERSISTENT),
        persistent: flags & tun::PERSISTENT != 0,
        send_buffer: settings.send_buffer,
        header_size: settings.header_size,
        little_endian: settings.little_endian,
        big_endian: settings.big_endian,
        offloads,
        settings: own_settings(&name),
        addresses: addresses(open, &netlink, link.index)?,
        routes,
        name,
        ..link
    };
    Ok(Some((tunnel, flags & tun::DETACHED != 0)))
}

fn number(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b))
}

/// What rtnetlink(7) tells of the interface itself.
fn link(open: &Open<'_>, netlink: &Netlink, name: &str) -> Result<Tunnel, FreezerError> {
    let dump = netlink.dump(rtnetlink::GETLINK, &[0; LINK_FIXED]);
    let dump = dump.map_err(open.call("asking for interfaces"))?;
    let named = |message: &&Vec<u8>| {
        let mut all = attributes(message, LINK_FIXED).into_iter();
        all.any(|(kind, value)| kind == IFNAME && value.strip_suffix(&[0]) == Some(name.as_bytes()))
    };
    let message = dump.iter().map(|(_, message)| message).find(named);
    let message = message.ok_or_else(|| open.call("finding its interface")(Errno::ENODEV))?;
    let word = |at: usize| message.get(at..).map_or(0, number);
    let mut tunnel = Tunnel {
        // struct ifinfomsg: family, type, index, flags.
        link_type: (word(0) >> 16) as u16,
        index: word(4),
        state: word(8) & SET_BY_USERS,
        ..Tunnel::default()
    };
    for (kind, value) in attributes(message, LINK_FIXED) {
        match kind {
            ADDRESS => tunnel.hardware = value.to_vec(),
            MTU => tunnel.mtu = number(value),
            TXQLEN => tunnel.queue_len = number(value),
            LINKINFO => [tunnel.owner, tunnel.group] = owners(value),
            MASTER => {
                return Err(
                    open.refuse("its interface is a port of another one, which is not carried")
                );
            }
            QDISC if !usual(value) => {
                return Err(open.refuse("its interface has a queueing discipline (tc) of its own"));
            }
            XDP if attributes(value, 0)
                .iter()
                .any(|(kind, on)| *kind == XDP_ATTACHED && *on != [0]) =>
            {
                return Err(open.refuse("its interface has a BPF program (XDP)"));
            }
            _ => {}
        }
    }
    Ok(tunnel)
}

/// Whether interfaces have this queueing discipline by themselves.
fn usual(discipline: &[u8]) -> bool {
    let text = String::from_utf8_lossy(discipline);
    let name = text.trim_end_matches('\0');
    let default = std::fs::read_to_string("/proc/sys/net/core/default_qdisc").unwrap_or_default();
    name == default.trim() || ["pfifo_fast", "noop", "noqueue", "mq"].contains(&name)
}

/// User and group that may use it, from `IFLA_LINKINFO`.
fn owners(info: &[u8]) -> [Option<u32>; 2] {
    let all = attributes(info, 0);
    let data = all.iter().find(|(kind, _)| *kind == INFO_DATA);
    let data = data.map_or_else(Vec::new, |(_, data)| attributes(data, 0));
    [TUN_OWNER, TUN_GROUP].map(|wanted| {
        let found = data.iter().find(|(kind, _)| *kind == wanted);
        found.map(|(_, value)| number(value))
    })
}

fn addresses(open: &Open<'_>, netlink: &Netlink, index: u32) -> Result<Vec<Vec<u8>>, FreezerError> {
    let dump = netlink.dump(rtnetlink::GETADDR, &[0; ADDRESS_FIXED]);
    let dump = dump.map_err(open.call("asking for addresses"))?.into_iter();
    let ours = dump.map(|(_, message)| message);
    let ours = ours.filter(|message| messages::link_of(message) == index);
    Ok(ours.collect())
}

fn routes(open: &Open<'_>, netlink: &Netlink, index: u32) -> Result<Vec<Vec<u8>>, FreezerError> {
    let dump = netlink.dump(rtnetlink::GETROUTE, &[0; ROUTE_FIXED]);
    let dump = dump.map_err(open.call("asking for routes"))?;
    let all: Vec<Vec<u8>> = dump.into_iter().map(|(_, message)| message).collect();
    if all
        .iter()
        .any(|route| messages::also_leads_through(route, index))
    {
        return Err(open.refuse("a route with several ways leads through its interface"));
    }
    let ours = all.into_iter().filter(|route| messages::is_ours(route));
    let ours = ours.filter(|route| messages::leads_through(route, index));
    Ok(ours.collect())
}

/// The settings of an interface below `/proc/sys/net`. What its addresses are made from comes first, then
/// how.
fn own_settings(name: &str) -> Vec<(String, String)> {
    const FIRST: [&str; 2] = ["stable_secret", "addr_gen_mode"];
    let mut found = Vec::new();
    for family in ["ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"] {
        let directory = format!("{family}/{name}");
        let entries = std::fs::read_dir(format!("/proc/sys/net/{directory}"));
        for entry in entries.into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            // The MTU is the interface's; what cannot be read has not been set.
            if file == "mtu" {
                continue;
            }
            if let Ok(value) = std::fs::read_to_string(entry.path()) {
                found.push((format!("{directory}/{file}"), value.trim_end().to_owned()));
            }
        }
    }
    let rank = |path: &str| {
        let first = FIRST.iter().position(|first| path.ends_with(first));
        first.unwrap_or(FIRST.len())
    };
    found.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
    found
}

/// Takes the packets that nobody has read. From here on the processes must not go on: those packets are lost
/// to them.
///
/// # Errors
/// When a packet cannot be read.
pub fn take_packets(manifest: &mut Manifest) -> Result<(), FreezerError> {
    for at in 0..manifest.descriptions.len() {
        let description = &manifest.descriptions[at];
        let DescriptionKind::Tunnel {
            interface: Some(_), ..
        } = &description.kind
        else {
            continue;
        };
        // In flight over a socket: nobody can say how long it has been there.
        let Some((holder, fd)) = manifest.holder(description.id) else {
            continue;
        };
        let pid = holder.shown_as();
        let failed = |doing| FreezerError::call(pid, format!("fd {fd}: {doing}"));
        let pidfd = proc::pidfd(pid).map_err(failed("opening a pidfd"))?;
        let copy = sys::process::pidfd_getfd(pidfd.as_fd(), fd).map_err(failed("copying it"))?;
        let mut found = Vec::new();
        let mut buffer = vec![0; PACKET];
        while found.len() < MOST && has_packet(copy.as_fd()) {
            let len = nix::unistd::read(&copy, &mut buffer).map_err(failed("taking a packet"))?;
            found.push(buffer[..len].to_vec());
        }
        if let DescriptionKind::Tunnel { unread, .. } = &mut manifest.descriptions[at].kind {
            *unread = found;
        }
    }
    Ok(())
}

fn has_packet(fd: BorrowedFd<'_>) -> bool {
    sys::socket::events(fd).is_ok_and(|events| events & nix::libc::POLLIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_addresses_are_made_from_comes_first() {
        let found = own_settings("lo");
        assert!(
            found
                .iter()
                .any(|(path, _)| path == "ipv4/conf/lo/forwarding"),
            "{found:?}"
        );
        let place = |end: &str| found.iter().position(|(path, _)| path.ends_with(end));
        if let Some(mode) = place("addr_gen_mode") {
            assert!(Some(mode) < place("ipv4/conf/lo/accept_local"), "{found:?}");
        }
    }

    #[test]
    fn disciplines_that_come_by_themselves() {
        assert!(usual(b"noqueue\0") && !usual(b"netem\0"));
    }
}
