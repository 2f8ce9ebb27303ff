//! The host's own programs, installed with apt when absent.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::tool::{self, Tool};
use crate::ui;

/// A program and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("gzip", "gzip"),
    ("gpgv", "gpgv"),
    ("setpriv", "util-linux"),
];

/// The keys that Debian's archives are signed with.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs what is missing.
pub(super) fn ensure() -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !tool::exists(program))
        .map(|(_, package)| *package)
        .collect();
    if !std::path::Path::new(KEYRING).exists() {
        missing.push("debian-archive-keyring");
    }
    if missing.is_empty() {
        return Ok(());
    }
    ui::step(&format!("installing {}", missing.join(", ")));
    Tool::root("apt-get", Duration::from_secs(300))
        .arg("update")
        .run()
        .context("apt-get update failed")?;
    Tool::root("apt-get", Duration::from_secs(900))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "--no-install-recommends"])
        .args(missing)
        .run()
        .context("the lab's programs could not be installed")
}
