//! The last steps: file systems to disk, the manifest made valid, the jump itself.

use super::fault::{self, Spoil};
use super::pin_down::Pinned;
use super::plan::Plan;
use anyhow::{Context, Result};
use persist_mem::frames::ManifestPlace;
use resurrect::supervisor::control::{self, Request};
use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Inode of the first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xeffffffc;

pub(super) fn jump(
    pinned: &Pinned,
    plan: &mut Plan<'_>,
    place: &ManifestPlace,
) -> Result<Infallible> {
    nix::unistd::sync();
    let mut block = pinned.block.clone();
    block.sealed = sys::clock::tsc();
    if fault::spoil() != Some(Spoil::Missing) {
        place.seal(&mut plan.frames, &block)?;
    }
    if fault::spoil() == Some(Spoil::Version) {
        foreign_version(plan, place, &block)?;
    }
    if in_first_pid_namespace()? {
        return sys::kexec::jump().context("reboot(2) with LINUX_REBOOT_CMD_KEXEC");
    }
    // reboot(2) of a PID namespace only ends the namespace; outside of it is who can.
    let answer = control::ask(Path::new(control::SOCKET), Request::Jump)?;
    anyhow::bail!("the supervisor did not jump: {answer}")
}

fn in_first_pid_namespace() -> Result<bool> {
    let found = std::fs::metadata("/proc/self/ns/pid").context("looking for our PID namespace")?;
    Ok(found.ino() == FIRST_PID_NAMESPACE)
}

/// Writes the first page again with a version nobody knows, for tests.
fn foreign_version(
    plan: &mut Plan<'_>,
    place: &ManifestPlace,
    block: &persist_mem::superblock::Superblock,
) -> Result<()> {
    for (address, mut bytes) in block.encode()? {
        if address == place.address() {
            bytes[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
            plan.frames.write(address / sys::PAGE_SIZE_U64, &bytes)?;
        }
    }
    Ok(())
}
