//! Kernel, archive and parameters are handed to the running kernel.

use super::check::Host;
use super::plan::Plan;
use anyhow::Result;
use kexec_loader::boot_params::{Addresses, SetupData, Told};
use kexec_loader::{Staged, cmdline, e820, placement};
use persist_mem::firmware::SETUP_DATA_TYPE;
use persist_mem::frames::ManifestPlace;
use persist_mem::superblock::CMDLINE_KEY;

pub(super) fn stage(host: &Host, plan: &Plan<'_>, place: &ManifestPlace) -> Result<Staged> {
    let mut words = vec![
        // The log of early boot goes through /dev/kmsg.
        "printk.devkmsg=on".to_owned(),
        // Struct pages of memory that is added lie in it: adding it needs no other memory.
        "memory_hotplug.memmap_on_memory=1".to_owned(),
        format!("{CMDLINE_KEY}={:#x}", place.address()),
    ];
    words.extend(host.root.clone());
    if let Ok(level) = std::env::var("KUPGRADE_LOG") {
        words.push(format!("{}={level}", initramfs::init::LOG_KEY));
    }
    let line = cmdline::build(&host.cmdline, &words, host.image.cmdline_max)?;
    let firmware: Vec<e820::Entry> = host
        .firmware
        .ranges
        .iter()
        .map(|range| e820::Entry {
            range: range.into(),
            kind: range.kind,
        })
        .collect();
    let told = Told {
        old: &host.old_params,
        image: &host.image,
        map: &e820::build(&firmware, plan.window.all.runs()),
        cmdline: &line,
        setup_data: &[SetupData {
            kind: SETUP_DATA_TYPE,
            data: host.firmware.to_bytes(),
        }],
    };
    let params = told.pages(Addresses::default()).len() as u64;
    let initrd = plan.initrd.len() as u64;
    let at = placement::place(&host.image, &plan.window.main, initrd, params)?;
    log::info!(
        "kernel at {:#x}, initramfs at {:#x}, parameters at {:#x}: {line}",
        at.kernel,
        at.initrd,
        at.params
    );
    Ok(kexec_loader::stage(
        &host.image,
        &plan.initrd,
        &told.pages(at),
        at,
    )?)
}
