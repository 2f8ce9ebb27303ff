//! What moves pages by itself is stopped: a frame found must be where it was found until the jump.

use initramfs::settings::chosen;
use std::path::{Path, PathBuf};

/// Settings and the value that stops what they control (Documentation/admin-guide/{mm,sysctl}).
const STILL: [(&str, &str); 5] = [
    // Merging pages of the same contents.
    ("/sys/kernel/mm/ksm/run", "0"),
    // NUMA balancing, as far as there is NUMA.
    ("/proc/sys/kernel/numa_balancing", "0"),
    // Compaction in the background.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    ("/proc/sys/vm/watermark_boost_factor", "0"),
    // Swapping out.
    ("/proc/sys/vm/swappiness", "0"),
];
/// Compaction of locked pages.
const LOCKED_PAGES: (&str, &str) = ("/proc/sys/vm/compact_unevictable_allowed", "0");

/// Directory of the switches of huge pages: `enabled`, and `hugepages-*/enabled` on newer kernels.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

/// Stopped until dropped.
#[derive(Debug)]
pub(super) struct Quiet {
    /// Files and what they held, in the order they were changed.
    before: Vec<(PathBuf, String)>,
}

/// Settings that are there, and the value that stops what they control.
fn still() -> impl Iterator<Item = (PathBuf, &'static str)> {
    // khugepaged runs as long as one size is enabled.
    let sizes = std::fs::read_dir(HUGE_PAGES)
        .into_iter()
        .flatten()
        .flatten();
    let sizes = sizes.map(|entry| entry.path().join("enabled"));
    let all = Path::new(HUGE_PAGES).join("enabled");
    let huge = sizes.chain([all]).filter(|path| path.exists());
    let settings = STILL
        .iter()
        .map(|(path, value)| (PathBuf::from(path), *value));
    settings.chain(huge.map(|path| (path, "never")))
}

impl Quiet {
    /// From here on compaction leaves locked pages, such as our own, where they are.
    pub(super) fn of_locked_pages() -> Quiet {
        let mut quiet = Quiet { before: Vec::new() };
        quiet.set(Path::new(LOCKED_PAGES.0), LOCKED_PAGES.1);
        quiet
    }

    /// Stops what can be stopped. What is not there, or cannot be changed, moves nothing or is
    /// found by the last look at the pages.
    pub(super) fn of_all_pages() -> Quiet {
        let mut quiet = Quiet { before: Vec::new() };
        for (path, value) in still() {
            quiet.set(&path, value);
        }
        quiet
    }

    /// Takes note of all that is ever stopped, without stopping it: it is put back as it is now when dropped.
    pub(super) fn noted() -> Quiet {
        let locked = (PathBuf::from(LOCKED_PAGES.0), LOCKED_PAGES.1);
        let all = core::iter::once(locked).chain(still());
        let noted = |(path, _): (PathBuf, &str)| {
            let text = std::fs::read_to_string(&path).ok()?;
            Some((path, chosen(&text).to_owned()))
        };
        Quiet {
            before: all.filter_map(noted).collect(),
        }
    }

    /// Leaves everything as it is.
    pub(super) fn forget(mut self) {
        self.before.clear();
    }

    fn set(&mut self, path: &Path, value: &str) {
        let Ok(text) = std::fs::read_to_string(path) else {
            return;
        };
        let old = chosen(&text);
        if old == value {
            return;
        }
        match std::fs::write(path, value) {
            Ok(()) => self.before.push((path.to_owned(), old.to_owned())),
            Err(error) => log::warn!("{}: {error}", path.display()),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (path, value) in self.before.drain(..).rev() {
            if let Err(error) = std::fs::write(&path, &value) {
                log::error!("{} was {value} and is not again: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_in_reverse() {
        let path = std::env::temp_dir().join(format!("quiet-{}", std::process::id()));
        std::fs::write(&path, "always [madvise] never\n").unwrap();
        let mut quiet = Quiet { before: Vec::new() };
        quiet.set(&path, "never");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "never");
        quiet.set(&path, "other");
        quiet.set(&path.with_extension("none"), "0");
        drop(quiet);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "madvise");
        std::fs::remove_file(path).unwrap();
    }
}
