//! The supervisor: the real PID 1 after an upgrade.
//!
//! The restored processes live in a PID and a time namespace of their own (pid_namespaces(7),
//! time_namespaces(7)), so that no kernel thread has an id one of them needs, and their clocks go
//! on from where they were. What stays outside is this: it makes the namespaces, reaps, turns the
//! end of the world's init into a real restart, and makes the next jump, which no process inside
//! may make.
//!
//! | module | what it does |
//! |---|---|
//! | [`clock`] | how much time the upgrade took, and what the clocks must show |
//! | [`namespaces`] | makes the world's namespaces and starts processes in them |
//! | [`control`] | the socket between the world and the supervisor |
//! | [`serve`] | what PID 1 does for the rest of its life |
//! | [`report`] | the time line |

pub mod clock;
pub mod control;
pub mod namespaces;
pub mod report;
pub mod serve;

use std::path::PathBuf;
use sys::Errno;

/// Why the supervisor cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A system call failed.
    #[error("{call}: {errno}")]
    Call {
        /// Which, and what for.
        call: &'static str,
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
    /// The supervisor cannot be asked.
    #[error("the supervisor does not answer on {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A helper inside the world failed.
    #[error("a helper inside the world ended with {0:?}")]
    Inside(sys::wait::Status),
    /// The supervisor refused.
    #[error("the supervisor refused: {0}")]
    Refused(String),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, SupervisorError>;

/// Names a system call in its error.
fn call(call: &'static str) -> impl Fn(Errno) -> SupervisorError {
    move |errno| SupervisorError::Call { call, errno }
}
