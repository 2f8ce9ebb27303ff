//! Files and open file descriptions.

use super::Socket;
use serde::{Deserialize, Serialize};
use sys::Pid;

/// A file of a file system that outlives the upgrade, by path and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct FileRef {
    /// Absolute path, bytes as the kernel has them.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Inode number: a path that leads to another inode later is another file.
    pub inode: u64,
    /// Size in bytes, to notice a file that was changed in between.
    pub size: u64,
}

impl core::fmt::Display for FileRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        String::from_utf8_lossy(&self.path).fmt(f)
    }
}

/// Names an open file description within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DescriptionId(pub u32);

/// Names a pipe within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PipeId(pub u32);

/// An open file description (open(2)): what descriptors made by dup and fork share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its name.
    pub id: DescriptionId,
    /// Access mode and status flags (`F_GETFL`).
    pub flags: u32,
    /// File offset.
    pub pos: u64,
    /// Who gets SIGIO (`F_SETOWN_EX`), None when nobody.
    pub owner: Option<Owner>,
    /// What is open.
    pub kind: DescriptionKind,
}

/// `struct f_owner_ex` and `F_SETSIG` (fcntl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `F_OWNER_TID`, `_PID` or `_PGRP`.
    pub kind: i32,
    /// The id.
    pub id: Pid,
    /// The signal instead of SIGIO, or 0.
    pub signal: i32,
}

/// What a description is open on. Each variant has one module in `freezer::files` and one in
/// `resurrect::files`, named alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionKind {
    /// A regular file or directory that still has its path.
    Path(FileRef),
    /// A character device that has no state of its own, opened again by path.
    Device {
        /// Its path.
        path: Vec<u8>,
        /// Its device number.
        rdev: u64,
    },
    /// A memfd.
    Memfd {
        /// [`super::SharedObject::id`].
        object: u32,
    },
    /// A regular file that has been removed or replaced on disk.
    Deleted {
        /// [`super::SharedObject::id`].
        object: u32,
    },
    /// One end of a pipe; the access mode says which.
    Pipe(PipeId),
    /// eventfd(2).
    EventFd {
        /// The counter.
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// signalfd(2): the signals it takes (bit n-1 for signal n).
    SignalFd {
        /// The mask.
        mask: u64,
    },
    /// timerfd_create(2).
    TimerFd {
        /// The clock.
        clock: i32,
        /// Settings flags as fdinfo shows them (octal there).
        settime_flags: u32,
        /// Expirations not read yet.
        ticks: u64,
        /// Time to the next expiry, as fdinfo shows it (`it_value`), nanoseconds; 0 when disarmed.
        value: u64,
        /// Period in nanoseconds.
        interval: u64,
    },
    /// epoll_create(2) with what it watches, in the order the kernel lists it.
    Epoll {
        /// The interest list.
        targets: Vec<EpollTarget>,
    },
    /// socket(2), whatever its family.
    Socket(Box<Socket>),
}

/// An entry of an epoll interest list (`tfd:` lines of fdinfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The descriptor number it was registered with.
    pub fd: i32,
    /// Event bits and flags.
    pub events: u32,
    /// The user's data.
    pub data: u64,
}

/// A pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its name.
    pub id: PipeId,
    /// Its size (`F_GETPIPE_SZ`).
    pub capacity: u32,
    /// What is in it and not read yet.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// User and group that own it.
    pub owner: (u32, u32),
}
