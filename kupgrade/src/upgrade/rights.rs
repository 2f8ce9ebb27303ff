//! Whether the other kernel knows the rights that processes have given up with Landlock.

use freezer::Refusal;
use persist_mem::manifest::{Backing, DescriptionKind, Manifest, Process, Rights, SharedKind};
use std::path::Path;

/// Since when a kernel has how many rights: of files, of the network, scopes (landlock(7)).
const HISTORY: [((u32, u32), [u32; 3]); 7] = [
    ((5, 13), [13, 0, 0]),
    ((5, 19), [14, 0, 0]),
    ((6, 2), [15, 0, 0]),
    ((6, 7), [15, 2, 0]),
    ((6, 10), [16, 2, 0]),
    ((6, 12), [16, 2, 2]),
    ((7, 1), [17, 2, 2]),
];

/// The two kernels.
pub(super) struct Kernels<'a> {
    pub(super) here: &'a str,
    pub(super) there: &'a str,
}

/// Processes whose domains the other kernel could not make.
pub(super) fn refusals(kernels: &Kernels<'_>, manifest: &Manifest) -> Vec<Refusal> {
    let there = kernels.there;
    let known = kernels.known();
    let missing = |process: &&Process| {
        let Some(live) = process.live() else {
            return false;
        };
        let beyond = |rights: Rights| {
            rights.fs & !known.fs != 0
                || rights.net & !known.net != 0
                || rights.scope & !known.scope != 0
        };
        let denied = |id| {
            let description = manifest.description(id);
            description.is_some_and(|one| match &one.kind {
                DescriptionKind::Ruleset(layer) => beyond(layer.handled),
                _ => one.denied & !known.fs != 0,
            })
        };
        live.layers.iter().any(|layer| beyond(layer.handled))
            || live.files.iter().any(|file| denied(file.description))
    };
    let refusal = |process: &Process| Refusal {
        pid: process.pid,
        comm: freezer::proc::comm(process.pid),
        resource: "landlock".into(),
        reason: format!(
            "it has given up rights with Landlock that Linux {there} does not know, or has not switched on"
        ),
    };
    let found = manifest.processes.iter().filter(missing);
    found.map(refusal).collect()
}

/// Processes with secret memory (memfd_secret(2)), when the other kernel has none, or not without being asked for.
pub(super) fn secrets(there: &str, manifest: &Manifest) -> Vec<Refusal> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let config = std::fs::read_to_string(Path::new("/boot").join(format!("config-{there}")));
    if has_secrets(version(there), config.ok().as_deref(), &line) {
        return Vec::new();
    }
    let objects = manifest.shared_objects.iter();
    let secret = objects.filter(|object| matches!(object.kind, SharedKind::Secret { .. }));
    let ids: Vec<u32> = secret.map(|object| object.id).collect();
    let is = |backing: &Backing| matches!(backing, Backing::Object { object, .. } if ids.contains(object));
    let opened = |id| {
        let kind = manifest.description(id).map(|one| &one.kind);
        matches!(kind, Some(DescriptionKind::Memfd { object }) if ids.contains(object))
    };
    let uses = |process: &&Process| {
        process.live().is_some_and(|live| {
            live.files.iter().any(|file| opened(file.description))
                || live.mm.vmas.iter().any(|vma| is(&vma.backing))
        })
    };
    let refusal = |process: &Process| Refusal {
        pid: process.pid,
        comm: freezer::proc::comm(process.pid),
        resource: "memory".into(),
        reason: format!(
            "it has secret memory (memfd_secret), which Linux {there} has not switched on"
        ),
    };
    let found = manifest.processes.iter().filter(uses);
    found.map(refusal).collect()
}

/// Whether a kernel with this configuration and command line has secret memory.
fn has_secrets(version: (u32, u32), config: Option<&str>, line: &str) -> bool {
    /// Since when it need not be asked for.
    const USUAL: (u32, u32) = (6, 5);
    let built = config.is_none_or(|text| text.lines().any(|line| line == "CONFIG_SECRETMEM=y"));
    let asked = line
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("secretmem.enable="));
    built
        && asked.map_or(version >= USUAL, |asked| {
            matches!(asked, "1" | "y" | "Y" | "on")
        })
}

impl Kernels<'_> {
    /// What the other kernel knows at least.
    fn known(&self) -> Rights {
        const ALL: Rights = Rights {
            fs: u64::MAX,
            net: u64::MAX,
            scope: u64::MAX,
        };
        let config =
            std::fs::read_to_string(Path::new("/boot").join(format!("config-{}", self.there)));
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        if config.is_ok_and(|config| !switches_on(&config, &line)) {
            return Rights::default();
        }
        match version(self.there) {
            there if there >= version(self.here) => ALL,
            there => rights(there),
        }
    }
}

/// Whether a kernel with this configuration and command line has Landlock.
fn switches_on(config: &str, line: &str) -> bool {
    let named = |modules: &str| modules.split([',', '"']).any(|name| name == "landlock");
    let asked = line
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("lsm="));
    let usual = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_LSM="));
    config
        .lines()
        .any(|line| line == "CONFIG_SECURITY_LANDLOCK=y")
        && asked.or(usual).is_some_and(named)
}

fn rights(version: (u32, u32)) -> Rights {
    let known = HISTORY.iter().rev().find(|(since, _)| *since <= version);
    let [fs, net, scope] = known.map_or([0; 3], |(_, counts)| counts.map(|count| (1 << count) - 1));
    Rights { fs, net, scope }
}

/// The first two numbers of a release, 0 for what is none.
fn version(release: &str) -> (u32, u32) {
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

    #[test]
    fn secret_memory_is_asked_for_before_6_5() {
        let built = Some("CONFIG_SECRETMEM=y\n");
        assert!(has_secrets((6, 12), built, "quiet"));
        assert!(has_secrets((6, 12), None, ""));
        assert!(!has_secrets((6, 1), built, ""));
        assert!(has_secrets((6, 1), built, "secretmem.enable=1 quiet"));
        assert!(!has_secrets((6, 12), built, "secretmem.enable=0"));
        assert!(!has_secrets(
            (6, 12),
            Some("# CONFIG_SECRETMEM is not set\n"),
            ""
        ));
    }

    #[test]
    fn what_kernels_know() {
        let of = |release| rights(version(release));
        assert_eq!(of("6.1.0-44-amd64").fs, (1 << 14) - 1);
        assert_eq!(of("6.1.0-44-amd64").net, 0);
        let newer = of("6.12.118+deb13-cloud-amd64");
        assert_eq!((newer.fs, newer.net, newer.scope), ((1 << 16) - 1, 3, 3));
        assert_eq!(of("strange"), Rights::default());
    }

    #[test]
    fn where_it_is_switched_on() {
        let config = "CONFIG_SECURITY_LANDLOCK=y\nCONFIG_LSM=\"landlock,yama\"\n";
        assert!(switches_on(config, "ro quiet"));
        assert!(!switches_on(config, "ro lsm=yama"));
        assert!(!switches_on("CONFIG_LSM=\"landlock\"\n", ""));
        assert!(!switches_on("CONFIG_SECURITY_LANDLOCK=y\n", ""));
    }
}
