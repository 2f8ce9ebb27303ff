//! A datagram that is not complete (`UDP_CORK`, `MSG_MORE`; udp(7)), read from the kernel's memory.

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::sockets::Buffer;
use crate::kernel::{self, Kernel, Unreadable};
use nix::libc as c;
use persist_mem::manifest::PendingDatagram;
use std::os::fd::AsFd;
use sys::socket;

const WRONG: Unreadable = Unreadable::Inconsistent("a datagram that is not complete");
/// Bytes of UDP's own header.
const UDP_HEADER: u64 = 8;

/// What a socket without a connection has begun to send.
pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
) -> Result<Option<PendingDatagram>, FreezerError> {
    let udp = super::inet::is_udp(common);
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let buffers = kernel.queue_of(sk, "sk_write_queue")?;
        if udp && !buffers.is_empty() {
            of_udp(kernel, sk, &buffers).map(|one| (0, Some(one)))
        } else {
            Ok((buffers.len(), None))
        }
    });
    let text = "a datagram that is not complete (UDP_CORK, MSG_MORE) is not carried";
    match found {
        Ok((0, pending)) => Ok(pending),
        Ok(_) => Err(open.refuse(text)),
        Err(why) => {
            let corked = udp && super::int(open, c::SOL_UDP, c::UDP_CORK)? != 0;
            let unsent = socket::unsent(open.copy.as_fd());
            if corked && unsent.map_err(open.call("asking for unsent data"))? != 0 {
                return Err(open.refuse(format!("{text} ({why})")));
            }
            Ok(None)
        }
    }
}

fn of_udp(kernel: &mut Kernel, sk: u64, buffers: &[Buffer]) -> Result<PendingDatagram, Unreadable> {
    let found = kernel.fields(sk, "udp_sock", &["pending", "len"])?;
    let [family, len] = found[..] else {
        return Err(WRONG);
    };
    let mut data = Vec::new();
    for (number, buffer) in buffers.iter().enumerate() {
        // Behind room for the headers of IP, and in the first one for UDP's.
        let of = |field| kernel.of_buffer(buffer, field);
        let start = of("head")?.wrapping_add(of("transport_header")?);
        let mut headers = start.wrapping_sub(of("data")?);
        if number == 0 {
            headers += UDP_HEADER;
        }
        let contents = kernel.contents(buffer)?;
        let headers = usize::try_from(headers).map_err(|_| WRONG)?;
        data.extend_from_slice(contents.get(headers..).ok_or(WRONG)?);
    }
    if data.len() as u64 + UDP_HEADER != len {
        return Err(WRONG);
    }
    let to = match family as i32 {
        c::AF_INET => to_ipv4(kernel, sk)?,
        c::AF_INET6 => to_ipv6(kernel, sk)?,
        _ => return Err(WRONG),
    };
    Ok(PendingDatagram { data, to })
}

fn to_ipv4(kernel: &mut Kernel, sk: u64) -> Result<Vec<u8>, Unreadable> {
    let names = ["cork.fl.u.ip4.uli.ports.dport", "cork.fl.u.ip4.daddr"];
    let found = kernel.fields(sk, "inet_sock", &names)?;
    let [port, host] = found[..] else {
        return Err(WRONG);
    };
    let (port, host) = ((port as u16).to_ne_bytes(), (host as u32).to_ne_bytes());
    Ok([&[2, 0], &port[..], &host, &[0; 8]].concat())
}

fn to_ipv6(kernel: &mut Kernel, sk: u64) -> Result<Vec<u8>, Unreadable> {
    const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];
    let names = [
        "cork.fl.u.ip6.uli.ports.dport",
        "cork.fl.u.ip6.__fl_common.flowic_oif",
    ];
    let found = kernel.fields(sk, "inet_sock", &names)?;
    let [port, interface] = found[..] else {
        return Err(WRONG);
    };
    let host = kernel.btf().field("inet_sock", "cork.fl.u.ip6.daddr")?;
    let at = (sk.wrapping_add(host.offset), 16);
    let host = kernel.read(&[at])?.pop().flatten().ok_or(WRONG)?;
    let scope = if host.starts_with(&LINK_LOCAL) {
        interface
    } else {
        0
    };
    let port = (port as u16).to_ne_bytes();
    let scope = (scope as u32).to_ne_bytes();
    Ok([&[10, 0], &port[..], &[0; 4], &host, &scope].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::socket::Outgoing;

    #[test]
    fn parts_of_a_datagram_and_where_it_goes() {
        let fd = socket::socket(c::AF_INET, c::SOCK_DGRAM, 0).unwrap();
        let to = [2, 0, 0, 9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for data in [&b"first"[..], &[7; 3000]] {
            let message = Outgoing {
                data,
                to: &to,
                ..Outgoing::default()
            };
            socket::send(fd.as_fd(), &message, c::MSG_MORE).unwrap();
        }
        let found = kernel::look(|kernel| {
            let sk = kernel.own_sock(fd.as_fd())?;
            let buffers = kernel.queue_of(sk, "sk_write_queue")?;
            of_udp(kernel, sk, &buffers)
        });
        let Some(found) = kernel::readable(found) else {
            return;
        };
        assert_eq!(found.to, to);
        assert_eq!(found.data, [&b"first"[..], &[7; 3000]].concat());
    }
}
