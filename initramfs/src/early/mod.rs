//! Building blocks of `/init`: what runs between the new kernel's first process and the first
//! restored one.
//!
//! | module | what it does |
//! |---|---|
//! | [`kmsg`] | log lines into the kernel's log, loud reports onto the console |
//! | [`basics`] | `/proc`, `/sys`, `/dev` of the initramfs |
//! | [`cmdline`] | the kernel command line |
//! | [`load`] | loads the overlay's modules in order |
//! | [`root`] | waits for the root disk by identity, mounts it |
//! | [`switch`] | makes the mounted root `/` |
//! | [`fallback`] | boots the host the ordinary way when nothing can be restored |

pub mod basics;
pub mod cmdline;
pub mod fallback;
pub mod kmsg;
pub mod load;
pub mod root;
pub mod switch;

use crate::mounts::MountError;
use std::path::PathBuf;
use std::time::Duration;
use sys::Errno;

/// What can go wrong in early boot.
#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    /// A mount failed.
    #[error("mounting {what} on {}: {errno}", point.display())]
    Mount {
        /// Type or device.
        what: String,
        /// Mount point.
        point: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A module was refused.
    #[error("module {name}: {errno}")]
    Module {
        /// Its name.
        name: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The root disk did not appear.
    #[error("no block device is {spec} after {waited:?}; there are: {seen}")]
    NoRoot {
        /// What was looked for.
        spec: String,
        /// How long.
        waited: Duration,
        /// What there is instead.
        seen: String,
    },
    /// `root=` is missing or of a kind that is not known here.
    #[error("`{0}` names no root file system that can be found without user-space helpers")]
    BadRootSpec(String),
    /// Mounting what was recorded failed.
    #[error(transparent)]
    Mounts(#[from] MountError),
    /// A step of changing the root failed.
    #[error("changing the root to {}: {step}: {errno}", root.display())]
    Switch {
        /// The new root.
        root: PathBuf,
        /// Which call.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// Result in early boot.
pub type Result<T> = std::result::Result<T, EarlyError>;
