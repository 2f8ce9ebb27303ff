//! Whether the other kernel knows the rights that processes have given up with Landlock.

use freezer::Refusal;
use persist_mem::manifest::{DescriptionKind, Manifest, Process, Rights};
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
pub(super) fn version(release: &str) -> (u32, u32) {
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
