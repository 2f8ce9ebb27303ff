//! Kernel image to jump.
