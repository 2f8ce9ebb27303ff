//! Manifest to running processes.
