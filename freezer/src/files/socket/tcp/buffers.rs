//! What a TCP socket has received and what it has still to send, read from the kernel's memory
//! (include/linux/tcp.h, net/ipv4/tcp_input.c): every byte has a number.

use crate::kernel::sockets::Buffer;
use crate::kernel::{Kernel, Unreadable};
use persist_mem::manifest::Urgent;

const WRONG: Unreadable = Unreadable::Inconsistent("the queue of a TCP socket");
/// More buffers than wait to be acknowledged.
const MOST: usize = 1 << 20;

/// What was received and not read.
#[derive(Debug, Default)]
pub(in crate::files::socket) struct Received {
    /// Number of the byte behind it.
    pub(in crate::files::socket) next: u32,
    /// The urgent byte in it.
    pub(in crate::files::socket) urgent: Option<Urgent>,
}

/// What was sent and not acknowledged.
#[derive(Debug, Default)]
pub(in crate::files::socket) struct Unsent {
    /// Number of the first byte.
    pub(in crate::files::socket) first: u32,
    pub(in crate::files::socket) bytes: Vec<u8>,
}

/// How far a `struct sock` has received.
pub(in crate::files::socket) fn received(
    kernel: &mut Kernel,
    sk: u64,
) -> Result<Received, Unreadable> {
    let names = ["copied_seq", "rcv_nxt", "urg_data", "urg_seq"];
    let found = kernel.fields(sk, "tcp_sock", &names)?;
    let [first, next, urgent, place] = found[..] else {
        return Err(WRONG);
    };
    let at = (place as u32).wrapping_sub(first as u32);
    let ahead = (next as u32).wrapping_sub(first as u32);
    Ok(Received {
        next: next as u32,
        urgent: marked(urgent as u32, at, ahead)?,
    })
}

/// The urgent byte that `urg_data` and its place among the unread bytes tell of (include/net/tcp.h, `TCP_URG_*`).
fn marked(urgent: u32, at: u32, unread: u32) -> Result<Option<Urgent>, Unreadable> {
    const VALID: u32 = 0x0100;
    const READ: u32 = 0x0400;
    if urgent == 0 || at >= 1 << 31 {
        return Ok(None);
    }
    // One that was announced and has not come.
    if at >= unread || urgent & (VALID | READ) == 0 {
        return Err(Unreadable::Inconsistent("urgent data that has not come"));
    }
    let read = urgent & READ != 0;
    Ok(Some(Urgent { at, read }))
}

/// All bytes that were received and not read, urgent ones too; those that came twice count once.
pub(in crate::files::socket) fn bytes(kernel: &mut Kernel, sk: u64) -> Result<Vec<u8>, Unreadable> {
    let read = kernel.fields(sk, "tcp_sock", &["copied_seq", "rcv_nxt"])?;
    let [first, next] = read[..] else {
        return Err(WRONG);
    };
    let buffers = kernel.queue(sk)?;
    let (bytes, end) = in_order(kernel, &buffers, first as u32)?;
    if end == next as u32 {
        Ok(bytes)
    } else {
        Err(WRONG)
    }
}

/// What is to be sent: what was sent and not acknowledged, then what was not sent.
pub(in crate::files::socket) fn unsent(kernel: &mut Kernel, sk: u64) -> Result<Unsent, Unreadable> {
    let found = kernel.fields(sk, "tcp_sock", &["snd_una", "write_seq"])?;
    let [first, end] = found[..] else {
        return Err(WRONG);
    };
    let mut buffers = sent(kernel, sk)?;
    buffers.extend(kernel.queue_of(sk, "sk_write_queue")?);
    let (bytes, seen) = in_order(kernel, &buffers, first as u32)?;
    if seen != end as u32 {
        return Err(WRONG);
    }
    let first = first as u32;
    Ok(Unsent { first, bytes })
}

/// Whether it only waits for more to be written (`TCP_CORK`, `MSG_MORE`, Nagle): that ends by itself.
pub(in crate::files::socket) fn waits_for_more(
    kernel: &mut Kernel,
    sk: u64,
) -> Result<bool, Unreadable> {
    let names = ["snd_una", "snd_nxt", "snd_wnd", "packets_out"];
    let found = kernel.fields(sk, "tcp_sock", &names)?;
    let [acknowledged, next, window, out] = found[..] else {
        return Err(WRONG);
    };
    let sent = (next as u32).wrapping_sub(acknowledged as u32);
    Ok(out == 0 && sent < window as u32)
}

/// Buffers that were sent and not acknowledged: a tree in the order of their numbers.
fn sent(kernel: &mut Kernel, sk: u64) -> Result<Vec<Buffer>, Unreadable> {
    let mut at = kernel.fields(sk, "sock", &["tcp_rtx_queue.rb_node"])?[0];
    let node = kernel.btf().field("sk_buff", "rbnode")?.offset;
    let mut above = Vec::new();
    let mut found = Vec::new();
    while at != 0 || !above.is_empty() {
        while at != 0 {
            above.push(at);
            at = kernel.fields(at, "rb_node", &["rb_left"])?[0];
        }
        if above.len() > 64 || found.len() > MOST {
            return Err(WRONG);
        }
        if let Some(place) = above.pop() {
            found.push(kernel.buffer(place.wrapping_sub(node))?);
            at = kernel.fields(place, "rb_node", &["rb_right"])?[0];
        }
    }
    Ok(found)
}

/// The bytes of buffers from a number on, and the number behind the last one.
fn in_order(
    kernel: &mut Kernel,
    buffers: &[Buffer],
    first: u32,
) -> Result<(Vec<u8>, u32), Unreadable> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    let mut at = first;
    let mut bytes = Vec::new();
    for buffer in buffers {
        let (seq, flags) = numbers(kernel, buffer)?;
        let contents = kernel.contents(buffer)?;
        let seq = seq.wrapping_add(u32::from(flags & SYN != 0));
        let known = at.wrapping_sub(seq) as usize;
        if let Some(new) = contents.get(known..) {
            bytes.extend_from_slice(new);
            at = at.wrapping_add(new.len() as u32);
        }
        at = at.wrapping_add(u32::from(flags & FIN != 0));
    }
    Ok((bytes, at))
}

/// Number of its first byte, and flags.
fn numbers(kernel: &Kernel, buffer: &Buffer) -> Result<(u32, u8), Unreadable> {
    let of = |field| kernel.of_family(buffer, "tcp_skb_cb", field);
    Ok((of("seq")? as u32, of("tcp_flags")? as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;
    use nix::libc as c;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use sys::socket::{self, Outgoing};

    fn look<T>(look: impl FnOnce(&mut Kernel) -> Result<T, Unreadable>) -> Option<T> {
        kernel::readable(kernel::look(look))
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_does_not_fit_is_found_at_the_sender() {
        let (client, mut server) = pair();
        client.set_nonblocking(true).unwrap();
        let mut sent = Vec::new();
        let mut number = 0u32;
        while let Ok(count) = (&client).write(&number.to_ne_bytes()) {
            sent.extend(&number.to_ne_bytes()[..count]);
            number += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        let found = look(|kernel| {
            let [from, to] = [client.as_fd(), server.as_fd()].map(|fd| kernel.own_sock(fd));
            let (from, to) = (from?, to?);
            let (received, unsent) = (received(kernel, to)?, unsent(kernel, from)?);
            Ok((bytes(kernel, to)?, received, unsent))
        });
        let Some((mut queue, received, unsent)) = found else {
            return;
        };
        let twice = received.next.wrapping_sub(unsent.first) as usize;
        queue.extend(&unsent.bytes[twice..]);
        assert_eq!(queue.len(), sent.len());
        assert_eq!(queue, sent);
        let mut first = [0; 4];
        server.read_exact(&mut first).unwrap();
    }

    #[test]
    fn an_urgent_byte_has_its_place() {
        let (client, mut server) = pair();
        let send = |data, flags| {
            let message = Outgoing {
                data,
                ..Outgoing::default()
            };
            socket::send(client.as_fd(), &message, flags).unwrap();
        };
        send(&b"before"[..], 0);
        send(b"!", c::MSG_OOB);
        send(b"after", 0);
        std::thread::sleep(std::time::Duration::from_millis(50));
        server.read_exact(&mut [0; 2]).unwrap();
        let urgent = || {
            look(|kernel| {
                let sk = kernel.own_sock(server.as_fd())?;
                Ok((received(kernel, sk)?.urgent, bytes(kernel, sk)?))
            })
        };
        let Some((found, bytes)) = urgent() else {
            return;
        };
        assert_eq!(bytes, b"fore!after");
        assert_eq!(found, Some(Urgent { at: 4, read: false }));
        socket::receive(server.as_fd(), c::MSG_OOB, 1).unwrap();
        let (found, _) = urgent().unwrap();
        assert_eq!(found, Some(Urgent { at: 4, read: true }));
    }

    #[test]
    fn marks() {
        let valid = |at, unread| marked(0x0121, at, unread);
        assert_eq!(marked(0, 3, 9), Ok(None));
        assert_eq!(valid(0_u32.wrapping_sub(1), 9), Ok(None));
        assert_eq!(valid(8, 9), Ok(Some(Urgent { at: 8, read: false })));
        assert!(valid(9, 9).is_err());
        assert!(marked(0x0200, 3, 9).is_err());
    }
}
