//! What requests that wait read when they are submitted: times, parts of memory, messages.

use persist_mem::manifest::RingRequest;
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;
use sys::uring::{Entry, op};

/// `IORING_RECVSEND_POLL_FIRST`
const POLL_FIRST: u16 = 1 << 0;
const SECOND: i64 = 1_000_000_000;
/// Bytes of `struct user_msghdr`, and of the length of the name in it, which the kernel reads when a message has come.
const HEADER: usize = 56;
const NAME_LEN: std::ops::Range<usize> = 8..12;
/// Bytes of `struct futex_waitv`.
const FUTEX: usize = 24;
/// What is at an address of its own begins at such a border.
const BORDER: usize = 16;

/// What some requests read.
#[derive(Debug, Default)]
pub(super) struct Places {
    bytes: Vec<u8>,
    /// Where what an entry leads to begins.
    of: Vec<Option<usize>>,
    /// Words that hold the addresses of other places.
    pointers: Vec<(usize, usize)>,
}

impl Places {
    fn put(&mut self, bytes: &[u8]) -> usize {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BORDER), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Adds what a request reads; `time` is what it is set to, in nanoseconds.
    pub(super) fn add(&mut self, request: &RingRequest, time: i64) {
        let parts = request.vectors.iter().flat_map(|(at, len)| [*at, *len]);
        let parts: Vec<u8> = parts.flat_map(u64::to_le_bytes).collect();
        let place = match &request.message {
            _ if request.until.is_some() => {
                let time = [time.div_euclid(SECOND), time.rem_euclid(SECOND)];
                Some(self.put(&time.map(i64::to_le_bytes).concat()))
            }
            None if !request.futexes.is_empty() => Some(self.put(&futexes(request))),
            None if request.vectors.is_empty() => None,
            None => Some(self.put(&parts)),
            Some(message) => {
                let (parts, name) = (self.put(&parts), self.put(&message.name));
                let header = [
                    message.name_at,
                    message.name_len.unwrap_or(0).into(),
                    0,
                    request.vectors.len() as u64,
                    message.control.0,
                    message.control.1,
                    0,
                ];
                let header = self.put(&header.map(u64::to_le_bytes).concat());
                self.pointers.push((header + 16, parts));
                if !message.name.is_empty() {
                    self.pointers.push((header, name));
                }
                Some(header)
            }
        };
        self.of.push(place);
    }

    /// Has requests wait for futexes whatever these hold by now, since the kernel compares only when they begin to.
    pub(super) fn compare_with(
        &self,
        tracee: &Tracee,
        requests: &[&RingRequest],
        entries: &mut [Entry],
        bytes: &mut [u8],
    ) {
        let value = |address| {
            let bytes = tracee.mem().read_vec(address, 4).ok()?;
            Some(u64::from(u32::from_le_bytes(*bytes.first_chunk()?)))
        };
        for ((request, entry), place) in requests.iter().zip(entries).zip(&self.of) {
            if request.later {
                continue;
            }
            if request.entry.opcode == op::FUTEX_WAIT {
                entry.offset = value(request.entry.address).unwrap_or(entry.offset);
            }
            for ((address, _), number) in request.futexes.iter().zip(0..) {
                let at = place.unwrap_or(0) + number * FUTEX;
                if let (Some(value), Some(word)) = (value(*address), bytes.get_mut(at..at + 8)) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }

    /// Bytes of memory that it needs.
    pub(super) fn len(&self) -> u64 {
        (self.bytes.len() as u64)
            .max(1)
            .next_multiple_of(PAGE_SIZE_U64)
    }

    /// What the entry with this number leads to, in bytes that were placed.
    pub(super) fn header<'a>(&self, number: usize, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let at = (*self.of.get(number)?)?;
        bytes.get(at..at + HEADER)
    }

    /// The entries of these requests, and all that they read, when that lies at `place`.
    pub(super) fn at(&self, place: u64, requests: &[&RingRequest]) -> (Vec<Entry>, Vec<u8>) {
        let mut bytes = self.bytes.clone();
        for (at, leads) in &self.pointers {
            let address = place + *leads as u64;
            if let Some(word) = bytes.get_mut(*at..at + 8) {
                word.copy_from_slice(&address.to_le_bytes());
            }
        }
        let entries = requests.iter().zip(&self.of).map(|(request, at)| match at {
            // It is written into when a message has come.
            Some(_) if request.entry.opcode == op::RECVMSG => Entry {
                priority: request.entry.priority | POLL_FIRST,
                ..request.entry
            },
            Some(at) => Entry {
                address: place + *at as u64,
                ..request.entry
            },
            // It looks for a buffer when there is something to receive.
            None if request.entry.chooses() && request.entry.opcode == op::RECV => Entry {
                priority: request.entry.priority | POLL_FIRST,
                ..request.entry
            },
            None => request.entry,
        });
        (entries.collect(), bytes)
    }
}

/// `struct futex_waitv`: a value, an address, flags, reserved.
fn futexes(request: &RingRequest) -> Vec<u8> {
    let all = request.futexes.iter();
    let words = all.flat_map(|(address, flags)| [0, *address, u64::from(*flags)]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Has a receive of a message find what it is to read where its message shall be told of, and returns what is there
/// now.
pub(super) fn lend(
    tracee: &Tracee,
    request: &RingRequest,
    header: Option<&[u8]>,
) -> Option<(u64, Vec<u8>)> {
    let message = request.message.as_ref()?;
    if request.entry.opcode != op::RECVMSG {
        return None;
    }
    let address = request.entry.address;
    let before = tracee.mem().read_vec(address, HEADER).ok()?;
    let mut now = header?.to_vec();
    if message.name_len.is_none() {
        now[NAME_LEN].copy_from_slice(&before[NAME_LEN]);
    }
    tracee.mem().write(address, &now).ok()?;
    Some((address, before))
}
