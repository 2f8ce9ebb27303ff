//! What processes have that the other kernel does not know, or has not switched on.
//!
//! | where | what |
//! |---|---|
//! | [`confinement`] | profiles of AppArmor |
//! | [`landlock`] | rights given up with landlock(7) |
//! | [`needed`] | what nothing can be rebuilt without |
//! | [`secret_memory`] | memfd_secret(2) |
//! | [`timers`] | chosen ids of POSIX timers |
//! | [`udp_lite`] | UDP-Lite |
//! | [`userfaults`] | features of userfaultfd(2) |

mod confinement;
mod landlock;
mod needed;
mod secret_memory;
mod timers;
mod udp_lite;
mod userfaults;

use freezer::Refusal;
use persist_mem::manifest::{Manifest, Process};
use persist_mem::rings::Layout;
use std::path::Path;

/// The first two numbers of a release.
type Version = (u32, u32);

/// The kernel that is jumped to, as far as this one tells.
pub(super) struct OtherKernel {
    release: String,
    version: Version,
    /// The version of the kernel that runs.
    here: Version,
    /// Its configuration, where that lies beside it (`/boot/config-RELEASE`).
    config: Option<String>,
    /// Its command line, which is that of the kernel that runs.
    command_line: String,
}

impl OtherKernel {
    /// What is known of the one with this release; `here` runs.
    pub(super) fn of(release: &str, here: &str) -> OtherKernel {
        let config = Path::new("/boot").join(format!("config-{release}"));
        OtherKernel {
            release: release.to_owned(),
            version: version(release),
            here: version(here),
            config: std::fs::read_to_string(config).ok(),
            command_line: std::fs::read_to_string("/proc/cmdline").unwrap_or_default(),
        }
    }

    /// Processes that it could not carry on.
    pub(super) fn refusals(&self, manifest: &Manifest) -> Vec<Refusal> {
        let mut found = landlock::refusals(self, manifest);
        found.extend(confinement::refusals(self, manifest));
        found.extend(timers::refusals(self, manifest));
        found.extend(secret_memory::refusals(self, manifest));
        found.extend(udp_lite::refusals(self, manifest));
        found.extend(userfaults::refusals(self, manifest));
        found
    }

    /// Whether its configuration sets an option to `y`. None where the configuration is not known.
    fn has(&self, option: &str) -> Option<bool> {
        let wanted = format!("{option}=y");
        let config = self.config.as_ref()?;
        Some(config.lines().any(|line| line == wanted))
    }

    /// The value of the last word of its command line that begins with `key` and `=`.
    fn argument(&self, key: &str) -> Option<&str> {
        let mut words = self.command_line.split_whitespace().rev();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

/// The processes of a manifest of which something is true.
fn refuse(
    manifest: &Manifest,
    who: impl Fn(&Process) -> bool,
    resource: &str,
    reason: &str,
) -> Vec<Refusal> {
    let found = manifest.processes.iter().filter(|process| who(process));
    let refusal = |process: &Process| Refusal {
        pid: process.pid,
        comm: freezer::proc::comm(process.pid),
        resource: resource.to_owned(),
        reason: reason.to_owned(),
    };
    found.map(refusal).collect()
}

/// How the kernel that runs lays out rings of io_uring, if the other one does that otherwise.
pub(super) fn moved_rings(release: &str, here: &str) -> Option<Layout> {
    let [there, here] = [release, here].map(|it| Layout::of(version(it) >= (6, 6)));
    (there != here).then_some(here)
}

/// The first two numbers of a release, 0 for what is none.
pub(super) fn version(release: &str) -> Version {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || {
        numbers
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0)
    };
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One with this configuration and command line; 6.12 runs.
    pub(super) fn kernel(release: &str, config: Option<&str>, command_line: &str) -> OtherKernel {
        OtherKernel {
            release: release.to_owned(),
            version: version(release),
            here: (6, 12),
            config: config.map(str::to_owned),
            command_line: command_line.to_owned(),
        }
    }

    #[test]
    fn versions_are_read_from_releases() {
        for (release, wanted) in [
            ("6.12.118+deb13-cloud-amd64", (6, 12)),
            ("6.1.0-44-amd64", (6, 1)),
            ("6.16", (6, 16)),
            ("7", (7, 0)),
            ("strange", (0, 0)),
        ] {
            assert_eq!(version(release), wanted, "{release}");
        }
    }

    #[test]
    fn the_last_word_counts() {
        let kernel = kernel(
            "7.0",
            Some("CONFIG_A=y\n# CONFIG_B is not set\n"),
            "x=1 xy=3 x=2",
        );
        assert_eq!(kernel.argument("x"), Some("2"));
        assert_eq!(kernel.argument("z"), None);
        assert_eq!(
            (kernel.has("CONFIG_A"), kernel.has("CONFIG_B")),
            (Some(true), Some(false))
        );
    }
}
