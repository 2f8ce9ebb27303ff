//! Stops processes and describes them.
//!
//! [`freeze()`] seizes every thread of a process tree, [`freeze_all`] of the whole host, and keeps
//! them stopped until the returned value is dropped; [`capture()`] turns the stopped processes into
//! a [`persist_mem::manifest::Manifest`], [`capture_pages`] adds where their pages are. What can be
//! read from outside is read from outside (`/proc`, copies
//! of descriptors, ptrace); the rest are system calls run in one batch inside each thread.
//!
//! | where | what |
//! |---|---|
//! | [`mod@freeze`] | stopping, and letting go again |
//! | [`check`] | what could not be carried, found without stopping anything |
//! | [`capture`] | process, threads, memory, signals, timers, credentials |
//! | [`files`] | one module for each kind of open file description |
//! | [`tables`] | what is shared by clone(2) flags |
//! | `objects`, `ipc` | shared memory, removed files; semaphores and messages |
//! | `kernel` | what no interface shows, read from the kernel's memory |
//! | [`proc`] | byte-exact parsers of `/proc` files |
#![forbid(unsafe_code)]

pub mod capture;
pub mod check;
mod confinement;
mod core_dump;
mod diag;
mod error;
mod external;
pub mod files;
pub mod freeze;
mod held_groups;
mod ids;
mod ipc;
mod kernel;
mod keyrings;
mod landlock;
mod moved_rings;
mod namespaces;
mod nettcp;
mod objects;
mod ports;
mod probes;
pub mod proc;
mod seccomp_filter;
mod sink;
pub mod tables;

pub use capture::{Prepared, capture, capture_host, capture_pages, capture_with};
pub use error::{FreezerError, Refusal};
pub use external::Externals;
pub use files::{
    silence_connections, take_backlogs, take_device_messages, take_packets, untaken_backlogs,
};
pub use freeze::{Frozen, freeze, freeze_all, tracer_of};
pub use moved_rings::{refuse_lost_rings, refuse_offsets_in_use};
pub use objects::Objects;
pub use sink::{PageRun, PageSink, PageSource};
