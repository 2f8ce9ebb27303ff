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
    /// The only thread that may submit.
    pub submitter: Option<Tid>,
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
    /// The registered eventfd, and whether it is told only of what is completed later than at once.
    pub eventfd: Option<(DescriptionId, bool)>,
    /// Requests that wait.
    pub requests: Vec<RingRequest>,
}

/// A request that waits for a file or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A mapping of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingMapping {
    /// [`Ring::inode`].
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
