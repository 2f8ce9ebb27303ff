//! This process's own limits.

use nix::sys::resource::{Resource, getrlimit};

/// Allows this process as many descriptors as there may be: it holds a copy of everything that those it stops
/// have open.
pub(crate) fn allow_descriptors() {
    if let Err(errno) = sys::limits::allow_descriptors() {
        log::warn!("raising the limit of open files: {errno}");
    }
}

/// What is to be said when they were not enough.
pub(crate) fn too_few_descriptors() -> String {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    format!(
        "it may have {allowed} files open at a time and needs more for these processes: raise the hard limit \
         (RLIMIT_NOFILE; ulimit -Hn, or LimitNOFILE= of a service) and try again"
    )
}
