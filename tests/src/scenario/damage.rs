//! Failures after the jump: the processes are lost, the host is not. It boots to its init and
//! says on the console what happened.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Host;
use crate::jump;
use crate::programs::SHORT;
use crate::rig::Rig;

/// How long the other kernel may take until its own init has a shell.
const LIMIT: Duration = Duration::from_secs(120);

/// Jumps with a manifest that kupgrade itself spoils as it writes it
/// (`KUPGRADE_FAULT=manifest:HOW`).
fn spoiled(host: &mut Host, rig: &Rig, how: &str, word: &str) -> Result<()> {
    let to = rig.kernel("6.12")?;
    host.vm.shell.must("lab_token=before", SHORT)?;
    host.vm.shell.type_line(&format!(
        "KUPGRADE_FAULT=manifest:{how} kupgrade --kernel {} --verify",
        to.guest_vmlinuz()
    ))?;
    host.vm
        .wait_console("kupgrade: the processes could not be carried", LIMIT)?;
    host.vm
        .shell
        .greet(LIMIT)
        .context("no shell after the failure")?;
    let now = jump::release(&mut host.vm)?;
    if now != to.release {
        bail!("the host runs {now}: it did not jump");
    }
    let token = host.vm.shell.must("echo \"token=$lab_token\"", SHORT)?;
    if token.contains("before") {
        bail!("the shell was carried: the manifest was not spoiled");
    }
    let console = host.vm.console_text();
    if !console.to_lowercase().contains(word) {
        bail!("the report on the console does not say '{word}'");
    }
    if console.contains("Kernel panic") {
        bail!("the new kernel panicked");
    }
    Ok(())
}

/// One bit of a record is another.
pub(super) fn bit_flip(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "bit-flip", "crc")
}

/// Nothing is where the command line says.
pub(super) fn missing(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "missing", "no manifest")
}

/// Written by a version that is not known.
pub(super) fn foreign_version(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "version", "version")
}
