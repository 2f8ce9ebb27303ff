//! The host's own programs, installed with apt when absent.

use std::time::Duration;

use anyhow::{Context, Result, bail};

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

/// Installs what is missing. What it replaces may take other programs away (qemu-system-x86 of one release a
/// qemu-utils of another), so it looks twice.
pub(super) fn ensure() -> Result<()> {
    for _ in 0..2 {
        let missing = missing();
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let missing = missing();
    if !missing.is_empty() {
        bail!("{} cannot be installed side by side", missing.join(", "));
    }
    Ok(())
}

/// Packages whose programs are not there.
fn missing() -> Vec<&'static str> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !tool::exists(program))
        .map(|(_, package)| *package)
        .collect();
    if !std::path::Path::new(KEYRING).exists() {
        missing.push("debian-archive-keyring");
    }
    missing
}

fn install(packages: &[&str]) -> Result<()> {
    ui::step(&format!("installing {}", packages.join(", ")));
    Tool::root("apt-get", Duration::from_secs(300))
        .arg("update")
        .run()
        .context("apt-get update failed")?;
    Tool::root("apt-get", Duration::from_secs(900))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        .run()
        .context("the lab's programs could not be installed")
}
