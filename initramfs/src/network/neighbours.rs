//! Hardware addresses of neighbours that somebody has set (`ip neighbour add ... nud permanent`).

use sys::Errno;
use sys::rtnetlink::{self, NEIGHBOUR_FIXED, Netlink, attribute, attributes};

/// `NUD_PERMANENT` (linux/neighbour.h).
const PERMANENT: u16 = 0x80;
/// `NDA_DST`, `NDA_LLADDR`.
const ASKED_FOR: [u16; 2] = [1, 2];

/// Payloads of their `RTM_NEWNEIGH` messages.
pub(super) fn dump(netlink: &Netlink) -> Result<Vec<Vec<u8>>, Errno> {
    let all = netlink.dump(rtnetlink::GETNEIGH, &[0; NEIGHBOUR_FIXED])?;
    let payloads = all.into_iter().map(|(_, payload)| payload);
    Ok(payloads.filter(|one| is_permanent(one)).collect())
}

/// `ndm_state` of `struct ndmsg`.
fn is_permanent(neighbour: &[u8]) -> bool {
    neighbour.get(8..10) == Some(&PERMANENT.to_ne_bytes())
}

/// Sets them again, at the interfaces with their new `numbers`. Returns what could not be, in words.
pub(super) fn restore(
    netlink: &Netlink,
    neighbours: &[Vec<u8>],
    numbers: &[(u32, u32)],
) -> Vec<String> {
    let messages = neighbours.iter().filter_map(|one| message(one, numbers));
    let failed = messages.filter_map(|one| netlink.change(rtnetlink::NEWNEIGH, &one).err());
    failed
        .map(|errno| format!("a permanent neighbour: {errno}"))
        .collect()
}

/// The message for this kernel's interface; None when that is not there.
fn message(neighbour: &[u8], numbers: &[(u32, u32)]) -> Option<Vec<u8>> {
    let mut message = neighbour.get(..NEIGHBOUR_FIXED)?.to_vec();
    let old = u32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    let (_, new) = numbers.iter().find(|(was, _)| *was == old)?;
    message[4..8].copy_from_slice(&new.to_ne_bytes());
    for (kind, value) in attributes(neighbour, NEIGHBOUR_FIXED) {
        if ASKED_FOR.contains(&kind) {
            message.extend(attribute(kind, value));
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a namespace of the thread's own, between two ends of a cable.
    #[test]
    fn they_come_back() {
        let ip = |arguments: &str| {
            let mut ip = std::process::Command::new("ip");
            let done = ip.args(arguments.split(' ')).status();
            assert!(done.unwrap().success(), "ip {arguments}");
        };
        let in_namespace = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add name one type veth peer name two");
            ip("link set one up");
            ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev one nud permanent");
            ip("neighbour add 192.0.2.8 lladdr 02:00:00:00:00:08 dev one nud reachable");
            let netlink = Netlink::open().unwrap();
            let before = dump(&netlink).unwrap();
            let [one] = &before[..] else {
                panic!("{before:?}")
            };
            let index = u32::from_ne_bytes(one[4..8].try_into().unwrap());
            ip("neighbour flush nud permanent dev one");
            assert!(dump(&netlink).unwrap().is_empty());
            let failed = restore(&netlink, &before, &[(index, index)]);
            assert!(failed.is_empty(), "{failed:?}");
            let address = |all: &[Vec<u8>]| attribute(1, attributes(&all[0], NEIGHBOUR_FIXED)[0].1);
            assert_eq!(address(&dump(&netlink).unwrap()), address(&before));
        };
        std::thread::spawn(in_namespace).join().unwrap();
    }

    #[test]
    fn neighbours_get_the_new_numbers() {
        let mut neighbour = vec![2, 0, 0, 0, 7, 0, 0, 0, 0x80, 0, 0, 1];
        neighbour.extend(attribute(1, &[10, 0, 2, 9]));
        neighbour.extend(attribute(3, &[0; 16]));
        assert!(is_permanent(&neighbour));
        let message = message(&neighbour, &[(7, 3)]).unwrap();
        assert_eq!(message[4..8], 3_u32.to_ne_bytes());
        assert_eq!(
            attributes(&message, NEIGHBOUR_FIXED),
            [(1, &[10, 0, 2, 9][..])]
        );
        assert!(super::message(&neighbour, &[(6, 3)]).is_none());
    }
}
