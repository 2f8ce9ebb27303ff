//! May this host be upgraded to this kernel? Nothing is touched.

use super::SYS;
use anyhow::{Context, Result, bail};
use freezer::proc;
use initramfs::modules::{self, HostUse, ModulePlan, ModuleTree};
use initramfs::{mounts, network, settings};
use kexec_loader::KernelImage;
use kexec_loader::boot_params::OldParams;
use persist_mem::firmware::FirmwareMap;
use std::path::Path;
use sys::Pid;

/// What was found out about the host and the kernel.
pub(super) struct Host {
    pub(super) image: KernelImage,
    pub(super) modules: ModulePlan,
    pub(super) firmware: FirmwareMap,
    pub(super) old_params: OldParams,
    pub(super) cmdline: String,
    /// Settings of the kernel, as they were before anything was touched.
    pub(super) settings: Vec<(String, String)>,
    pub(super) mem_total: u64,
}

pub(super) fn check(kernel: &Path) -> Result<Host> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can change the kernel");
    }
    let image = KernelImage::read(kernel)?;
    kexec_loader::stage::allowed()?;
    let sys = Path::new(SYS);
    let tree = ModuleTree::open(Path::new("/"), &image.release)
        .with_context(|| format!("the modules of {}", image.release))?;
    let modules = modules::plan(&tree, &HostUse::scan(Path::new("/proc"), sys))?;
    for missing in &modules.missing {
        log::info!(
            "{} has no {} ({})",
            image.release,
            missing.name,
            missing.why
        );
    }
    let host = Host {
        image,
        modules,
        firmware: FirmwareMap::read(sys)?,
        old_params: OldParams::read(sys)?,
        cmdline: std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?,
        settings: settings::capture(Path::new("/proc/sys")),
        mem_total: persist_mem::handback::mem_total().unwrap_or(0),
    };
    refuse_what_is_not_carried()?;
    Ok(host)
}

/// Processes, mounts, network: everything that stands in the way, at once.
fn refuse_what_is_not_carried() -> Result<()> {
    let mut found = Vec::new();
    let me = Pid(nix::unistd::getpid().as_raw());
    let mut pids = proc::everyone()?;
    pids.retain(|pid| *pid != me);
    for pid in &pids {
        let refusals = freezer::check::check(*pid)?;
        found.extend(refusals.iter().map(ToString::to_string));
    }
    let shared = freezer::tables::shared(&pids)?;
    found.extend(shared.iter().map(ToString::to_string));
    let table = mounts::capture::survey()?;
    found.extend(mounts::check(&table).iter().map(ToString::to_string));
    found.extend(network::check());
    if !found.is_empty() {
        bail!("not carried, nothing was touched:\n{}", found.join("\n"));
    }
    Ok(())
}
