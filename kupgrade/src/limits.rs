//! This process's own limits.

/// Allows this process as many descriptors as there may be: it holds a copy of everything that those it stops
/// have open.
pub(crate) fn allow_descriptors() {
    if let Err(errno) = sys::limits::allow_descriptors() {
        log::warn!("raising the limit of open files: {errno}");
    }
}
