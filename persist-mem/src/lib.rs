//! What outlives the kernel.
