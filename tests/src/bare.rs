//! The bare kexec that an upgrade is compared with: the same kernel, the same machine, into an
//! archive whose init does nothing.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::programs::SHORT;
use crate::rig::Rig;
use crate::setup::initrd::BARE_MARKER;
use crate::ui;

/// What `cargo lab bare` takes.
#[derive(Args)]
pub(crate) struct BareArgs {
    /// The kernel to start from
    #[arg(long, default_value = "6.1")]
    from: String,
    /// The kernel to start bare
    #[arg(long, default_value = "6.12")]
    to: String,
    /// MiB of RAM
    #[arg(long, default_value_t = 3072)]
    memory: u64,
    /// How often
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

/// `cargo lab bare`
pub(crate) fn bare(args: &BareArgs) -> Result<ExitCode> {
    let rig = Rig::prepare("bare", &[args.from.clone(), args.to.clone()], true, &[])?;
    for _ in 0..args.runs {
        let ms = measure(&rig, &args.from, &args.to, args.memory)?;
        ui::say(&format!("{} -> {}: {ms:.0} ms", args.from, args.to));
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of the archive in the guest.
pub(crate) const ARCHIVE: &str = "bare.img";

/// Measures, in milliseconds on the host's clock, from the reboot call to the new init.
pub(crate) fn measure(rig: &Rig, from: &str, to: &str, memory: u64) -> Result<f64> {
    let mut vm = rig.boot(&rig.spec("bare", from, memory)?)?;
    let kernel = rig.kernel(to)?.guest_vmlinuz();
    vm.shell.must(
        &format!("kexec -l {kernel} --initrd=/opt/kupgrade/{ARCHIVE} --reuse-cmdline --no-checks"),
        4 * SHORT,
    )?;
    vm.shell
        .type_line("python3 /opt/kupgrade/lab/bare_jump.py")?;
    let start = vm.shell.wait_text("lab: reboot call", SHORT)?;
    match vm.wait_console(BARE_MARKER, Duration::from_secs(120)) {
        Ok(end) => Ok((end - start).as_secs_f64() * 1000.0),
        Err(error) => Err(error.context("the bare kexec")),
    }
}
