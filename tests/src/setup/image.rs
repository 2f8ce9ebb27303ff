//! Disk images, made with `mke2fs -d`: no loop device, no mount.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apps::Built;
use super::kernels::Kernel;
use super::rootfs::Root;
use crate::paths::recipe_hash;
use crate::tool::Tool;
use crate::ui;

/// The guest's PID 1.
const INIT: &str = include_str!("../../guest/init");

/// The root file system's UUID: the kernel command line names it.
pub(crate) const ROOT_UUID: &str = "6b757067-7261-4465-8000-726f6f746673";

/// Room that the root file system offers its programs.
const ROOT_SIZE: &str = "3G";

const TWO_MINUTES: Duration = Duration::from_secs(120);

/// A root disk that holds some kernels. Never written: machines run on overlays of it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// The raw image.
    pub(crate) path: PathBuf,
}

/// Makes the root disk when it is absent or when its recipe changed. Programs that were `built` for it lie in
/// `/opt/apps` there.
pub(super) fn ensure(
    cache: &Path,
    root: &Root,
    built: Option<&Built>,
    kernels: &[Kernel],
) -> Result<Disk> {
    let mut releases: Vec<&str> = kernels.iter().map(|k| k.release.as_str()).collect();
    releases.sort_unstable();
    releases.dedup();
    let fixed = ["2", root.recipe.as_str(), INIT, ROOT_UUID, ROOT_SIZE];
    let programs = built.map(|built| built.recipe.as_str());
    let recipe = recipe_hash(
        fixed
            .into_iter()
            .chain(releases.iter().copied())
            .chain(programs),
    );
    let path = cache.join(format!("disk-{recipe}.img"));
    if !path.exists() {
        ui::step(&format!(
            "making the root disk with {}",
            releases.join(", ")
        ));
        build(cache, root, built, kernels, &path)?;
    }
    Ok(Disk { path })
}

fn build(
    cache: &Path,
    root: &Root,
    built: Option<&Built>,
    kernels: &[Kernel],
    path: &Path,
) -> Result<()> {
    let stage = cache.join("disk.stage");
    Tool::root("rm", TWO_MINUTES).arg("-rf").arg(&stage).run()?;
    // Hard links: the files themselves are not copied.
    Tool::root("cp", TWO_MINUTES)
        .arg("-al")
        .arg(&root.dir)
        .arg(&stage)
        .run()?;
    let init = cache.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Tool::root("cp", TWO_MINUTES)
        .arg("--remove-destination")
        .arg(&init)
        .arg(stage.join("usr/sbin/init"))
        .run()?;
    Tool::root("mkdir", TWO_MINUTES)
        .arg("-p")
        .args(["usr/lib/modules", "opt/kupgrade", "var/lab"].map(|d| stage.join(d)))
        .run()?;
    if let Some(built) = built {
        Tool::root("cp", TWO_MINUTES)
            .arg("-al")
            .arg(&built.dir)
            .arg(stage.join("opt/apps"))
            .run()?;
    }
    for kernel in kernels {
        Tool::root("cp", TWO_MINUTES)
            .arg("-al")
            .arg(kernel.modules())
            .arg(stage.join("usr/lib/modules"))
            .run()?;
        Tool::root("cp", TWO_MINUTES)
            .arg(kernel.vmlinuz())
            .arg(stage.join("boot"))
            .run()?;
    }
    let scratch = path.with_extension("tmp");
    make_ext4(&stage, &scratch, ROOT_SIZE, Some(ROOT_UUID))?;
    Tool::root("rm", TWO_MINUTES).arg("-rf").arg(&stage).run()?;
    fs::rename(&scratch, path).with_context(|| format!("cannot make {}", path.display()))
}

/// Makes an ext4 image of a folder.
fn make_ext4(from: &Path, to: &Path, size: &str, uuid: Option<&str>) -> Result<()> {
    let _ = fs::remove_file(to);
    let mut tool =
        Tool::root("mke2fs", Duration::from_secs(300)).args(["-q", "-F", "-t", "ext4", "-m", "0"]);
    if let Some(uuid) = uuid {
        tool = tool.args(["-U", uuid]);
    }
    tool.arg("-d")
        .arg(from)
        .arg(to)
        .arg(size)
        .run()
        .with_context(|| format!("cannot make the image {}", to.display()))
}

/// Makes the small disk that brings the programs under test into a guest: its files end up in
/// `/opt/kupgrade`. `files` are pairs of the name there and the file on the host.
pub(crate) fn payload(dir: &Path, files: &[(String, PathBuf)]) -> Result<PathBuf> {
    let stage = dir.join("payload");
    let mut size = 0;
    for (name, from) in files {
        let to = stage.join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        size += fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::create_dir_all(&stage)?;
    let image = dir.join("payload.img");
    let mib = size * 5 / 4 / (1 << 20) + 8;
    make_ext4(&stage, &image, &format!("{mib}M"), None)?;
    fs::remove_dir_all(&stage)?;
    Ok(image)
}

/// A fresh overlay of a root disk.
pub(crate) fn overlay(disk: &Disk, path: &Path) -> Result<()> {
    Tool::new("qemu-img", TWO_MINUTES)
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&disk.path)
        .arg(path)
        .run()
}
