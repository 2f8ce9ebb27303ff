//! The overlay initramfs: what the new kernel starts from, and the building blocks of its
//! `/init`.
//!
//! | module | what it does |
//! |---|---|
//! | [`cpio`] | writes the archive |
//! | [`modules`] | which modules the new kernel needs, in load order |
//! | [`superblock`] | who a file system on a disk is |
//! | [`mounts`] | the host's mounts, recorded and made again |
//! | [`network`] | the host's interfaces, addresses, routes, recorded and set up again |
//! | [`huge_pages`] | pools of huge pages, likewise |
//! | [`swaps`] | swap areas, likewise |
//! | [`formats`] | interpreters of foreign formats of programs, likewise |
//! | [`disks`] | settings of block devices, likewise |
//! | [`interrupts`] | which processors serve interrupts, likewise |
//! | [`policies`] | policies of AppArmor, likewise |
//! | [`settings`] | settings of the kernel, likewise |
//! | [`init`] | `/init`: from the new kernel's first process to the running world |
//! | [`tree`] | contents of file systems in memory |
//! | [`early`] | what `/init` is made of, up to the ordinary boot as the last resort |

#![forbid(unsafe_code)]

pub mod cpio;
pub mod disks;
pub mod early;
pub mod formats;
pub mod huge_pages;
pub mod init;
pub mod interrupts;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod policies;
pub mod settings;
pub mod superblock;
pub mod swaps;
#[cfg(test)]
mod testdir;
pub mod tree;

pub use cpio::{Overlay, OverlayError};
