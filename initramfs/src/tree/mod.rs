//! File systems in memory: a tree of inodes taken down, and put up again.
//!
//! | module | what it does |
//! |---|---|
//! | [`archive`] | takes a tree down |
//! | [`unpack`] | puts one up, in a new file system or over what is there |
//! | [`numbers`] | gives inodes the numbers that they had |
//! | [`make`] | makes one inode |
//!
//! Sockets come back as names only; whoever owned one binds it again (and removes the name
//! before).

mod archive;
mod make;
mod numbers;
#[cfg(test)]
mod tests;
mod unpack;

pub use archive::archive;
pub use unpack::{Existing, unpack};

use std::io;
use std::path::{Path, PathBuf};
use sys::Errno;

/// Why a tree cannot be taken or put up.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file cannot be read, made or changed.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// More contents than allowed.
    #[error("{} holds more than {limit} bytes; it was full at {}", root.display(), path.display())]
    TooLarge {
        /// The tree.
        root: PathBuf,
        /// The file that did not fit.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// An inode without a place.
    #[error("the recorded tree is damaged: inode {0} has no parent before it")]
    Damaged(usize),
}

type Result<T> = std::result::Result<T, TreeError>;

fn fail(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::File {
        path: path.to_owned(),
        what,
        source,
    }
}

fn fail_errno(path: &Path, what: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |errno| fail(path, what)(errno.into())
}
