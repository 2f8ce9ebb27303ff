//! What can go wrong.

use sys::tracee::TraceeError;
use sys::{Errno, Pid};

/// Why a tree could not be rebuilt. What was built so far has been ended again.
#[derive(Debug, thiserror::Error)]
pub enum ResurrectError {
    /// An id that a process must have is somebody else's.
    #[error(
        "the id {pid} is taken by a process{comm}; end that, or restore inside a PID namespace"
    )]
    Taken {
        /// The id.
        pid: Pid,
        /// ` (name)`, or empty.
        comm: String,
    },
    /// Work inside a process failed.
    #[error("process {pid}: {doing}: {cause}")]
    Tracee {
        /// The process, as it sees itself.
        pid: Pid,
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        cause: TraceeError,
    },
    /// A system call for a process failed.
    #[error("process {pid}: {doing}: {errno}")]
    Call {
        /// The process.
        pid: Pid,
        /// What was being done.
        doing: String,
        /// Why not.
        errno: Errno,
    },
    /// An open file description cannot be made again.
    #[error("open file {what}: {doing}: {errno}")]
    Description {
        /// What it is, for people.
        what: String,
        /// What was being done.
        doing: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// A file is not what it was.
    #[error("{path}: {why}")]
    Changed {
        /// The file.
        path: String,
        /// What is different.
        why: String,
    },
    /// Something that the manifest asks for and nobody can do.
    #[error("process {pid}: {why}")]
    Impossible {
        /// The process.
        pid: Pid,
        /// Why.
        why: String,
    },
    /// The store lacks pages.
    #[error("process {pid}: {pages} pages from number {frame} on are not in the store")]
    NoPages {
        /// The process.
        pid: Pid,
        /// First page.
        frame: u64,
        /// How many.
        pages: u64,
    },
    /// Pages are not what they were.
    #[error("{0}")]
    Pages(String),
    /// This process itself could not do something.
    #[error("{doing}: {errno}")]
    Own {
        /// What.
        doing: String,
        /// Why not.
        errno: Errno,
    },
}

impl ResurrectError {
    pub(crate) fn own(doing: impl Into<String>) -> impl FnOnce(Errno) -> ResurrectError {
        let doing = doing.into();
        move |errno| ResurrectError::Own { doing, errno }
    }

    pub(crate) fn call(pid: Pid, doing: impl Into<String>) -> impl FnOnce(Errno) -> ResurrectError {
        let doing = doing.into();
        move |errno| ResurrectError::Call { pid, doing, errno }
    }

    pub(crate) fn tracee(
        pid: Pid,
        doing: impl Into<String>,
    ) -> impl FnOnce(TraceeError) -> ResurrectError {
        let doing = doing.into();
        move |cause| ResurrectError::Tracee { pid, doing, cause }
    }
}
