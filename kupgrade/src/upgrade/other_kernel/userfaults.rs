//! Whether it knows what programs want of userfaultfd(2).

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use persist_mem::manifest::{DescriptionKind, Manifest, Process};

/// Since when a kernel has how many features (include/uapi/linux/userfaultfd.h).
const HISTORY: [(Version, u32); 5] = [
    ((6, 0), 13),
    ((6, 4), 14),
    ((6, 6), 15),
    ((6, 7), 16),
    ((6, 8), 17),
];

/// Processes that have one with features it does not know.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    let known = match there.version >= there.here {
        true => u64::MAX,
        false => features(there.version),
    };
    let beyond = |process: &Process| {
        let held = process.live().into_iter().flat_map(|live| &live.files);
        let mut kinds = held.filter_map(|file| manifest.description(file.description));
        kinds.any(|one| match &one.kind {
            DescriptionKind::Userfault(fault) => fault.features.unwrap_or(0) & !known != 0,
            _ => false,
        })
    };
    let reason = format!(
        "it uses features of userfaultfd that Linux {} does not know",
        there.release
    );
    refuse(manifest, beyond, "userfaultfd", &reason)
}

/// What a kernel knows at least.
fn features(version: Version) -> u64 {
    let known = HISTORY.iter().rev().find(|(since, _)| *since <= version);
    known.map_or(0, |(_, count)| (1 << count) - 1)
}

#[cfg(test)]
mod tests {
    use super::super::version;
    use super::*;

    #[test]
    fn what_kernels_know() {
        let of = |release| features(version(release));
        assert_eq!(of("6.1.0-44-amd64"), 0x1fff);
        assert_eq!(of("6.12.118+deb13-cloud-amd64"), 0x1_ffff);
        assert_eq!(of("strange"), 0);
    }
}
