//! What outlives the kernel.

pub mod blocks;
pub mod filters;
pub mod firmware;
pub mod format;
pub mod frames;
pub mod handback;
pub mod manifest;
pub mod meminfo;
pub mod mounts;
pub mod page_sums;
pub mod pages_file;
pub mod phys_store;
pub mod physmem;
pub mod push_out;
pub mod ranges;
pub mod rings;
pub mod room;
pub mod store;
pub mod superblock;
pub mod usage;
pub mod window;
