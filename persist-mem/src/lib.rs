//! What outlives the kernel.

pub mod handback;
pub mod physmem;
