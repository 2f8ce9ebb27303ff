//! Rings that packet sockets share with their program.

use anyhow::{Context, Result, ensure};
use libc::{AF_PACKET, SOCK_NONBLOCK, SOCK_RAW};

use crate::kit::files::{close, read, seen};
use crate::kit::net::{option, set_option, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, args, fork, loopback, raw, same, sys, until};

const SOL_PACKET: i32 = 263;
const PACKET_RX_RING: i32 = 5;
const PACKET_STATISTICS: i32 = 6;
const PACKET_VERSION: i32 = 10;
const PACKET_TX_RING: i32 = 13;
const USER: u32 = 1;
/// Bytes of a packet behind its header.
const BODY: usize = 500;

/// The loopback interface and a protocol: `struct sockaddr_ll`.
fn address(protocol: u16) -> Result<Vec<u8>> {
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
    ensure!(index > 0, "no loopback interface");
    let mut address = (AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend(protocol.to_be_bytes());
    address.extend(index.to_ne_bytes());
    address.resize(20, 0);
    Ok(address)
}

fn bind(socket: i32, protocol: u16) -> Result<()> {
    let address = address(protocol)?;
    let arguments = args([socket as u64, address.as_ptr() as u64, 20]);
    sys("bind", raw(libc::SYS_bind, arguments)).map(drop)
}

/// Sends a packet with a number.
fn send(from: i32, protocol: u16, number: u32) -> Result<()> {
    let mut frame = vec![number as u8; 14 + BODY];
    frame[..12].fill(0);
    frame[12..14].copy_from_slice(&protocol.to_be_bytes());
    frame[14..18].copy_from_slice(&number.to_ne_bytes());
    let address = address(protocol)?;
    let (bytes, len) = (frame.as_ptr() as u64, frame.len() as u64);
    let arguments = [from as u64, bytes, len, 0, address.as_ptr() as u64, 20];
    sys("sendto", raw(libc::SYS_sendto, arguments)).map(drop)
}

/// A socket with a ring, and how far it was read.
struct Ring {
    socket: i32,
    start: u64,
    version: i32,
    protocol: u16,
    sender: i32,
    /// Bytes of a frame or block, and how many there are.
    size: usize,
    count: usize,
    /// The next one to be read.
    at: usize,
    /// Numbers of the next packet that is sent, and that is read.
    sent: u32,
    read: u32,
}

impl Ring {
    fn new(version: i32, protocol: u16, time_out: u32) -> Result<Ring> {
        let socket = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0)?;
        set_option(socket, SOL_PACKET, PACKET_VERSION, version)?;
        // Frames of 1024 bytes; blocks of 8192.
        let (size, count, words) = match version {
            2 => (8192, 4, vec![8192_u32, 4, 2048, 16, time_out, 32, 0]),
            _ => (1024, 16, vec![4096_u32, 4, 1024, 16]),
        };
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        set_option_bytes(socket, SOL_PACKET, PACKET_RX_RING, &bytes)?;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let arguments = [
            0,
            (size * count) as u64,
            protection,
            libc::MAP_SHARED as u64,
            socket as u64,
            0,
        ];
        let start = sys("mmap", raw(libc::SYS_mmap, arguments))? as u64;
        bind(socket, protocol)?;
        Ok(Ring {
            socket,
            start,
            version,
            protocol,
            sender: crate::kit::net::socket(AF_PACKET, SOCK_RAW, 0)?,
            size,
            count,
            at: 0,
            sent: 0,
            read: 0,
        })
    }

    fn word(&self, at: usize) -> u32 {
        // SAFETY: inside of the mapping, and aligned; others write there.
        unsafe { ((self.start as usize + at) as *const u32).read_volatile() }
    }

    fn half(&self, at: usize) -> usize {
        (self.word(at & !3) >> (8 * (at & 3)) & 0xffff) as usize
    }

    fn set(&self, at: usize, value: u32) {
        // SAFETY: inside of the mapping, and aligned; others read there.
        unsafe { ((self.start as usize + at) as *mut u32).write_volatile(value) }
    }

    /// Sends packets, and waits until they have come: many at once would not find room.
    fn send(&mut self, count: u32) -> Result<()> {
        self.arrived()?;
        for _ in 0..count {
            send(self.sender, self.protocol, self.sent)?;
            self.sent += 1;
        }
        let mut arrived = 0;
        let mut failed = Ok(());
        let all = until("all packets arrive", SOON, || match self.arrived() {
            Ok(more) => {
                arrived += more;
                arrived >= count
            }
            Err(error) => {
                failed = Err(error);
                true
            }
        });
        failed.and(all)
    }

    /// How many packets have come since this was asked last, also such as found no room (`PACKET_STATISTICS`).
    fn arrived(&self) -> Result<u32> {
        let statistics = option(self.socket, SOL_PACKET, PACKET_STATISTICS)?;
        let first = statistics.first_chunk::<4>().context("no statistics")?;
        Ok(u32::from_ne_bytes(*first))
    }

    /// Reads what is there, at most so many frames or blocks, and gives them back.
    fn take(&mut self, most: usize) -> Result<()> {
        for _ in 0..most {
            let at = self.at * self.size;
            let status = at + if self.version == 2 { 8 } else { 0 };
            if self.word(status) & USER == 0 {
                break;
            }
            if self.version == 2 {
                self.take_block(at)?;
            } else {
                // tp_mac, behind tp_status, tp_len, tp_snaplen.
                let mac = if self.version == 0 { 16 } else { 12 };
                self.take_packet(at + self.half(at + mac))?;
            }
            self.set(status, 0);
            self.at = (self.at + 1) % self.count;
        }
        Ok(())
    }

    fn take_block(&mut self, block: usize) -> Result<()> {
        let mut at = block + self.word(block + 16) as usize;
        for _ in 0..self.word(block + 12) {
            self.take_packet(at + self.half(at + 24))?;
            at += self.word(at) as usize;
        }
        Ok(())
    }

    fn take_packet(&mut self, at: usize) -> Result<()> {
        let byte = |at: usize| (self.word(at & !3) >> (8 * (at & 3))) as u8;
        let body: Vec<u8> = (at + 14..at + 14 + BODY).map(byte).collect();
        let number = u32::from_ne_bytes([body[0], body[1], body[2], body[3]]);
        same("number of a packet", &self.read, &number)?;
        ensure!(
            body[4..].iter().all(|byte| *byte == number as u8),
            "its contents"
        );
        self.read += 1;
        Ok(())
    }

    /// Takes everything that has been sent.
    fn take_all(&mut self) -> Result<()> {
        let mut failed = Ok(());
        let all = until("all packets come", SOON, || {
            failed = self.take(usize::MAX);
            failed.is_err() || self.read == self.sent
        });
        failed.and(all)
    }

    fn close(&self) -> Result<()> {
        let arguments = args([self.start, (self.size * self.count) as u64]);
        sys("munmap", raw(libc::SYS_munmap, arguments))?;
        close(self.socket);
        Ok(())
    }
}

/// Rings of single frames of both versions: read in part, with packets that wait.
pub(crate) fn frames(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut rings = [Ring::new(0, 0x9f01, 0)?, Ring::new(1, 0x9f02, 0)?];
    for ring in &mut rings {
        ring.send(6)?;
        ring.take_all()?;
        ring.send(3)?;
    }
    let (start, size, count) = (rings[0].start, rings[0].size, rings[0].count);
    let maps = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string("/proc/self/maps")?;
        let ours = text.lines().filter(|line| line.contains("socket:"));
        let range = |line: &str| line.split_whitespace().take(2).collect();
        Ok(ours.map(range).collect())
    };
    let socket = rings[0].socket;
    let kept = Watch::keep(move || Ok((maps()?, seen(socket)?.0)))?;
    Ok(kept.and(
        Watch::new(move || {
            for ring in &mut rings {
                ring.take_all()?;
                // Round and round, but never full.
                for _ in 0..5 {
                    ring.send(7)?;
                    ring.take_all()?;
                }
                ring.send(3)?;
            }
            Ok(())
        })
        .spoiled_by(move || {
            for at in 0..count {
                // SAFETY: inside of the mapping.
                unsafe { ((start as usize + at * size) as *mut u64).write_volatile(0) };
            }
            Ok(())
        }),
    ))
}

/// Rings of blocks: handed over soon, and only when they are full; read in part. Another process has one as well.
pub(crate) fn blocks(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut rings = [Ring::new(2, 0x9f03, 60)?, Ring::new(2, 0x9f04, 60_000)?];
    for ring in &mut rings {
        ring.send(30)?;
        ring.take(usize::MAX)?;
        ring.send(5)?;
    }
    let (start, size, count) = (rings[0].start, rings[0].size, rings[0].count);
    fork(|| {
        loop {
            // SAFETY: nothing is taken.
            unsafe { libc::pause() };
        }
    })?;
    Ok(Watch::new(move || {
        let [soon, late] = &mut rings;
        soon.take_all()?;
        for _ in 0..3 {
            soon.send(11)?;
            soon.take_all()?;
        }
        soon.send(4)?;
        // What fills no block is not handed over.
        let before = late.sent;
        for _ in 0..8 {
            late.send(11)?;
            late.take(usize::MAX)?;
        }
        ensure!(
            late.read > before && late.sent - late.read < 40,
            "blocks are not handed over"
        );
        Ok(())
    })
    .spoiled_by(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        // In the first packet of each.
        for at in 0..count {
            let body = start as usize + at * size + 400;
            // SAFETY: inside of the mapping.
            unsafe { (body as *mut u32).write_volatile(0x1234_5678) };
        }
        Ok(())
    }))
}

/// Rings that are full, so that packets were lost.
pub(crate) fn full(_: &Setting) -> Result<Watch> {
    loopback()?;
    let versions = [(1, 0x9f05), (2, 0x9f06)];
    let fill = move || -> Result<[Ring; 2]> {
        let one = |(version, protocol)| -> Result<Ring> {
            let mut ring = Ring::new(version, protocol, 50)?;
            ring.send(10)?;
            ring.take_all()?;
            ring.send(90)?;
            Ok(ring)
        };
        Ok([one(versions[0])?, one(versions[1])?])
    };
    let state = std::rc::Rc::new(std::cell::RefCell::new(fill()?));
    let spoiled = state.clone();
    Ok(Watch::new(move || {
        for ring in state.borrow_mut().iter_mut() {
            let before = ring.read;
            ring.take(ring.count)?;
            let room = if ring.version == 2 { 40 } else { 16 };
            let got = (ring.read - before) as usize;
            ensure!(got >= room && got < 90, "{got} packets were there");
            // What is sent from now on comes.
            ring.read = ring.sent;
            ring.send(5)?;
            ring.take_all()?;
            ring.close()?;
            close(ring.sender);
        }
        state.replace(fill()?);
        Ok(())
    })
    .spoiled_by(move || {
        let mut rings = spoiled.borrow_mut();
        rings[0].take(1)
    }))
}

/// A ring of packets to be sent that are made beforehand.
pub(crate) fn sent(_: &Setting) -> Result<Watch> {
    const FRAMES: u32 = 16;
    const DATA: usize = 32;
    const PROTOCOL: u16 = 0x9f07;
    loopback()?;
    let listener = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0)?;
    bind(listener, PROTOCOL)?;
    let sender = socket(AF_PACKET, SOCK_RAW, 0)?;
    set_option(sender, SOL_PACKET, PACKET_VERSION, 1)?;
    let words = [4096_u32, 4, 1024, FRAMES];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_option_bytes(sender, SOL_PACKET, PACKET_TX_RING, &bytes)?;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let len = u64::from(FRAMES) * 1024;
    let shared = libc::MAP_SHARED as u64;
    let arguments = [0, len, protection, shared, sender as u64, 0];
    let start = sys("mmap", raw(libc::SYS_mmap, arguments))? as usize;
    bind(sender, PROTOCOL)?;
    let at = move |frame: u32| start + frame as usize * 1024;
    let frame_of = |frame: u32| {
        let mut bytes = vec![frame as u8; 60];
        bytes[..12].fill(0);
        bytes[12..14].copy_from_slice(&PROTOCOL.to_be_bytes());
        bytes
    };
    for frame in 0..FRAMES {
        let bytes = frame_of(frame);
        // SAFETY: inside of the mapping.
        unsafe {
            let to = (at(frame) + DATA) as *mut u8;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            ((at(frame) + 4) as *mut u32).write_volatile(60);
        }
    }
    let mut next = 0;
    let mut go = move |count: u32| -> Result<()> {
        for _ in 0..count {
            // SAFETY: inside of the mapping, and aligned.
            unsafe { (at(next) as *mut u32).write_volatile(1) };
            let arguments = args([sender as u64, 0, 0]);
            sys("send", raw(libc::SYS_sendto, arguments))?;
            let mut got = None;
            until("the packet comes", SOON / 4, || {
                got = read(listener, 100).ok();
                got.is_some()
            })?;
            same("the packet", &Some(frame_of(next)), &got)?;
            next = (next + 1) % FRAMES;
        }
        Ok(())
    };
    go(5)?;
    Ok(Watch::new(move || go(21)).spoiled_by(move || {
        // SAFETY: inside of the mapping.
        unsafe { ((at(9) + DATA + 20) as *mut u8).write_volatile(99) };
        Ok(())
    }))
}
