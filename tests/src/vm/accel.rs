//! KVM or TCG? A machine may have a `/dev/kvm` on which no ordinary guest starts, so only a
//! boot that really worked counts.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::setup::initrd::BARE_MARKER;
use crate::setup::kernels::Kernel;
use crate::setup::qemu::Qemu;
use crate::ui;

const TRIAL: Duration = Duration::from_secs(20);

/// How QEMU runs the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// In hardware.
    Kvm,
    /// Translated.
    Tcg,
}

impl Accel {
    /// QEMU's arguments for it.
    pub(crate) fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without ERMS and FSRM the kernel copies and clears eight bytes at a time instead of
            // one, which for a translator is eight times as fast; PCLMULQDQ is a call there.
            Self::Tcg => [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,-erms,-fsrm,-pclmulqdq",
            ],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Decides by a trial boot, once for each boot of the host. `KUPGRADE_LAB_ACCEL` overrides.
pub(crate) fn decide(cache: &Path, qemu: &Qemu, kernel: &Kernel, bare: &Path) -> Result<Accel> {
    match std::env::var("KUPGRADE_LAB_ACCEL").as_deref() {
        Ok("kvm") => return Ok(Accel::Kvm),
        Ok("tcg") => return Ok(Accel::Tcg),
        _ => {}
    }
    let note = cache.join("accelerator");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = fs::read_to_string(&note).unwrap_or_default();
    for accel in [Accel::Kvm, Accel::Tcg] {
        if known == format!("{} {}", accel.name(), boot.trim()) {
            return Ok(accel);
        }
    }
    let accel = if Path::new("/dev/kvm").exists() && trial(qemu, kernel, bare)? {
        Accel::Kvm
    } else {
        Accel::Tcg
    };
    ui::step(match accel {
        Accel::Kvm => "virtual machines run under KVM",
        Accel::Tcg => "no guest starts under KVM here: virtual machines run under TCG (slower)",
    });
    fs::write(&note, format!("{} {}", accel.name(), boot.trim()))?;
    Ok(accel)
}

/// Boots the archive that does nothing under KVM: did its init run?
fn trial(qemu: &Qemu, kernel: &Kernel, bare: &Path) -> Result<bool> {
    let dir = std::env::temp_dir().join(format!("kupgrade-lab-trial-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let console = dir.join("console.log");
    let mut words = qemu.words().into_iter();
    let program = words.next().context("no QEMU")?;
    let mut qemu = Command::new(program)
        .args(words)
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-smp",
            "2",
            "-m",
            "512",
        ])
        .args(Accel::Kvm.args())
        .arg("-kernel")
        .arg(kernel.vmlinuz())
        .arg("-initrd")
        .arg(bare)
        .args(["-append", "console=ttyS0 panic=-1", "-serial"])
        .arg(format!("file:{}", console.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let end = Instant::now() + TRIAL;
    let mut worked = false;
    while !worked && Instant::now() < end {
        let ended = qemu.try_wait()?.is_some();
        worked =
            String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).contains(BARE_MARKER);
        if ended {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = qemu.kill();
    let _ = qemu.wait();
    let _ = fs::remove_dir_all(dir);
    Ok(worked)
}
