//! What raw and ICMP sockets have received and nobody has read (raw(7), icmp(7)): no interface shows more than
//! the first message, so all are read from the kernel's memory.
//!
//! They are received again from the loopback interface. So what the new kernel would answer, act on, or send to
//! others is refused.

use super::Common;
use super::queue::Message;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::sockets::Buffer;
use crate::kernel::{self, Kernel, Unreadable};
use nix::libc as c;
use std::os::fd::AsFd;
use sys::socket;

const WRONG: Unreadable = Unreadable::Inconsistent("a packet in a socket's queue");

/// Protocols whose packets the kernel itself deals with (include/uapi/linux/in.h): of IGMP, tunnels, TCP, UDP,
/// DCCP, GRE, IPsec, PIM, compression, L2TP, SCTP, UDP-Lite.
const OF_THE_KERNEL: &[i32] = &[
    2, 4, 6, 17, 33, 41, 47, 50, 51, 103, 108, 115, 132, 136, 137,
];

/// The messages in its queue, with their headers.
pub(super) fn queue(open: &Open<'_>, common: &Common) -> Result<Vec<Message>, FreezerError> {
    if !common.has(c::POLLIN) {
        return Ok(Vec::new());
    }
    let refuse = |why: &str| {
        let text = "messages that were not read yet are not carried for its protocol";
        Err(open.refuse(format!("{text}: {why}")))
    };
    if super::int(open, c::SOL_SOCKET, SO_BINDTOIFINDEX)? != 0 && common.kind == c::SOCK_RAW {
        return refuse("it is bound to a device");
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let buffers = kernel.queue(sk)?;
        let one = |buffer: &Buffer| packet(kernel, buffer, common);
        buffers.iter().map(one).collect::<Result<Vec<_>, _>>()
    });
    let messages = match found {
        Ok(messages) => messages,
        Err(why) => return refuse(&why.to_string()),
    };
    for message in &messages {
        if let Err(why) = can_be_received_again(common, message) {
            return refuse(why);
        }
    }
    Ok(messages)
}

const SO_BINDTOIFINDEX: i32 = 62;

/// A packet: its header, and what is behind it.
fn packet(kernel: &mut Kernel, buffer: &Buffer, common: &Common) -> Result<Message, Unreadable> {
    let mut data = kernel.contents(buffer)?;
    let of = |field| kernel.of_buffer(buffer, field);
    let start = of("head")?.wrapping_add(of("network_header")?);
    let with_header = common.domain == c::AF_INET && common.kind == c::SOCK_RAW;
    let header = if with_header {
        let len = data.first().map_or(0, |byte| usize::from(byte & 0xf) * 4);
        if len > data.len() {
            return Err(WRONG);
        }
        data.drain(..len).collect()
    } else {
        let len = of("data")?.wrapping_sub(start);
        let len = usize::try_from(len).ok().filter(|len| *len <= LONGEST);
        let at = (start, len.ok_or(WRONG)?);
        kernel.read(&[at])?.pop().flatten().ok_or(WRONG)?
    };
    Ok(Message {
        data,
        header,
        ..Message::default()
    })
}

/// A header of IPv4 with its options, or one of IPv6 with some extensions.
const LONGEST: usize = 512;

fn can_be_received_again(common: &Common, message: &Message) -> Result<(), &'static str> {
    let v6 = common.domain == c::AF_INET6;
    let (source, to) = if v6 {
        (8..24, 24..40)
    } else {
        (12..16, 16..20)
    };
    let address = |place: core::ops::Range<usize>| {
        let host = message.header.get(place).unwrap_or_default();
        let before: &[u8] = if v6 {
            &[10, 0, 0, 0, 0, 0, 0, 0]
        } else {
            &[2, 0, 0, 0]
        };
        let behind: &[u8] = if v6 { &[0; 4] } else { &[0; 8] };
        [before, host, behind].concat()
    };
    if !socket::is_local(&address(to)) {
        return Err("one was sent to others, too");
    }
    let echo = [(c::IPPROTO_ICMP, 8, 0), (c::IPPROTO_ICMPV6, 128, 129)];
    if let Some((_, request, reply)) = echo.into_iter().find(|one| one.0 == common.protocol) {
        let kind = message.data.first().copied();
        return if kind == Some(reply) || kind == Some(request) && socket::is_local(&address(source))
        {
            Ok(())
        } else {
            Err("the kernel acts on one")
        };
    }
    if OF_THE_KERNEL.contains(&common.protocol) || v6 && [0, 43, 44, 60].contains(&common.protocol)
    {
        return Err("the kernel acts on them");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(domain: i32, protocol: i32) -> Common {
        Common {
            domain,
            kind: c::SOCK_RAW,
            protocol,
            inode: 0,
            events: 0,
        }
    }

    fn from_to(source: [u8; 4], to: [u8; 4], data: &[u8]) -> Message {
        let mut header = vec![0x45; 20];
        header[12..16].copy_from_slice(&source);
        header[16..].copy_from_slice(&to);
        Message {
            data: data.to_vec(),
            header,
            ..Message::default()
        }
    }

    #[test]
    fn what_the_kernel_acts_on_is_left_alone() {
        let here = [127, 0, 0, 1];
        let there = [192, 0, 2, 1];
        let ok = |protocol, source, to, data: &[u8]| {
            can_be_received_again(&common(c::AF_INET, protocol), &from_to(source, to, data)).is_ok()
        };
        assert!(ok(253, there, here, b"anything"));
        assert!(!ok(253, here, there, b"anything"));
        assert!(!ok(6, here, here, b"a segment"));
        assert!(ok(1, there, here, &[0, 0]));
        assert!(ok(1, here, here, &[8, 0]));
        assert!(!ok(1, there, here, &[8, 0]));
        assert!(!ok(1, here, here, &[5, 0]));
    }
}
