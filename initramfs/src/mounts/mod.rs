//! The host's mounts: recorded before the jump, made again after it.
//!
//! | module | what it does |
//! |---|---|
//! | [`info`] | reads mountinfo |
//! | [`support`] | what can be made again, and why the rest cannot |
//! | [`capture`] | the whole record, with disks' identities and contents of memory file systems |
//! | [`devices`] | gives file systems in memory the device numbers that they had |
//! | [`restore`] | makes the mounts again |

pub mod capture;
pub(crate) mod devices;
pub mod info;
mod nodes;
pub mod restore;
pub mod support;

pub use capture::capture;
pub use restore::{Phase, restore, take_away};
pub use support::{Problem, check};

use crate::tree::TreeError;
use std::path::PathBuf;
use std::time::Duration;
use sys::Errno;

/// Why mounts cannot be recorded or made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mountinfo cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A line of it is not understood.
    #[error("mountinfo line `{0}` is not understood")]
    Line(String),
    /// There is no mount at `/`.
    #[error("the record holds no root file system")]
    NoRoot,
    /// A file system in memory.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The disk of a mount did not appear.
    #[error("{kind} file system {uuid}, mounted on {point} before, is on no disk after {waited:?}")]
    NoDisk {
        /// Its type.
        kind: String,
        /// Its UUID.
        uuid: String,
        /// Where it was mounted.
        point: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A mount failed.
    #[error("{kind} on {point}: {step}: {errno}")]
    Failed {
        /// Type of the file system.
        kind: String,
        /// Where.
        point: String,
        /// Which call.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A mount that cannot be made again.
    #[error(transparent)]
    Unsupported(#[from] Problem),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, MountError>;
