//! Rings of io_uring(7).

use super::DescriptionId;
use serde::{Deserialize, Serialize};
use sys::uring::Entry;
use sys::{Pid, Tid};

/// A ring in which nothing is under way but what waits.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ring {
    /// By which its mappings find it.
    pub inode: u64,
    /// `IORING_SETUP_*` flags.
    pub flags: u32,
    /// Entries of the submission queue.
    pub entries: u32,
    /// Entries of the completion queue.
    pub completions: u32,
    /// Where the fields of the rings are ([`sys::uring::Params::offsets`]): programs know that from the start.
    pub offsets: [u32; 14],
    /// Entries that the kernel has taken so far, and completions that it has made; both begin at 0 again after
    /// 2^32.
    pub counts: (u32, u32),
    /// Somebody has asked for no completions (`IOSQE_CQE_SKIP_SUCCESS`), so that no entry can wait for those before
    /// it any more (`IOSQE_IO_DRAIN`).
    pub drains_no_more: bool,
    /// The process whose memory what is registered counts for, as the one that has made it.
    pub maker: Option<Pid>,
    /// The only thread that may submit.
    pub submitter: Option<Tid>,
    /// The thread of the kernel's that takes entries (`IORING_SETUP_SQPOLL`).
    pub poller: Option<RingPoller>,
    /// The rings' memory.
    #[serde(with = "serde_bytes")]
    pub rings: Vec<u8>,
    /// The entries' memory.
    #[serde(with = "serde_bytes")]
    pub sqes: Vec<u8>,
    /// Registered files by their places, None for a free one.
    pub files: Vec<Option<DescriptionId>>,
    /// Registered buffers, their addresses and lengths, by their places; None for a free one.
    pub buffers: Vec<Option<(u64, u64)>>,
    /// In whose memory these are.
    pub buffers_of: Option<Pid>,
    /// What comes with a completion when a file or a buffer is not used any more, by their places; empty for nothing.
    pub file_tags: Vec<u64>,
    #[allow(missing_docs, reason = "see above")]
    pub buffer_tags: Vec<u64>,
    /// What it is set to.
    pub settings: RingSettings,
    /// The registered eventfd, and whether it is told only of what is completed later than at once.
    pub eventfd: Option<(DescriptionId, bool)>,
    /// Buffers that requests choose among.
    pub groups: Vec<BufferGroup>,
    /// Threads that have it among their own numbers (`IORING_REGISTER_RING_FDS`), and the number.
    pub names: Vec<(Tid, u32)>,
    /// Requests that wait. Behind one with `IOSQE_IO_LINK` or `IOSQE_IO_HARDLINK` is the one that waits for it.
    pub requests: Vec<RingRequest>,
}

/// What a ring is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RingSettings {
    /// The clock that waits go by (`IORING_REGISTER_CLOCK`), None for CLOCK_MONOTONIC.
    pub clock: Option<u32>,
    /// Most workers for files and for others (`IORING_REGISTER_IOWQ_MAX_WORKERS`); 0 for as many as there are.
    pub workers: [u32; 2],
    /// The first of the places that files are put into, and how many (`IORING_REGISTER_FILE_ALLOC_RANGE`).
    pub places: Option<(u32, u32)>,
    /// What it may be used for.
    pub restrictions: Option<RingRestrictions>,
}

/// What a ring may be used for once it is enabled (`IORING_REGISTER_RESTRICTIONS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RingRestrictions {
    /// Bits of what may be registered.
    pub register: u64,
    /// Bits of the kinds of requests.
    pub requests: u128,
    /// Flags that requests may have.
    pub allowed: u8,
    /// Flags that they must have.
    pub required: u8,
}

/// A thread of the kernel's that takes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPoller {
    /// The process that it belongs to.
    pub pid: Pid,
    /// By which requests name it.
    pub tid: Tid,
    /// The processor that it runs on, with `IORING_SETUP_SQ_AFF`.
    pub processor: u32,
    /// After how many milliseconds without work it sleeps.
    pub idle: u32,
}

/// A group of provided buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferGroup {
    /// Its number.
    pub id: u16,
    /// In whose memory the buffers are.
    pub pid: Pid,
    /// A ring that tells of them (`IORING_REGISTER_PBUF_RING`).
    pub ring: Option<BufferRing>,
    /// Their addresses, lengths and numbers, in order (`IORING_OP_PROVIDE_BUFFERS`).
    pub buffers: Vec<(u64, u32, u16)>,
}

/// A ring of provided buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferRing {
    /// Where the program has it; None for memory of the kernel's (`IOU_PBUF_RING_MMAP`).
    pub address: Option<u64>,
    /// Places for buffers.
    pub entries: u32,
    /// Buffers taken.
    pub head: u16,
    /// `IOU_PBUF_RING_*`
    pub flags: u16,
    /// What is in it, when it is the kernel's.
    #[serde(with = "serde_bytes")]
    pub memory: Vec<u8>,
}

/// Buffers that a receive of several takes at most.
pub const BUNDLE: u32 = 128;

/// How a new ring of buffers is brought to where the old one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// By receives into several buffers (`IORING_RECVSEND_BUNDLE`), since Linux 6.10.
    Bundles,
    /// By a receive for each.
    Alone,
    /// By receives that go on and make a completion for each, and one more.
    Singly,
}

impl Ring {
    /// How rings of buffers are brought to where they were: by no more requests than have `ended`, and no more
    /// completions than there were without those that requests tell again. None when both are too few.
    #[must_use]
    pub fn taking(&self, bundles: bool, (ended, completed): (u32, u32)) -> Option<Taking> {
        let incremental = self.groups.iter().any(|group| {
            let ring = group.ring.as_ref();
            ring.is_some_and(|ring| ring.flags & BufferRing::INCREMENTAL != 0)
        });
        let ways = [Taking::Bundles, Taking::Alone, Taking::Singly].into_iter();
        let mut ways = ways.skip(usize::from(!bundles || incremental));
        ways.find(|way| {
            let costs = self.groups.iter().map(|group| group.cost(*way, self));
            let (requests, completions) =
                costs.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            // What is left to be counted is requests with a completion each, and completions without; or some
            // requests without one.
            let (ended, completed) = (u64::from(ended), u64::from(completed));
            let left = ended
                .checked_sub(requests)
                .zip(completed.checked_sub(completions));
            left.is_some_and(|(requests, completions)| match self.drains_no_more {
                true => requests > 0,
                false => requests <= completions,
            })
        })
    }

    /// Requests that have ended, and completions that are not told again.
    #[must_use]
    pub fn ended(&self) -> (u32, u32) {
        let told = self.requests.iter().filter(|request| request.told).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (
            self.counts.0.saturating_sub(count(self.requests.len())),
            self.counts.1.saturating_sub(count(told)),
        )
    }
}

impl BufferRing {
    /// `IOU_PBUF_RING_INC`
    pub const INCREMENTAL: u16 = 2;

    /// Buffers that one request takes at most, in a ring with so much room for completions.
    #[must_use]
    pub fn part(&self, way: Taking, completions: u32) -> u32 {
        match way {
            Taking::Bundles => self.entries.min(BUNDLE),
            Taking::Alone => 1,
            Taking::Singly => self.entries.min(completions.max(2) - 1),
        }
    }
}

impl BufferGroup {
    /// Requests and completions that make it what it was, at most.
    fn cost(&self, way: Taking, of: &Ring) -> (u64, u64) {
        let runs = self.runs().len() as u64;
        let Some(ring) = self.ring.as_ref().filter(|ring| ring.head > 0) else {
            return (runs, runs);
        };
        let head = u32::from(ring.head);
        let requests = u64::from(head.div_ceil(ring.part(way, of.completions)));
        // Parts of them end where the queue begins anew.
        let begins_anew = if of.counts.1 >= of.completions { 2 } else { 0 };
        match way {
            Taking::Bundles | Taking::Alone => (requests, requests),
            Taking::Singly => (
                requests + begins_anew,
                requests + begins_anew + u64::from(head),
            ),
        }
    }

    /// Its buffers as they can be provided at once: address, length and number of the first one, how many.
    #[must_use]
    pub fn runs(&self) -> Vec<(u64, u32, u16, u16)> {
        let mut found: Vec<(u64, u32, u16, u16)> = Vec::new();
        for (address, len, number) in &self.buffers {
            match found.last_mut() {
                Some((first, of, from, count))
                    if of == len
                        && first.checked_add(u64::from(*of) * u64::from(*count))
                            == Some(*address)
                        && from.checked_add(*count) == Some(*number) =>
                {
                    *count += 1;
                }
                _ => found.push((*address, *len, *number, 1)),
            }
        }
        found
    }
}

/// A request that waits for a file, a time, a futex or a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingRequest {
    /// Who has submitted it.
    pub tid: Tid,
    /// Its file.
    pub file: Option<DescriptionId>,
    /// What is to be submitted, but for the number of its file and the address of a time.
    pub entry: Entry,
    /// When its time is over.
    pub until: Option<RequestEnd>,
    /// What it would tell at once has been told: a poll that goes on (`IORING_POLL_ADD_MULTI`).
    pub told: bool,
    /// It has not begun: its file is the one with its number then.
    pub later: bool,
    /// Memory that it reads into or writes from (`struct iovec`), where it has several parts.
    pub vectors: Vec<(u64, u64)>,
    /// What else a message has (`struct user_msghdr`).
    pub message: Option<RingMessage>,
    /// Addresses of several futexes, one of which it waits for, and their flags (`struct futex_waitv`).
    pub futexes: Vec<(u64, u32)>,
}

/// `struct user_msghdr` without its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingMessage {
    /// Where a name is to be put, or 0; and the length, None for the one that is there.
    pub name_at: u64,
    /// How much of it there may be; None for what the program's structure says.
    pub name_len: Option<u32>,
    /// The name that is sent to.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Address and length of control data.
    pub control: (u64, u64),
}

/// When a request's time is over, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestEnd {
    /// On CLOCK_MONOTONIC as the saved processes saw it.
    Monotonic(i64),
    /// On CLOCK_BOOTTIME as the saved processes saw it.
    Boottime(i64),
    /// On CLOCK_REALTIME.
    Realtime(i64),
    /// So long after it has begun.
    After(i64),
}

/// A mapping of a ring, of io_uring or of a packet socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingMapping {
    /// [`Ring::inode`], or [`super::PacketRings::inode`].
    pub inode: u64,
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `PROT_*` bits.
    pub prot: u32,
    /// What part of the ring: an offset for mmap(2).
    pub offset: u64,
    /// `MADV_DONTFORK`.
    pub dont_fork: bool,
    /// `MADV_DONTDUMP`.
    pub dont_dump: bool,
}
