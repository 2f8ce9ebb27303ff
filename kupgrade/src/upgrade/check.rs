//! May this host be upgraded to this kernel? Nothing is touched.

use super::other_kernel::OtherKernel;
use super::{SYS, room};
use crate::patience::{NotCarried, patiently};
use anyhow::{Context, Result, bail};
use freezer::proc;
use initramfs::interrupts::{self, Interrupt};
use initramfs::modules::{self, HostUse, ModulePlan, ModuleTree};
use initramfs::{disks, huge_pages, mounts, network, policies, settings, swaps};
use kexec_loader::KernelImage;
use kexec_loader::boot_params::OldParams;
use persist_mem::firmware::FirmwareMap;
use persist_mem::manifest::{DiskSettings, HugePool, Swap};
use persist_mem::mounts::MountTable;
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
    /// Settings of block devices.
    pub(super) disks: Vec<DiskSettings>,
    /// Where interrupts are served.
    pub(super) interrupts: Vec<Interrupt>,
    /// Pools of huge pages.
    pub(super) huge_pools: Vec<HugePool>,
    /// Swap areas.
    pub(super) swaps: Vec<Swap>,
    pub(super) mem_total: u64,
    /// `root=` by identity, for an ordinary boot should the processes not be carried.
    pub(super) root: Option<String>,
}

pub(super) fn check(kernel: &Path) -> Result<Host> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can change the kernel");
    }
    let image = KernelImage::read(kernel)?;
    let lacks = OtherKernel::of(&image.release, "").lacks();
    if !lacks.is_empty() {
        let lacks = lacks.join(", ");
        bail!(
            "Linux {} is built without {lacks}: no process could be rebuilt on it; choose another kernel",
            image.release
        );
    }
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
        settings: settings::capture(Path::new("/")),
        disks: disks::capture(sys),
        interrupts: interrupts::capture(Path::new("/proc")),
        huge_pools: huge_pages::capture(sys),
        swaps: swaps::capture(Path::new("/proc")),
        mem_total: persist_mem::meminfo::mem_total().unwrap_or(0),
        root: None,
    };
    let mounts = mounts::capture::survey()?;
    patiently(|| refuse_what_is_not_carried(&host, &mounts))?;
    Ok(Host {
        root: root_word(&mounts),
        ..host
    })
}

/// Processes, mounts, network: everything that stands in the way, at once.
fn refuse_what_is_not_carried(host: &Host, table: &MountTable) -> Result<()> {
    let mut found = Vec::new();
    let me = Pid(nix::unistd::getpid().as_raw());
    let mut pids = proc::everyone()?;
    pids.retain(|pid| *pid != me);
    let mut checked = freezer::check::HostCheck::new();
    for pid in &pids {
        let refusals = checked.check(*pid)?;
        found.extend(refusals.iter().map(ToString::to_string));
    }
    let shared = freezer::tables::shared(&pids)?;
    found.extend(shared.iter().map(ToString::to_string));
    found.extend(of_host(table, &host.swaps));
    Ok(NotCarried::unless_empty(found)?)
}

/// What stands in the way but for processes, in words.
pub(crate) fn of_host(table: &MountTable, swaps: &[Swap]) -> Vec<String> {
    let mounts = mounts::check(table);
    let mut found: Vec<String> = mounts.iter().map(ToString::to_string).collect();
    found.extend(network::check());
    found.extend(swaps::check(swaps));
    found.extend(policies::check());
    found.extend(room::Held::read().and_then(room::Held::too_much));
    found
}

/// Names of devices change from kernel to kernel; the identity of the root file system does not.
fn root_word(table: &MountTable) -> Option<String> {
    let root = table.mounts.iter().rfind(|mount| mount.point == b"/")?;
    let disk = table.disks.iter().find(|d| d.device == root.device)?;
    (!disk.uuid.is_empty()).then(|| format!("root=UUID={}", disk.uuid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::mounts::{DeviceNumber, Disk, Mount};

    #[test]
    fn the_root_is_named_by_identity() {
        let device = DeviceNumber {
            major: 254,
            minor: 1,
        };
        let root = Mount {
            id: 1,
            parent: 0,
            device,
            root: b"/".to_vec(),
            point: b"/".to_vec(),
            flags: 0,
            shared: None,
            master: None,
            unbindable: false,
            kind: "ext4".into(),
            source: b"/dev/vda1".to_vec(),
            super_options: Vec::new(),
        };
        let mut table = MountTable {
            mounts: vec![root],
            ..MountTable::default()
        };
        assert_eq!(root_word(&table), None, "a file system without a disk");
        table.disks.push(Disk {
            device,
            name: "vda1".into(),
            kind: "ext4".into(),
            uuid: "12-34".into(),
        });
        assert_eq!(root_word(&table).as_deref(), Some("root=UUID=12-34"));
    }
}
