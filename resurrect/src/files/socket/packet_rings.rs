//! Rings of packet sockets: new ones, in which the kernel is brought to where it was in the old ones.
//!
//! It goes on by a frame, or block, for what it receives and sends. So packets of a protocol that nobody has go over
//! the loopback interface, before the socket is bound to what it was bound to.

use super::{Making, interface};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{PacketRing, PacketRings};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::socket::{self, Outgoing};
use sys::uring::Memory;
use sys::{Errno, Result};

const SOL_PACKET: i32 = 263;
const PACKET_RX_RING: i32 = 5;
const PACKET_VERSION: i32 = 10;
const PACKET_TX_RING: i32 = 13;
const PACKET_TX_HAS_OFF: i32 = 19;
const PACKET_VNET_HDR_SZ: i32 = 24;
const PACKET_VNET_HDR: i32 = 15;
/// `TPACKET_V1`, `TPACKET_V3`
const V1: i32 = 0;
const V3: i32 = 2;
/// `ETH_P_802_EX1`: free for experiments.
const NOBODYS: u16 = 0x88b5;
const HEADER: usize = 14;
/// `TP_STATUS_USER`, `TP_STATUS_SEND_REQUEST`
const USER: u32 = 1;
const TO_SEND: u32 = 1;
/// How long a packet may take over the loopback interface.
const WITHIN: Duration = Duration::from_secs(2);
/// Blocks that are handed over this soon (ms) are waited for.
const SOON: u32 = 250;
/// More blocks than these are not handed over once more, nor more bytes in them: only as many as it takes to come to
/// the same one.
const MOST_BLOCKS: u64 = 4096;
const MOST_BYTES: u64 = 1 << 30;
/// Where `struct tpacket_block_desc` has its fields.
mod block {
    pub(super) const STATUS: u32 = 8;
    pub(super) const PACKETS: u32 = 12;
    pub(super) const FIRST: u32 = 16;
    pub(super) const LEN: u32 = 20;
}

/// Gives a new socket, which is not bound yet, its rings with what is in them.
pub(super) fn make(
    making: &Making<'_>,
    fd: &OwnedFd,
    rings: &PacketRings,
) -> core::result::Result<(), ResurrectError> {
    let lo = interface(making, "lo")?;
    let made = Rings::new(fd, rings, lo).and_then(|mut made| {
        made.receive()?;
        made.send()?;
        made.fill()
    });
    made.map_err(making.failed("making its rings"))
}

struct Rings<'a> {
    fd: BorrowedFd<'a>,
    rings: &'a PacketRings,
    memory: Memory,
    version: i32,
    /// Index of the loopback interface.
    lo: u32,
    sender: OwnedFd,
    /// The longest packet that goes over it.
    longest: usize,
}

impl<'a> Rings<'a> {
    fn new(fd: &'a OwnedFd, rings: &'a PacketRings, lo: u32) -> Result<Rings<'a>> {
        let fd = fd.as_fd();
        let version = socket::int_option(fd, SOL_PACKET, PACKET_VERSION)?;
        for (ring, name) in [
            (&rings.received, PACKET_RX_RING),
            (&rings.sent, PACKET_TX_RING),
        ] {
            if let Some(ring) = ring {
                socket::set_option(fd, SOL_PACKET, name, &request(ring, version))?;
            }
        }
        let len = usize::try_from(rings.len()).map_err(|_| Errno::EOVERFLOW)?;
        let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").ok();
        let mtu = mtu.and_then(|text| text.trim().parse().ok());
        Ok(Rings {
            fd,
            rings,
            memory: Memory::map(fd, 0, len)?,
            version,
            lo,
            sender: socket::socket(c::AF_PACKET, c::SOCK_RAW, 0)?,
            longest: mtu.unwrap_or(1500) + HEADER,
        })
    }

    /// Brings the ring of received packets to where it was.
    fn receive(&mut self) -> Result<()> {
        let Some(ring) = &self.rings.received else {
            return Ok(());
        };
        if ring.position == 0 && !ring.full {
            return Ok(());
        }
        socket::bind(self.fd, &self.address())?;
        if self.version == V3 {
            return self.hand_over_blocks(ring);
        }
        for number in 0..ring.position {
            let at = ring.frame(number as u32) as u32;
            self.send_one(HEADER + 2)?;
            self.until(|memory| memory.word(at) & USER != 0)?;
            self.memory.set_word(at, 0);
        }
        Ok(())
    }

    fn hand_over_blocks(&mut self, ring: &PacketRing) -> Result<()> {
        let blocks = u64::from(ring.blocks.max(1));
        let mut count = ring.position;
        if count > MOST_BLOCKS || count * u64::from(ring.block_size) > MOST_BYTES {
            count %= blocks;
            if ring.full && count == 0 {
                count = blocks;
            }
        }
        let mut done = 0;
        // One more round when its time was over too soon.
        while done < count {
            let last = done + 1 == count;
            let next = ((done + 1) % blocks) as u32 * ring.block_size;
            if last && ring.full {
                self.memory.set_word(next + block::STATUS, USER);
            }
            let at = (done % blocks) as u32 * ring.block_size;
            self.hand_over(ring, at, last && !ring.full)?;
            done += 1;
            // Of a ring of one block it is the next one.
            if !(last && ring.full && blocks == 1) {
                self.memory.set_word(at + block::STATUS, 0);
            }
            if last && !ring.full && !self.forget(next) {
                count += blocks;
            }
        }
        Ok(())
    }

    /// Fills a block until the kernel hands it over. What did not fit is in the next one.
    fn hand_over(&mut self, ring: &PacketRing, at: u32, last: bool) -> Result<()> {
        let least = HEADER + 2;
        let (mut cost, begun) = (0, Instant::now());
        loop {
            if self.memory.word(at + block::STATUS) & USER != 0 {
                return Ok(());
            }
            if last && ring.retire <= SOON && self.memory.word(at + block::PACKETS) > 0 {
                return self.until(|memory| memory.word(at + block::STATUS) & USER != 0);
            }
            let used = self.memory.word(at + block::LEN);
            let rest = ring.block_size.saturating_sub(used) as usize;
            // What a packet takes beside its bytes.
            let beside = (cost as usize).saturating_sub(least);
            let len = match cost {
                0 => least,
                cost if rest < cost as usize => least,
                _ => (rest.saturating_sub(beside + 16)).clamp(least, self.longest),
            };
            self.send_one(len)?;
            self.until(|memory| {
                memory.word(at + block::STATUS) & USER != 0 || memory.word(at + block::LEN) != used
            })?;
            if cost == 0 {
                cost = self.memory.word(at + block::LEN).saturating_sub(used);
            }
            if begun.elapsed() > WITHIN * 5 {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Leaves a packet that is in a block, if one is, in front of the first one. Whether the block has not been handed
    /// over meanwhile.
    fn forget(&self, at: u32) -> bool {
        if self.memory.word(at + block::PACKETS) > 0 {
            let used = self.memory.word(at + block::LEN);
            self.memory.set_word(at + block::PACKETS, 0);
            self.memory.set_word(at + block::FIRST, used);
        }
        self.memory.word(at + block::STATUS) & USER == 0
    }

    /// Brings the ring of packets to be sent to where it was.
    fn send(&mut self) -> Result<()> {
        let Some(ring) = self.rings.sent.as_ref().filter(|ring| ring.position > 0) else {
            return Ok(());
        };
        let frames = 0..u32::try_from(ring.position).map_err(|_| Errno::EOVERFLOW)?;
        let start = self.rings.start_of_sent() as u32;
        let places = frames.map(|number| start + ring.frame(number) as u32);
        let places: Vec<u32> = places.collect();
        for at in &places {
            self.prepare(*at)?;
        }
        let message = Outgoing {
            to: &self.address(),
            ..Outgoing::default()
        };
        let status = self.status();
        let begun = Instant::now();
        while places.iter().any(|at| self.memory.word(at + status) != 0) {
            let waits = |at: &&u32| self.memory.word(*at + status) == TO_SEND;
            if places.iter().any(|at| waits(&at)) {
                socket::send(self.fd, &message, 0)?;
            }
            if begun.elapsed() > WITHIN * 5 {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::yield_now();
        }
        for at in places {
            self.memory.write(at, &vec![0; ring.frame_size as usize]);
        }
        Ok(())
    }

    /// Where a frame has its status.
    fn status(&self) -> u32 {
        if self.version == V3 { 20 } else { 0 }
    }

    /// Makes a frame one to be sent: a packet of a few bytes.
    fn prepare(&self, at: u32) -> Result<()> {
        let raw = socket::int_option(self.fd, c::SOL_SOCKET, c::SO_TYPE)? == c::SOCK_RAW;
        let option = |name| socket::int_option(self.fd, SOL_PACKET, name).unwrap_or(0);
        let before = match option(PACKET_VNET_HDR_SZ) {
            0 if option(PACKET_VNET_HDR) != 0 => 10,
            size => size,
        };
        let len = before as u32 + if raw { HEADER as u32 + 2 } else { 2 };
        // Length, offsets of the packet, and where it is without any (struct tpacket_hdr, tpacket2_hdr, tpacket3_hdr).
        let (lengths, offsets, data) = match self.version {
            V1 => (8, 16, 32),
            V3 => (16, 24, 48),
            _ => (4, 12, 32),
        };
        let mut frame = vec![0; 96];
        frame[lengths..lengths + 4].copy_from_slice(&len.to_ne_bytes());
        if option(PACKET_TX_HAS_OFF) != 0 {
            for at in [offsets, offsets + 2] {
                frame[at..at + 2].copy_from_slice(&(data as u16).to_ne_bytes());
            }
        }
        if raw {
            let kind = data + before as usize + 12;
            frame[kind..kind + 2].copy_from_slice(&NOBODYS.to_be_bytes());
        }
        frame.truncate((data + len as usize).next_multiple_of(4));
        self.memory.write(at, &frame);
        self.memory.set_word(at + self.status(), TO_SEND);
        Ok(())
    }

    /// Writes what was in them: who has a frame or block comes last.
    fn fill(&self) -> Result<()> {
        if let Some(ring) = self.rings.received.as_ref().filter(|ring| ring.full) {
            // It is the program's again only when it is written.
            let at = (ring.position % u64::from(ring.blocks.max(1))) as u32 * ring.block_size;
            self.memory.set_word(at + block::STATUS, 0);
        }
        for (at, bytes) in &self.rings.contents {
            self.memory.write(*at, bytes);
        }
        Ok(())
    }

    /// `struct sockaddr_ll` of the protocol on the loopback interface.
    fn address(&self) -> Vec<u8> {
        let mut address = (c::AF_PACKET as u16).to_ne_bytes().to_vec();
        address.extend_from_slice(&NOBODYS.to_be_bytes());
        address.extend_from_slice(&self.lo.to_ne_bytes());
        address.resize(20, 0);
        address
    }

    fn send_one(&mut self, len: usize) -> Result<()> {
        let to = self.address();
        loop {
            let mut frame = vec![0; len.min(self.longest)];
            frame[12..HEADER].copy_from_slice(&NOBODYS.to_be_bytes());
            let message = Outgoing {
                data: &frame,
                to: &to,
                ..Outgoing::default()
            };
            match socket::send(self.sender.as_fd(), &message, 0) {
                Err(Errno::EMSGSIZE) if self.longest > 2 * (HEADER + 2) => self.longest /= 2,
                sent => return sent.map(drop),
            }
        }
    }

    fn until(&self, done: impl Fn(&Memory) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !done(&self.memory) {
            if begun.elapsed() > WITHIN {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// `struct tpacket_req`, or `tpacket_req3`.
fn request(ring: &PacketRing, version: i32) -> Vec<u8> {
    let mut words = vec![ring.block_size, ring.blocks, ring.frame_size, ring.frames];
    if version == V3 {
        words.extend([ring.retire, ring.private, ring.features]);
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
