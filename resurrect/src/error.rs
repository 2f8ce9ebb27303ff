//! What can go wrong.

use persist_mem::manifest::{DescriptionId, PipeId, RemovedId, TerminalId};
use sys::tracee::TraceeError;
use sys::{Errno, Pid};

/// What could not be made again: all who have it cannot be, either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A process, or a thread of it.
    Process(Pid),
    /// An open file description.
    Description(DescriptionId),
    /// A memory object.
    Object(u32),
    /// A terminal.
    Terminal(TerminalId),
    /// A pipe or FIFO.
    Pipe(PipeId),
    /// A POSIX message queue.
    Queue(u32),
    /// A directory that was removed.
    Removed(RemovedId),
}

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
        /// Which it is, where it is one of a process's.
        subject: Option<Subject>,
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
        /// What cannot be made again for that, where it is known.
        subject: Option<Subject>,
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
        /// What it was for, where it is known.
        subject: Option<Subject>,
        /// What.
        doing: String,
        /// Why not.
        errno: Errno,
    },
}

impl ResurrectError {
    pub(crate) fn own(doing: impl Into<String>) -> impl FnOnce(Errno) -> ResurrectError {
        let doing = doing.into();
        move |errno| ResurrectError::Own {
            subject: None,
            doing,
            errno,
        }
    }

    /// A file is not what it was.
    pub(crate) fn changed(path: impl Into<String>, why: impl Into<String>) -> ResurrectError {
        ResurrectError::Changed {
            subject: None,
            path: path.into(),
            why: why.into(),
        }
    }

    /// Says what it was for, unless that is known.
    pub(crate) fn about(mut self, about: Subject) -> ResurrectError {
        if let ResurrectError::Description { subject, .. }
        | ResurrectError::Changed { subject, .. }
        | ResurrectError::Own { subject, .. } = &mut self
        {
            subject.get_or_insert(about);
        }
        self
    }

    /// What could not be made again, where it is known.
    #[must_use]
    pub fn subject(&self) -> Option<Subject> {
        match self {
            ResurrectError::Tracee { pid, .. }
            | ResurrectError::Call { pid, .. }
            | ResurrectError::Impossible { pid, .. }
            | ResurrectError::NoPages { pid, .. } => Some(Subject::Process(*pid)),
            ResurrectError::Description { subject, .. }
            | ResurrectError::Changed { subject, .. }
            | ResurrectError::Own { subject, .. } => *subject,
            ResurrectError::Taken { .. } | ResurrectError::Pages(_) => None,
        }
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
