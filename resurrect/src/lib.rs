//! Manifest to running processes.
//!
//! [`restore`] rebuilds every process of a manifest, stopped ([`restore_most`] those that can be);
//! [`World::thaw`] lets them go. Processes are
//! made by their own parents and changed from inside by batches of system calls ([`sys::batch`]); open
//! file descriptions are opened here and handed over. The order of everything is one table in [`stages`].
//!
//! | where | what |
//! |---|---|
//! | [`stages`] | the order of rebuilding |
//! | [`tree`] | who forks whom: ancestry, sessions, groups |
//! | [`memory`] | address spaces, pages, the vdso |
//! | `ipc` | System V semaphores and messages |
//! | `numbers` | a number for a descriptor that no process uses |
//! | `objects` | memory without a path: shared memory, memfds, removed files |
//! | [`files`] | one module for each kind of open file description |
//! | `lost` | processes that cannot be rebuilt, and how the others are |
//! | `gone_path` | files that read as removed under the path they had |
//! | `processor` | on which processor the work is done
//! | `thaw` | in which order they go on |
//! | [`process`] | what a process has as a whole |
//! | [`thread`] | what each thread has of its own |
//! | [`supervisor`] | the process outside of the world: PID 1 of the new kernel |
#![forbid(unsafe_code)]

mod booted;
mod calls;
mod error;
pub mod files;
mod gone_path;
mod ipc;
mod lost;
pub mod memory;
mod numbers;
mod objects;
pub mod process;
mod processor;
mod restore;
mod room;
mod scratch;
pub mod stages;
pub mod supervisor;
mod task;
mod thaw;
pub mod thread;
pub mod tree;

pub use error::{ResurrectError, Subject};
pub use lost::{Lost, restore_most};
pub use numbers::{are_enough, is_one_left, suffice};
pub use restore::{Born, Filled, Options, restore};
pub use thaw::World;
