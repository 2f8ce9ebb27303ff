//! From a kernel image to a staged kexec: what the new kernel finds when it starts.
//!
//! | module | what it does |
//! |---|---|
//! | [`image`] | reads a bzImage |
//! | [`e820`] | the memory map the new kernel is given |
//! | [`cmdline`] | its command line |
//! | [`boot_params`] | the page of parameters and the data behind it (Documentation/arch/x86/boot.rst) |
//! | [`placement`] | where kernel, archive and parameters lie in the boot window |
//! | [`stage`] | kexec_load(2), taken back when the upgrade does not happen |

#![forbid(unsafe_code)]

pub mod boot_params;
pub mod cmdline;
pub mod e820;
pub mod image;
pub mod placement;
pub mod stage;

pub use image::{ImageError, KernelImage};
pub use placement::PlacementError;
pub use stage::{StageError, Staged, stage};
