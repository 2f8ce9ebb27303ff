//! Whether it has UDP-Lite (udplite(7)).

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use nix::libc::IPPROTO_UDPLITE;
use persist_mem::manifest::{DescriptionKind, Manifest, Process};

/// Since when there is none.
const GONE: Version = (7, 1);

/// Processes with sockets of UDP-Lite, when it has none.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    if has_it(there) {
        return Vec::new();
    }
    let is = |id| {
        let kind = manifest.description(id).map(|one| &one.kind);
        matches!(kind, Some(DescriptionKind::Socket(socket)) if socket.protocol == IPPROTO_UDPLITE)
    };
    let uses = |process: &Process| {
        let mut tables = manifest.tables().filter(|table| table.pid == process.pid);
        tables.any(|table| table.files.iter().any(|file| is(file.description)))
    };
    let reason = format!(
        "it has a socket of UDP-Lite (protocol 136), which Linux {} does not have",
        there.release
    );
    refuse(manifest, uses, "a socket", &reason)
}

fn has_it(there: &OtherKernel) -> bool {
    there.version < GONE
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::*;

    #[test]
    fn kernels_before_7_1_have_it() {
        for (release, wanted) in [
            ("6.1.0-44-amd64", true),
            ("6.12.118+deb13-cloud-amd64", true),
            ("7.0.9", true),
            ("7.1.0", false),
            ("7.3.4+deb13-cloud-amd64", false),
        ] {
            assert_eq!(has_it(&kernel(release, None, "")), wanted, "{release}");
        }
    }
}
