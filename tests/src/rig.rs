//! What machines are booted from in one run of the lab: kernels, disk, programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bare::ARCHIVE;
use crate::paths;
use crate::setup::kernels::{Kernel, STANDARD};
use crate::setup::qemu::Qemu;
use crate::setup::rootfs::Flavour;
use crate::setup::{Cache, image};
use crate::ui;
use crate::vm::{self, Accel, Spec, Vm};

/// Everything for booting machines.
pub(crate) struct Rig {
    /// The kernels in the root disk, in the order they were asked for, the standard ones last.
    kernels: Vec<(String, Kernel)>,
    initrds: Vec<PathBuf>,
    disk: image::Disk,
    payload: Option<PathBuf>,
    qemu: Qemu,
    accel: Accel,
    /// The folder of this run's logs.
    pub(crate) dir: PathBuf,
}

impl Rig {
    /// Prepares a run called `name` with `wanted` kernels beside the standard ones. With
    /// `build`, kupgrade and the subjects are built and brought into the machines; so are the
    /// `extra` files.
    pub(crate) fn prepare(
        name: &str,
        wanted: &[String],
        build: bool,
        extra: &[PathBuf],
    ) -> Result<Self> {
        let dir = paths::run_dir(name)?;
        let mut files = if build { programs()? } else { Vec::new() };
        for path in extra {
            let name = path
                .file_name()
                .with_context(|| format!("{} is no file", path.display()))?;
            files.push((name.to_string_lossy().into_owned(), path.clone()));
        }
        let cache = Cache::open()?;
        let mut names = wanted.to_vec();
        names.extend(STANDARD.map(str::to_owned));
        let bare = cache.bare_initrd()?;
        if build {
            files.push((ARCHIVE.to_owned(), bare.clone()));
            files.push(("lab/policy".to_owned(), cache.policy()?));
        }
        // After the cache is open: the programs that make images are there then.
        let payload = if files.is_empty() {
            None
        } else {
            Some(image::payload(&dir, &files)?)
        };
        let found = cache.kernels(&names, false)?;
        let initrds = found
            .iter()
            .map(|kernel| cache.initrd(kernel))
            .collect::<Result<_>>()?;
        let standard = found.last().context("no kernel")?;
        let qemu = cache.qemu()?;
        let accel = vm::decide_accel(&paths::cache()?, &qemu, standard, &bare)?;
        let disk = cache.disk(Flavour::Demo, &found)?;
        let kernels = names.into_iter().zip(found).collect();
        Ok(Self {
            kernels,
            initrds,
            disk,
            payload,
            qemu,
            accel,
            dir,
        })
    }

    /// A kernel by the name it was asked for, or by its version.
    pub(crate) fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels
            .iter()
            .find(|(asked, kernel)| {
                asked == name || kernel.short() == name || kernel.release == name
            })
            .map(|(_, kernel)| kernel)
            .with_context(|| format!("no kernel '{name}' in this run"))
    }

    /// What a machine with this kernel is made of.
    pub(crate) fn spec(&self, name: &str, kernel: &str, memory: u64) -> Result<Spec> {
        let kernel = self.kernel(kernel)?.clone();
        let place = self
            .kernels
            .iter()
            .position(|(_, k)| *k == kernel)
            .context("no kernel")?;
        Ok(Spec {
            name: name.to_owned(),
            initrd: self.initrds[place].clone(),
            kernel,
            disk: self.disk.clone(),
            payload: self.payload.clone(),
            memory,
            qemu: self.qemu.clone(),
            accel: self.accel,
            append: String::new(),
        })
    }

    /// The same with the disk that has the real programs.
    pub(crate) fn with_apps(&self, spec: Spec) -> Result<Spec> {
        let kernels: Vec<_> = self.kernels.iter().map(|(_, k)| k.clone()).collect();
        let disk = Cache::open()?.disk(Flavour::Apps, &kernels)?;
        Ok(Spec { disk, ..spec })
    }

    /// Boots a machine.
    pub(crate) fn boot(&self, spec: &Spec) -> Result<Vm> {
        Vm::boot(&self.dir, spec)
    }
}

/// Builds the programs under test and lists what goes into `/opt/kupgrade`.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    ui::step("building kupgrade and the subjects");
    let mut files = Vec::new();
    for package in ["kupgrade", "subjects"] {
        for path in build(package)? {
            let name = path
                .file_name()
                .context("a program without a name")?
                .to_string_lossy()
                .into_owned();
            files.push((name, path));
        }
    }
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/programs");
    for (folder, prefix) in [(guest.clone(), "lab"), (guest.join("apps"), "lab/apps")] {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                files.push((format!("{prefix}/{}", name.to_string_lossy()), path));
            }
        }
    }
    Ok(files)
}

/// Builds a package and returns its executables.
pub(crate) fn build(package: &str) -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--message-format=json-render-diagnostics",
            "-p",
            package,
        ])
        .current_dir(paths::workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("{package} could not be built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            message
                .get("executable")
                .and_then(Value::as_str)
                .map(PathBuf::from)
        })
        .collect();
    if found.is_empty() {
        bail!("{package} has no executable");
    }
    Ok(found)
}
