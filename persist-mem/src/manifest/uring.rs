//! Rings of io_uring(7).

use serde::{Deserialize, Serialize};
use sys::Tid;

/// A ring in which nothing is under way.
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
