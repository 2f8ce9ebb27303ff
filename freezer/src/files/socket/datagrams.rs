//! Datagrams of UDP that nobody has read (udp(7)): what `MSG_PEEK` shows of them, and from the kernel's memory the
//! headers that they came with, which tell what a receiver may ask for: destination, hops, type of service.
//!
//! An empty datagram that was peeked at once cannot be peeked at a second time (net/core/datagram.c,
//! `__skb_try_recv_from_queue`), so such ones are made from their headers.

use super::queue::{self, Message};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::sockets::Buffer;
use crate::kernel::{self, Kernel, Unreadable};
use nix::libc as c;
use std::os::fd::AsFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a datagram in a socket's queue");
/// A header of IPv4 with its options, or one of IPv6 with some extensions.
const LONGEST: u64 = 512;

/// What the kernel has of one.
struct Seen {
    len: u64,
    /// The header of IP.
    header: Vec<u8>,
    /// Port of its sender, network order.
    port: [u8; 2],
    /// Bytes of each of the datagrams in it, 0 for one.
    segment: u16,
}

/// The datagrams in its queue, the oldest first.
pub(super) fn queue(open: &Open<'_>) -> Result<Vec<Message>, FreezerError> {
    let mut messages = queue::datagrams(open, false, false)?;
    let seen = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        // Those that were peeked at have gone to a queue of UDP's own.
        let mut buffers = kernel.queue_in(sk, "udp_sock", "reader_queue")?;
        buffers.extend(kernel.queue(sk)?);
        let seen = buffers.iter().map(|buffer| see(kernel, buffer));
        seen.collect::<Result<Vec<_>, _>>()
    });
    match seen {
        Ok(seen) => complete(&mut messages, seen),
        Err(why) => log::debug!("fd {}: the headers of its datagrams: {why}", open.fd),
    }
    Ok(messages)
}

fn see(kernel: &mut Kernel, buffer: &Buffer) -> Result<Seen, Unreadable> {
    let of = |field| kernel.of_buffer(buffer, field);
    let (len, head) = (of("len")?, of("head")?);
    let (network, transport) = (of("network_header")?, of("transport_header")?);
    let header = transport.checked_sub(network).ok_or(WRONG)?;
    if header > LONGEST {
        return Err(WRONG);
    }
    let segment = kernel.segment(buffer)?;
    let places = [
        (head.wrapping_add(network), header as usize),
        (head.wrapping_add(transport), 2),
    ];
    let read: Option<Vec<Vec<u8>>> = kernel.read(&places)?.into_iter().collect();
    match read.as_deref() {
        Some([header, port]) => Ok(Seen {
            len,
            header: header.clone(),
            port: port.as_slice().try_into().map_err(|_| WRONG)?,
            segment,
        }),
        _ => Err(WRONG),
    }
}

/// Gives the messages their headers, and puts those in that could not be peeked at: the first empty ones.
fn complete(messages: &mut Vec<Message>, seen: Vec<Seen>) {
    let Some(mut hidden) = seen.len().checked_sub(messages.len()) else {
        return;
    };
    let empty = seen.iter().filter(|one| one.len == 0).count();
    if hidden > empty {
        return;
    }
    let mut peeked = core::mem::take(messages).into_iter();
    for one in seen {
        let message = if one.len == 0 && hidden > 0 {
            hidden -= 1;
            Some(Message {
                source: source(&one),
                ..Message::default()
            })
        } else {
            peeked.next()
        };
        messages.extend(message.map(|message| Message {
            header: one.header,
            segment: one.segment,
            ..message
        }));
    }
    messages.extend(peeked);
}

/// Bytes of the `struct sockaddr` of its sender.
fn source(one: &Seen) -> Vec<u8> {
    let v6 = one.header.first().is_some_and(|byte| byte >> 4 == 6);
    let (family, place) = if v6 {
        (c::AF_INET6, 8..24)
    } else {
        (c::AF_INET, 12..16)
    };
    let family = (family as u16).to_ne_bytes();
    let host = one.header.get(place).unwrap_or_default();
    if v6 {
        [&family[..], &one.port, &[0; 4], host, &[0; 4]].concat()
    } else {
        [&family[..], &one.port, host, &[0; 8]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(len: u64, mark: u8) -> Seen {
        let mut header = vec![0x45; 20];
        header[12..16].copy_from_slice(&[127, 0, 0, mark]);
        Seen {
            len,
            header,
            port: [0, mark],
            segment: 0,
        }
    }

    #[test]
    fn empty_ones_that_were_peeked_at_are_put_in() {
        let text = |data: &[u8]| Message {
            data: data.to_vec(),
            ..Message::default()
        };
        let mut messages = vec![text(b"one"), text(b"two"), text(b"")];
        let all = vec![seen(0, 1), seen(3, 2), seen(3, 3), seen(0, 4)];
        complete(&mut messages, all);
        let data: Vec<&[u8]> = messages.iter().map(|m| m.data.as_slice()).collect();
        assert_eq!(data, [&b""[..], b"one", b"two", b""]);
        assert_eq!(messages[0].source[..8], [2, 0, 0, 1, 127, 0, 0, 1]);
        assert_eq!(messages[3].header[15], 4);
    }
}
