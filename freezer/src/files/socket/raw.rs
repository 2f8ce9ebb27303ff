//! Peers of raw and ICMP sockets, and of UDP sockets that are connected to a host alone. Such a peer has no port, and
//! getpeername(2) takes that for no peer; so they are told by `/proc/net` (proc(5)).

use super::Common;
use nix::libc as c;
use std::os::fd::BorrowedFd;

/// The peer's address, bytes of its `struct sockaddr`; empty when it is not connected.
pub(super) fn peer(common: &Common) -> Vec<u8> {
    let table = match (common.domain, common.kind) {
        (c::AF_INET, c::SOCK_RAW) => "raw",
        (c::AF_INET6, c::SOCK_RAW) => "raw6",
        (c::AF_INET, _) if common.protocol == c::IPPROTO_UDP => "udp",
        (_, _) if common.protocol == c::IPPROTO_UDP => "udp6",
        (c::AF_INET, _) if common.protocol == c::IPPROTO_UDPLITE => "udplite",
        (_, _) if common.protocol == c::IPPROTO_UDPLITE => "udplite6",
        (c::AF_INET, _) => "icmp",
        _ => "icmp6",
    };
    let text = std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
    let mut lines = text.lines().skip(1);
    lines
        .find_map(|text| line(text, common.inode))
        .and_then(|remote| address(common.domain, &remote))
        .unwrap_or_default()
}

/// Whether a socket of UDP may be connected to a host without a port: there is a way to it (ip(7), `IP_MTU`).
pub(super) fn has_way(fd: BorrowedFd<'_>) -> bool {
    sys::socket::int_option(fd, c::SOL_IP, c::IP_MTU).is_ok()
}

/// The remote host of a line about this inode: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode`.
fn line(text: &str, inode: u64) -> Option<String> {
    const ESTABLISHED: &str = "01";
    let words: Vec<&str> = text.split_whitespace().collect();
    let right = words.get(9)?.parse() == Ok(inode) && words.get(3) == Some(&ESTABLISHED);
    let (host, _) = words.get(2).filter(|_| right)?.split_once(':')?;
    Some(host.to_owned())
}

/// Hosts are printed as words of this machine's byte order.
fn address(domain: i32, host: &str) -> Option<Vec<u8>> {
    let words = (0..host.len()).step_by(8).map(|at| {
        let word = host.get(at..at + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let host = words.collect::<Option<Vec<_>>>()?.concat();
    let family = u8::try_from(domain).ok()?;
    Some(if domain == c::AF_INET {
        [&[family, 0, 0, 0], host.as_slice(), &[0; 8]].concat()
    } else {
        [&[family, 0, 0, 0, 0, 0, 0, 0], host.as_slice(), &[0; 4]].concat()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connected_sockets_have_a_peer() {
        let text = "  89: 0100007F:0059 0200007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0";
        let host = line(text, 7).unwrap();
        let address = address(c::AF_INET, &host).unwrap();
        assert_eq!(
            (address[0], &address[2..8]),
            (2, [0, 0, 127, 0, 0, 2].as_slice())
        );
        assert_eq!(line(text, 8), None);
        assert_eq!(line(&text.replace(" 01 ", " 07 "), 7), None);
    }
}
