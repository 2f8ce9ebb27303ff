//! This process's own limits.

use nix::sys::resource::Resource;
use std::path::Path;
use sys::limits::raise;

/// Most descriptors of a process, whoever it is (proc_sys_fs(5)).
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// Allows this process as many descriptors as there may be: it holds a copy of everything that those it stops
/// have open. Whoever gets less of it than is needed notices at the first descriptor too many.
pub(crate) fn allow_descriptors() {
    if let Err(errno) = raise(Resource::RLIMIT_NOFILE, nr_open(Path::new(NR_OPEN))) {
        log::warn!("raising the limit of open files: {errno}");
    }
}

/// What the kernel allows at the most; 0 when it does not tell.
fn nr_open(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{getrlimit, setrlimit};

    #[test]
    fn all_that_may_be_had_is_taken() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(64), hard).unwrap();
        allow_descriptors();
        let (soft, now) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let most = nr_open(Path::new(NR_OPEN));
        assert!(most > 0 && soft >= hard.min(most), "{soft} {now} {most}");
        assert_eq!(nr_open(Path::new("/nonexistent")), 0);
    }
}
