//! Rings that a packet socket shares with its program (packet(7), Documentation/networking/packet_mmap.rst).
//!
//! How large they are and where the kernel is in them is read from its memory (`struct packet_sock`,
//! net/packet/internal.h), what is in them through a mapping of this process's own. Packets go on to come meanwhile.

use super::Common;
use crate::files::{Open, apart};
use crate::kernel::{self, Kernel, Unreadable};
use crate::{FreezerError, proc};
use nix::libc as c;
use persist_mem::manifest::{PacketRing, PacketRings};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use sys::uring::Memory;
use sys::{PAGE_SIZE_U64, Pid, process, socket};

/// Tries to read rings that the kernel fills meanwhile. A ring that packets come to faster is full soon.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
/// `TPACKET_V3`
const V3: u64 = 2;
/// `TP_STATUS_USER`, of frames and blocks; `TP_STATUS_BLK_TMO`
const USER: u32 = 1;
const TIMED_OUT: u32 = 0x20;
/// `TP_STATUS_SENDING`: nobody would tell that it was sent.
const SENDING: u32 = 2;
/// Where `struct tpacket_block_desc` has its fields, and its size.
mod block {
    pub(super) const STATUS: u32 = 8;
    pub(super) const PACKETS: u32 = 12;
    pub(super) const FIRST: u32 = 16;
    pub(super) const LEN: u32 = 20;
    pub(super) const LAST_TIME: u32 = 40;
    pub(super) const SIZE: u32 = 48;
}

/// What the kernel has of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    version: u64,
    rings: [Option<PacketRing>; 2],
    /// A packet is being put into one just now.
    busy: bool,
    /// In a ring of blocks: the one that is filled, and up to where.
    filled: (u64, u64),
}

/// The rings of a socket without their contents. None when it has none.
pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    told: bool,
) -> Result<Option<Box<PacketRings>>, FreezerError> {
    let kept = match kernel::look(|kernel| kept(kernel, open.copy.as_fd())) {
        Ok(kept) => kept,
        Err(why) if told => return Err(open.refuse(format!("its ring cannot be read: {why}"))),
        Err(_) => return Ok(None),
    };
    let [received, sent] = kept.rings;
    let rings = PacketRings {
        inode: common.inode,
        received,
        sent,
        contents: Vec::new(),
    };
    if rings.len() > u64::from(u32::MAX) {
        return Err(open.refuse("rings of more than 4 GiB are not carried"));
    }
    let moved = kept.rings.iter().flatten().any(|ring| ring.position > 0);
    // The kernel is brought there by packets over the loopback interface.
    if moved && std::net::UdpSocket::bind("127.0.0.1:0").is_err() {
        return Err(open.refuse("its ring has been used, and the loopback interface is down"));
    }
    Ok((!rings.is_empty()).then(|| Box::new(rings)))
}

/// Bytes of the mapping of the rings of a packet socket that a process has open.
///
/// # Errors
/// Why it is not carried.
pub(crate) fn size_of(pid: Pid, inode: u64) -> Result<u64, String> {
    const NOT_ONE: &str = "it maps something that is no file: a socket, say (TCP_ZEROCOPY_RECEIVE)";
    let link = format!("socket:[{inode}]");
    let found = apart::tables_of(pid).into_iter().find_map(|table| {
        let links = proc::Links::open(table).ok()?;
        let is = |fd: &&i32| links.read(**fd).is_ok_and(|found| found == link.as_bytes());
        let fd = *links.numbers().iter().find(is)?;
        let pidfd = proc::pidfd(table).ok()?;
        process::pidfd_getfd(pidfd.as_fd(), fd).ok()
    });
    let socket = found.ok_or("it maps a socket that it has closed, or its first thread has not")?;
    let domain = socket::int_option(socket.as_fd(), c::SOL_SOCKET, c::SO_DOMAIN);
    if domain != Ok(c::AF_PACKET) {
        return Err(NOT_ONE.into());
    }
    let kept = kernel::look(|kernel| kept(kernel, socket.as_fd()));
    let kept = kept.map_err(|why| format!("the ring of a packet socket cannot be read: {why}"))?;
    Ok(kept.rings.iter().flatten().map(PacketRing::len).sum())
}

/// They, with what is in them.
pub(super) fn capture(
    open: &Open<'_>,
    rings: &PacketRings,
) -> Result<Box<PacketRings>, FreezerError> {
    let len = usize::try_from(rings.len()).unwrap_or(usize::MAX);
    let memory = Memory::map(open.copy, 0, len)
        .map_err(open.call("mapping the rings of a packet socket"))?;
    let mut last = None;
    for _ in 0..TRIES {
        match kernel::look(|kernel| whole(kernel, open.copy.as_fd(), &memory)) {
            Ok(Some(found)) => {
                return Ok(Box::new(PacketRings {
                    inode: rings.inode,
                    ..found
                }));
            }
            Ok(None) => std::thread::sleep(BETWEEN_TRIES),
            Err(why) => last = Some(why),
        }
    }
    let why = last.map_or_else(|| "packets come too fast".into(), |why| why.to_string());
    Err(open.refuse(format!("its ring cannot be read: {why}")))
}

/// None when something has come meanwhile.
fn whole(
    kernel: &mut Kernel,
    socket: BorrowedFd<'_>,
    memory: &Memory,
) -> Result<Option<PacketRings>, Unreadable> {
    let before = kept(kernel, socket)?;
    let [mut received, sent] = before.rings;
    let mut contents = Vec::new();
    if let Some(ring) = &mut received {
        if before.version == V3 {
            blocks(ring, before.filled.0, memory, &mut contents);
        } else {
            frames(ring, before.version, memory, &mut contents);
        }
    }
    if let Some(ring) = &sent {
        let start = received.as_ref().map_or(0, PacketRing::len);
        all(ring, (start, before.version), memory, &mut contents);
    }
    let after = kept(kernel, socket)?;
    let quiet = before == after && !before.busy;
    let contents = contents.into_iter();
    Ok(quiet.then(|| PacketRings {
        inode: 0,
        received,
        sent,
        contents: contents.map(|(at, bytes)| (at, bytes.into())).collect(),
    }))
}

type Contents = Vec<(u32, Vec<u8>)>;

/// Frames that the program has not given back.
fn frames(ring: &PacketRing, version: u64, memory: &Memory, contents: &mut Contents) {
    for number in 0..ring.frames {
        let at = ring.frame(number) as u32;
        // The status of the first version has eight bytes, and no bits in the upper half.
        if memory.word(status_of(at, version)) != 0 {
            contents.push((at, trimmed(memory.part(at, ring.frame_size))));
        }
    }
}

fn status_of(frame: u32, version: u64) -> u32 {
    frame + if version == V3 { 20 } else { 0 }
}

/// Blocks that the program has not given back. The one that is being filled is handed over, as it is when its time is
/// over.
fn blocks(ring: &mut PacketRing, filled: u64, memory: &Memory, contents: &mut Contents) {
    for number in 0..ring.blocks {
        let at = number * ring.block_size;
        let users = memory.word(at + block::STATUS) & USER != 0;
        let packets = memory.word(at + block::PACKETS);
        let current = u64::from(number) == filled && !ring.full;
        if users && !current {
            contents.push((at, trimmed(memory.part(at, ring.block_size))));
        } else if current && packets > 0 {
            let bytes = closed(memory.part(at, ring.block_size));
            contents.push((at, trimmed(bytes)));
        } else if ring.private > 0 {
            let own = memory.part(at + block::SIZE, ring.private);
            contents.push((at + block::SIZE, trimmed(own)));
        }
    }
    let at = filled as u32 * ring.block_size;
    if !ring.full && memory.word(at + block::PACKETS) > 0 {
        ring.position += 1;
        let next = (filled as u32 + 1) % ring.blocks;
        let status = memory.word(next * ring.block_size + block::STATUS);
        ring.full = status & USER != 0 || ring.blocks == 1;
    }
}

/// A block as `prb_close_block` leaves it (net/packet/af_packet.c).
fn closed(mut bytes: Vec<u8>) -> Vec<u8> {
    let word = |bytes: &[u8], at: usize| {
        let found = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        found.map_or(0, u32::from_ne_bytes)
    };
    let set = |bytes: &mut [u8], at: usize, value: u32| {
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    };
    let mut last = word(&bytes, block::FIRST as usize) as usize;
    for _ in 1..word(&bytes, block::PACKETS as usize) {
        last += word(&bytes, last) as usize;
    }
    set(&mut bytes, last, 0);
    // The time of `struct tpacket3_hdr`.
    for (from, to) in [(4, 0), (8, 4)] {
        let time = word(&bytes, last + from);
        set(&mut bytes, block::LAST_TIME as usize + to, time);
    }
    let status = word(&bytes, block::STATUS as usize) | USER | TIMED_OUT;
    set(&mut bytes, block::STATUS as usize, status);
    let len = word(&bytes, block::LEN as usize) as usize;
    bytes.truncate(len);
    bytes
}

/// All pages: who sends may have filled frames beforehand.
fn all(ring: &PacketRing, (start, version): (u64, u64), memory: &Memory, contents: &mut Contents) {
    let first = contents.len();
    for page in (start..start + ring.len()).step_by(PAGE_SIZE_U64 as usize) {
        contents.push((
            page as u32,
            trimmed(memory.part(page as u32, PAGE_SIZE_U64 as u32)),
        ));
    }
    let pages = contents.get_mut(first..).unwrap_or_default();
    for number in 0..ring.frames {
        let at = status_of(ring.frame(number) as u32, version);
        let (page, place) = (at as usize / 4096, at as usize % 4096);
        let status = pages
            .get_mut(page)
            .and_then(|(_, bytes)| bytes.get_mut(place..place + 4));
        if let Some(status) = status.filter(|now| **now == SENDING.to_ne_bytes()) {
            status.fill(0);
        }
    }
    contents.retain(|(_, bytes)| !bytes.is_empty());
}

/// Without zeros at the end; a multiple of four bytes.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    let used = bytes.iter().rposition(|byte| *byte != 0);
    bytes.truncate(used.map_or(0, |last| (last + 1).next_multiple_of(4)));
    bytes
}

fn kept(kernel: &mut Kernel, socket: BorrowedFd<'_>) -> Result<Kept, Unreadable> {
    let sk = kernel.own_sock(socket)?;
    let version = kernel.fields(sk, "packet_sock", &["tp_version"])?[0];
    let mut found = Kept {
        version,
        rings: [None, None],
        busy: false,
        filled: (0, 0),
    };
    for (index, name) in ["rx_ring", "tx_ring"].into_iter().enumerate() {
        let at = kernel.btf().field("packet_sock", name)?.offset;
        let at = sk.wrapping_add(at);
        const FIELDS: [&str; 6] = [
            "pg_vec",
            "pg_vec_len",
            "pg_vec_pages",
            "frame_size",
            "frame_max",
            "head",
        ];
        let fields = kernel.fields(at, "packet_ring_buffer", &FIELDS)?;
        let [vector, blocks, pages, frame_size, last, head] = fields[..] else {
            continue;
        };
        if vector == 0 {
            continue;
        }
        let mut ring = PacketRing {
            block_size: (pages * PAGE_SIZE_U64) as u32,
            blocks: blocks as u32,
            frame_size: frame_size as u32,
            frames: (last as u32).wrapping_add(1),
            position: head,
            ..PacketRing::default()
        };
        if index == 0 && version == V3 {
            ring_of_blocks(kernel, at, &mut ring, &mut found)?;
        } else if index == 0 {
            found.busy = owned(kernel, at, ring.frames)?;
        }
        found.rings[index] = Some(ring);
    }
    Ok(found)
}

/// Whether a packet is being put into a frame (`rx_owner_map`).
fn owned(kernel: &mut Kernel, at: u64, frames: u32) -> Result<bool, Unreadable> {
    let Ok(map) = kernel.fields(at, "packet_ring_buffer", &["rx_owner_map"]) else {
        return Ok(false);
    };
    let map = map.first().copied().unwrap_or(0);
    if map == 0 {
        return Ok(false);
    }
    let words: Vec<u64> = (0..u64::from(frames.div_ceil(64)))
        .map(|word| map.wrapping_add(word * 8))
        .collect();
    let found = kernel.words(&words)?;
    Ok(found.iter().any(|word| *word != Some(0)))
}

fn ring_of_blocks(
    kernel: &mut Kernel,
    at: u64,
    ring: &mut PacketRing,
    found: &mut Kept,
) -> Result<(), Unreadable> {
    let core = kernel.btf().field("packet_ring_buffer", "prb_bdqc")?.offset;
    let core = at.wrapping_add(core);
    const CORE: &str = "tpacket_kbdq_core";
    const FIELDS: [&str; 6] = [
        "feature_req_word",
        "blk_sizeof_priv",
        "reset_pending_on_curr_blk",
        "kactive_blk_num",
        "knxt_seq_num",
        "nxt_offset",
    ];
    let fields = kernel.fields(core, CORE, &FIELDS)?;
    let [features, private, full, active, next, filled] = fields[..] else {
        return Ok(());
    };
    // Milliseconds, or nanoseconds since Linux 6.18.
    ring.retire = match kernel.fields(core, CORE, &["retire_blk_tov"]) {
        Ok(time) => time[0],
        Err(_) => kernel.fields(core, CORE, &["interval_ktime"])?[0] / 1_000_000,
    } as u32;
    let lock = kernel.btf().field(CORE, "blk_fill_in_prog_lock")?.offset;
    found.busy = kernel.word(core.wrapping_add(lock), "a ring of packets")? != 0;
    ring.features = features as u32;
    ring.private = private as u32;
    ring.full = full != 0;
    // Every block that was opened has a number, the first one 1, and all but the last were handed over.
    let opened = next.wrapping_sub(1);
    ring.position = opened.wrapping_sub(u64::from(!ring.full));
    found.filled = (active, filled);
    if ring.position % u64::from(ring.blocks.max(1)) != active {
        return Err(Unreadable::Inconsistent("a ring of packets"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_closed_as_the_kernel_does() {
        let mut bytes = vec![0; 4096];
        let mut set = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        set(block::PACKETS as usize, 2);
        set(block::FIRST as usize, 48);
        set(block::LEN as usize, 248);
        // The first one, and the second one with its time and the length of what it takes.
        set(48, 104);
        set(152, 96);
        set(156, 7);
        set(160, 8);
        let closed = closed(bytes);
        let word = |at: usize| u32::from_ne_bytes(closed[at..at + 4].try_into().unwrap());
        assert_eq!(closed.len(), 248);
        assert_eq!((word(8), word(48), word(152)), (USER | TIMED_OUT, 104, 0));
        assert_eq!((word(40), word(44)), (7, 8));
    }

    #[test]
    fn zeros_at_the_end_are_left_out() {
        assert_eq!(
            trimmed(vec![1, 0, 0, 0, 2, 0, 0, 0, 0]),
            [1, 0, 0, 0, 2, 0, 0, 0]
        );
        assert!(trimmed(vec![0; 8]).is_empty());
    }
}
