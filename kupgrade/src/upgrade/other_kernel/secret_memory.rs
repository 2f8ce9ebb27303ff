//! Whether it has secret memory (memfd_secret(2)).

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use persist_mem::manifest::{Backing, DescriptionKind, Manifest, Process, SharedKind};

/// Since when it need not be asked for.
const USUAL: Version = (6, 5);

/// Processes with secret memory, when it has none, or not without being asked for.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    if has_secrets(there) {
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
    let uses = |process: &Process| {
        process.live().is_some_and(|live| {
            live.files.iter().any(|file| opened(file.description))
                || live.mm.vmas.iter().any(|vma| is(&vma.backing))
        })
    };
    let reason = format!(
        "it has secret memory (memfd_secret), which Linux {} has not switched on",
        there.release
    );
    refuse(manifest, uses, "memory", &reason)
}

fn has_secrets(there: &OtherKernel) -> bool {
    let built = there.has("CONFIG_SECRETMEM").unwrap_or(true);
    let asked = there.argument("secretmem.enable");
    built
        && asked.map_or(there.version >= USUAL, |asked| {
            matches!(asked, "1" | "y" | "Y" | "on")
        })
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::*;

    #[test]
    fn secret_memory_is_asked_for_before_6_5() {
        let built = Some("CONFIG_SECRETMEM=y\n");
        let not_built = Some("# CONFIG_SECRETMEM is not set\n");
        for (release, config, line, wanted) in [
            ("6.12", built, "quiet", true),
            ("6.12", None, "", true),
            ("6.1", built, "", false),
            ("6.1", built, "secretmem.enable=1 quiet", true),
            ("6.12", built, "secretmem.enable=0", false),
            ("6.12", not_built, "", false),
        ] {
            let there = kernel(release, config, line);
            assert_eq!(has_secrets(&there), wanted, "{release} {config:?} {line}");
        }
    }
}
