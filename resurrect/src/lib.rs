//! Manifest to running processes.

pub mod supervisor;
