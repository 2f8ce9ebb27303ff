//! Datagrams of UDP that were refused and wait to be told one by one (`IP_RECVERR`, `MSG_ERRQUEUE`; ip(7)): to ask
//! takes them off, so they are read from the kernel's memory. Those that this host has refused are refused again
//! when they are sent again; whatever else waits there is not carried.

use crate::diag;
use crate::kernel::sockets::Buffer;
use crate::kernel::{Kernel, Unreadable};
use nix::libc as c;
use persist_mem::manifest::RefusedDatagram;

const WRONG: Unreadable = Unreadable::Inconsistent("a report of an error");
/// include/uapi/linux/errqueue.h: `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6`.
const ICMP: u64 = 2;
const ICMP6: u64 = 3;
/// Type and code of ICMP when nobody has the port.
const NO_PORT: (u64, u64) = (3, 3);
const NO_PORT_V6: (u64, u64) = (1, 4);
/// Bytes of UDP's own header.
const UDP_HEADER: u32 = 8;

/// The reports that wait on a socket; None when there are others among them.
pub(super) fn waiting(
    kernel: &mut Kernel,
    sk: u64,
) -> Result<Option<Vec<RefusedDatagram>>, Unreadable> {
    let mut found = Vec::new();
    for buffer in kernel.queue_of(sk, "sk_error_queue")? {
        match report(kernel, &buffer)? {
            Some(one) if sys::socket::is_local(&one.to) && nobody_is_at(&one.to) => found.push(one),
            _ => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// Nobody has taken the port since.
fn nobody_is_at(address: &[u8]) -> bool {
    let host = match i32::from(address.first().copied().unwrap_or(0)) {
        c::AF_INET => address.get(4..8),
        _ => address.get(8..24),
    };
    let (Some(port), Some(host)) = (address.get(2..4), host) else {
        return false;
    };
    diag::udp_names().is_ok_and(|all| {
        let at_port = |one: &&([u8; 2], Vec<u8>)| one.0 == port;
        !all.iter().filter(at_port).any(|(_, its)| hears(its, host))
    })
}

/// Whether a socket that is bound to one host gets what is sent to another: the same, also as IPv6 says it, or all.
fn hears(bound: &[u8], host: &[u8]) -> bool {
    const V4_IN_V6: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let any = bound.iter().all(|byte| *byte == 0) && bound.len() >= host.len();
    let mapped = bound.strip_prefix(&V4_IN_V6);
    any || bound == host || mapped.is_some_and(|v4| v4 == host || v4 == [0; 4])
}

/// A report (net/ipv4/ip_sockglue.c, ip_icmp_error; net/ipv6/datagram.c): the datagram behind its header, with the
/// headers of ICMP's packet and of the datagram before it.
fn report(kernel: &mut Kernel, buffer: &Buffer) -> Result<Option<RefusedDatagram>, Unreadable> {
    let of = |name| kernel.of_family(buffer, "sock_exterr_skb", name);
    let kind = (of("ee.ee_type")?, of("ee.ee_code")?);
    let (origin, error) = (of("ee.ee_origin")?, of("ee.ee_errno")?);
    let (offset, port) = (of("addr_offset")?, of("port")? as u16);
    let wanted = match origin {
        ICMP => NO_PORT,
        ICMP6 => NO_PORT_V6,
        _ => return Ok(None),
    };
    if kind != wanted || error != c::ECONNREFUSED as u64 {
        return Ok(None);
    }
    let head = kernel.of_buffer(buffer, "head")?;
    let outer = head.wrapping_add(kernel.of_buffer(buffer, "network_header")?);
    let place = outer.wrapping_add(offset);
    let data = kernel.contents(buffer)?;
    // Sender of the outer header; receiver of the inner one, and how long that says it was.
    let (family, sender, len, length) = match origin {
        ICMP => (c::AF_INET, 12, 4, 14),
        _ => (c::AF_INET6, 8, 16, 20),
    };
    let requests = [
        (outer.wrapping_add(sender), len),
        (place, len),
        (place.wrapping_sub(length), 2),
    ];
    let read: Option<Vec<Vec<u8>>> = kernel.read(&requests)?.into_iter().collect();
    let [offender, host, total] = read.as_deref().ok_or(WRONG)? else {
        return Err(WRONG);
    };
    // Who refuses it when it is sent again is the host that it is sent to.
    if offender != host {
        return Ok(None);
    }
    let total = u32::from(u16::from_be_bytes(
        total.as_slice().try_into().map_err(|_| WRONG)?,
    ));
    let header = if origin == ICMP { 20 } else { 0 };
    let Some(whole) = total.checked_sub(header + UDP_HEADER) else {
        return Ok(None);
    };
    // With options or extensions it would be something else.
    if (data.len() as u32) > whole {
        return Ok(None);
    }
    let family = (family as u16).to_ne_bytes();
    let to = match origin {
        ICMP => [&family[..], &port.to_ne_bytes(), host, &[0; 8]].concat(),
        _ => [&family[..], &port.to_ne_bytes(), &[0; 4], host, &[0; 4]].concat(),
    };
    Ok(Some(RefusedDatagram {
        to,
        data,
        len: whole,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_somebody_has() {
        let bytes = |address: std::net::SocketAddr| {
            let port = address.port().to_be_bytes();
            match address.ip() {
                std::net::IpAddr::V4(host) => {
                    [&[2, 0], &port[..], &host.octets(), &[0; 8]].concat()
                }
                std::net::IpAddr::V6(host) => {
                    [&[10, 0], &port[..], &[0; 4], &host.octets(), &[0; 4]].concat()
                }
            }
        };
        let is_taken = |at: &str, to: &str| {
            let socket = std::net::UdpSocket::bind(format!("{at}:0")).unwrap();
            let port = socket.local_addr().unwrap().port();
            let to = bytes(format!("{to}:{port}").parse().unwrap());
            let taken = !nobody_is_at(&to);
            drop(socket);
            assert!(nobody_is_at(&to), "{at} {to:?}");
            taken
        };
        assert!(is_taken("127.0.0.1", "127.0.0.1"));
        assert!(!is_taken("127.0.0.2", "127.0.0.1"));
        assert!(is_taken("0.0.0.0", "127.0.0.1"));
        assert!(is_taken("[::]", "127.0.0.1"));
        assert!(is_taken("[::ffff:127.0.0.1]", "127.0.0.1"));
        assert!(is_taken("[::1]", "[::1]"));
        assert!(!is_taken("0.0.0.0", "[::1]"));
    }
}
