//! Whether the other kernel has secret memory (memfd_secret(2)).

use super::rights::version;
use freezer::Refusal;
use persist_mem::manifest::{Backing, DescriptionKind, Manifest, Process, SharedKind};
use std::path::Path;

/// Processes with secret memory (memfd_secret(2)), when the other kernel has none, or not without being asked for.
pub(super) fn refusals(there: &str, manifest: &Manifest) -> Vec<Refusal> {
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
}
