//! Whether it knows the rights that processes have given up with Landlock.

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use persist_mem::manifest::{DescriptionKind, Manifest, Process, Rights};

/// Since when a kernel has how many rights: of files, of the network, scopes (landlock(7)).
const HISTORY: [(Version, [u32; 3]); 7] = [
    ((5, 13), [13, 0, 0]),
    ((5, 19), [14, 0, 0]),
    ((6, 2), [15, 0, 0]),
    ((6, 7), [15, 2, 0]),
    ((6, 10), [16, 2, 0]),
    ((6, 12), [16, 2, 2]),
    ((7, 1), [17, 2, 2]),
];

/// Processes whose domains it could not make.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    let known = known(there);
    let missing = |process: &Process| {
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
    let reason = format!(
        "it has given up rights with Landlock that Linux {} does not know, or has not switched on",
        there.release
    );
    refuse(manifest, missing, "landlock", &reason)
}

/// What it knows at least.
fn known(there: &OtherKernel) -> Rights {
    const ALL: Rights = Rights {
        fs: u64::MAX,
        net: u64::MAX,
        scope: u64::MAX,
    };
    if !has_landlock(there) {
        Rights::default()
    } else if there.version >= there.here {
        ALL
    } else {
        rights(there.version)
    }
}

/// Whether it is built with Landlock, and its command line or configuration names that.
fn has_landlock(there: &OtherKernel) -> bool {
    let (Some(config), Some(built)) = (&there.config, there.has("CONFIG_SECURITY_LANDLOCK")) else {
        return true;
    };
    let named = |modules: &str| modules.split([',', '"']).any(|name| name == "landlock");
    let mut lines = config.lines();
    let usual = lines.find_map(|line| line.strip_prefix("CONFIG_LSM="));
    built && there.argument("lsm").or(usual).is_some_and(named)
}

fn rights(version: Version) -> Rights {
    let known = HISTORY.iter().rev().find(|(since, _)| *since <= version);
    let [fs, net, scope] = known.map_or([0; 3], |(_, counts)| counts.map(|count| (1 << count) - 1));
    Rights { fs, net, scope }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::super::version;
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
        for (config, line, wanted) in [
            (Some(config), "ro quiet", true),
            (Some(config), "ro lsm=yama", false),
            (Some("CONFIG_LSM=\"landlock\"\n"), "", false),
            (Some("CONFIG_SECURITY_LANDLOCK=y\n"), "", false),
            (None, "", true),
        ] {
            let there = kernel("6.12", config, line);
            assert_eq!(has_landlock(&there), wanted, "{config:?} {line}");
        }
    }
}
