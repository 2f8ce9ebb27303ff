//! The pieces that the bytes of a unix stream were sent in, read from the kernel's memory (net/unix/af_unix.c):
//! nobody else tells where one ends, how much of it has been read, and which one is urgent.

use crate::kernel::sockets::Buffer;
use crate::kernel::{self, Kernel, Unreadable};
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a piece of a unix stream");

/// A piece: one buffer of the queue.
#[derive(Debug)]
pub(super) struct Piece {
    /// What has not been read of it.
    pub(super) data: Vec<u8>,
    /// Bytes that have.
    pub(super) consumed: u32,
    /// It is the urgent byte, or the mark where one was that has been read.
    pub(super) urgent: bool,
    /// The open files that are in flight in it, by where the kernel has them.
    pub(super) files: Vec<u64>,
    /// pid, uid, gid of the sender, where the kernel noted them.
    pub(super) credentials: Option<(i32, u32, u32)>,
}

impl Piece {
    /// Bytes that have not been read.
    pub(super) fn unread(&self) -> usize {
        self.data.len()
    }
}

/// The pieces in a stream's queue, in order.
pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Vec<Piece>, Unreadable> {
    kernel::look(|kernel| {
        let sk = kernel.own_sock(fd)?;
        in_queue(kernel, sk)
    })
}

/// The pieces in the queue of a `struct sock`.
pub(super) fn in_queue(kernel: &mut Kernel, sk: u64) -> Result<Vec<Piece>, Unreadable> {
    let urgent = urgent(kernel, sk)?;
    let buffers = kernel.queue(sk)?;
    let piece = |buffer: &Buffer| piece(kernel, buffer, urgent);
    buffers.iter().map(piece).collect()
}

/// The open files that are in flight in a socket's queue.
pub(super) fn in_flight(fd: BorrowedFd<'_>) -> Result<Vec<u64>, Unreadable> {
    kernel::look(|kernel| {
        let sk = kernel.own_sock(fd)?;
        let mut found = Vec::new();
        for buffer in kernel.queue(sk)? {
            found.extend(kernel.in_flight(&buffer)?);
        }
        Ok(found)
    })
}

/// What is in flight in a stream with urgent data, or a mark where it was: nobody can peek past that.
pub(super) fn beside_urgent(fd: BorrowedFd<'_>) -> Result<Vec<u64>, Unreadable> {
    let pieces = of(fd)?;
    let urgent = pieces.iter().any(|piece| piece.urgent);
    let files = pieces.into_iter().filter(|_| urgent);
    Ok(files.flat_map(|piece| piece.files).collect())
}

/// The buffer of the urgent byte, 0 when there is none. Kernels without urgent data of unix sockets lack the
/// field.
fn urgent(kernel: &mut Kernel, sk: u64) -> Result<u64, Unreadable> {
    match kernel.fields(sk, "unix_sock", &["oob_skb"]) {
        Ok(found) => found.first().copied().ok_or(WRONG),
        Err(Unreadable::NoField(_)) => Ok(0),
        Err(why) => Err(why),
    }
}

/// A message of a socket that keeps their boundaries.
#[derive(Debug)]
pub(super) struct Packet {
    /// Its bytes.
    pub(super) len: u64,
    /// The open files that are in flight in it.
    pub(super) files: Vec<u64>,
    /// It was looked at before, so that nobody can peek at it when it is empty.
    pub(super) peeked: bool,
    /// Who sent it, as far as the kernel noted that.
    pub(super) credentials: Option<(i32, u32, u32)>,
    /// The name of its sender: bytes of a `struct sockaddr_un`, empty when it has none.
    pub(super) source: Vec<u8>,
}

/// The messages in the queue of a socket that keeps their boundaries, in order.
pub(super) fn packets(fd: BorrowedFd<'_>) -> Result<Vec<Packet>, Unreadable> {
    kernel::look(|kernel| {
        let sk = kernel.own_sock(fd)?;
        let buffers = kernel.queue(sk)?;
        buffers.iter().map(|one| packet(kernel, one)).collect()
    })
}

/// The same with all that is in them, where none brings descriptors: of a socket with an error, which a look at its queue
/// would take off.
pub(super) fn whole_packets(fd: BorrowedFd<'_>) -> Result<Vec<Piece>, Unreadable> {
    let whole = |kernel: &mut Kernel, buffer: &Buffer| {
        let files = kernel.in_flight(buffer)?;
        if !files.is_empty() {
            return Err(Unreadable::Inconsistent("a packet with descriptors"));
        }
        Ok(Piece {
            data: kernel.contents(buffer)?,
            consumed: 0,
            urgent: false,
            files,
            credentials: sender(kernel, buffer)?,
        })
    };
    kernel::look(|kernel| {
        let sk = kernel.own_sock(fd)?;
        let buffers = kernel.queue(sk)?;
        buffers.iter().map(|one| whole(kernel, one)).collect()
    })
}

fn packet(kernel: &mut Kernel, buffer: &Buffer) -> Result<Packet, Unreadable> {
    let len = kernel.of_buffer(buffer, "len")?;
    let source = if len == 0 {
        let sk = kernel.of_buffer(buffer, "sk")?;
        name(kernel, sk)?
    } else {
        Vec::new()
    };
    Ok(Packet {
        len,
        files: kernel.in_flight(buffer)?,
        peeked: kernel.flag_of_buffer(buffer, "peeked").unwrap_or(true),
        credentials: sender(kernel, buffer)?,
        source,
    })
}

/// The name of a socket (include/net/af_unix.h, `struct unix_address`).
fn name(kernel: &mut Kernel, sk: u64) -> Result<Vec<u8>, Unreadable> {
    const LONGEST: u64 = 110;
    let address = match kernel.fields(sk, "unix_sock", &["addr"])?.first() {
        Some(address) if sk != 0 && *address != 0 => *address,
        _ => return Ok(Vec::new()),
    };
    let len = kernel.fields(address, "unix_address", &["len"])?;
    let len = len.first().copied().filter(|len| *len <= LONGEST);
    let at = kernel.btf().field("unix_address", "name")?.offset;
    let place = (address.wrapping_add(at), len.ok_or(WRONG)? as usize);
    kernel.read(&[place])?.pop().flatten().ok_or(WRONG)
}

/// pid, uid, gid of the sender, where the kernel noted them: it does when either end asks for them.
fn sender(kernel: &mut Kernel, buffer: &Buffer) -> Result<Option<(i32, u32, u32)>, Unreadable> {
    let of = |field| kernel.of_family(buffer, "unix_skb_parms", field);
    let (pid, uid, gid) = (of("pid")?, of("uid")?, of("gid")?);
    Ok(match pid {
        0 => None,
        pid => Some((kernel.number_of(pid)?, uid as u32, gid as u32)),
    })
}

fn piece(kernel: &mut Kernel, buffer: &Buffer, urgent: u64) -> Result<Piece, Unreadable> {
    let of = |field| kernel.of_family(buffer, "unix_skb_parms", field);
    let consumed = of("consumed")? as u32;
    let mut data = kernel.contents(buffer)?;
    if consumed as usize > data.len() {
        return Err(WRONG);
    }
    data.drain(..consumed as usize);
    Ok(Piece {
        urgent: buffer.address == urgent || (consumed != 0 && data.is_empty()),
        data,
        consumed,
        files: kernel.in_flight(buffer)?,
        credentials: sender(kernel, buffer)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc as c;
    use std::os::fd::AsFd;
    use sys::socket::{self, Outgoing};

    #[test]
    fn pieces_are_told_apart_and_what_was_read_of_them() {
        let (a, b) = socket::pair(c::AF_UNIX, c::SOCK_STREAM, 0).unwrap();
        let send = |data, flags| {
            let message = Outgoing {
                data,
                ..Outgoing::default()
            };
            socket::send(a.as_fd(), &message, flags).unwrap();
        };
        send(&b"one"[..], 0);
        send(b"two", 0);
        send(b"!", c::MSG_OOB);
        send(b"three", 0);
        socket::receive(b.as_fd(), 0, 4).unwrap();
        let look = || kernel::readable(of(b.as_fd()));
        let Some(found) = look() else { return };
        let seen = |pieces: &[Piece]| {
            let one = |piece: &Piece| (piece.data.clone(), piece.consumed, piece.urgent);
            pieces.iter().map(one).collect::<Vec<_>>()
        };
        let rest = (b"wo".to_vec(), 1, false);
        let last = (b"three".to_vec(), 0, false);
        assert_eq!(
            seen(&found),
            [rest.clone(), (b"!".to_vec(), 0, true), last.clone()]
        );
        socket::receive(b.as_fd(), c::MSG_OOB, 1).unwrap();
        let found = look().unwrap();
        assert_eq!(seen(&found), [rest, (vec![], 1, true), last]);
    }
}
