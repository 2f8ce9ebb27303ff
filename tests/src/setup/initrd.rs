//! The lab's own initial archives: one that boots a kernel cold from the root disk, and one
//! that does nothing, for measuring a bare kexec.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::kernels::Kernel;
use crate::paths::recipe_hash;
use crate::tool::Tool;

/// What the bare archive's init prints.
pub(crate) const BARE_MARKER: &str = "lab: bare init runs";

const INIT: &str = include_str!("../../guest/initrd-init");
const BUSYBOX: &str = "/bin/busybox";
const MINUTE: Duration = Duration::from_secs(60);

/// The module that a root disk on virtio-blk needs, and the bus it sits on.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// Makes the archive for a cold boot of `kernel`.
pub(super) fn ensure(cache: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let path = cache.join(format!(
        "initrd-{}-{}.img",
        kernel.release,
        recipe_hash(["1", INIT])
    ));
    if path.exists() {
        return Ok(path);
    }
    let stage = fresh(cache)?;
    let dep = fs::read_to_string(kernel.modules().join("modules.dep"))?;
    let mut order = String::new();
    for module in closure(&dep, &MODULES) {
        let from = kernel.modules().join(&module);
        let name = module
            .rsplit('/')
            .next()
            .unwrap_or(&module)
            .trim_end_matches(".xz")
            .to_owned();
        let to = stage.join(&name);
        if module.ends_with(".xz") {
            Tool::new("xz", MINUTE)
                .args(["-dc"])
                .arg(&from)
                .log(to)
                .run()?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        order += &format!("{name}\n");
    }
    fs::write(stage.join("modules"), order)?;
    pack(&stage, INIT, &path)?;
    Ok(path)
}

/// Makes the archive that does nothing.
pub(super) fn ensure_bare(cache: &Path) -> Result<PathBuf> {
    let init = format!("#!/bin/busybox sh\necho '{BARE_MARKER}'\nexec /bin/busybox poweroff -f\n");
    let path = cache.join(format!("bare-{}.img", recipe_hash(["1", init.as_str()])));
    if !path.exists() {
        let stage = fresh(cache)?;
        pack(&stage, &init, &path)?;
    }
    Ok(path)
}

fn fresh(cache: &Path) -> Result<PathBuf> {
    let stage = cache.join("initrd.stage");
    let _ = fs::remove_dir_all(&stage);
    for dir in ["bin", "dev", "proc", "sys", "root"] {
        fs::create_dir_all(stage.join(dir))?;
    }
    Ok(stage)
}

fn pack(stage: &Path, init: &str, path: &Path) -> Result<()> {
    fs::copy(BUSYBOX, stage.join("bin/busybox")).context("busybox-static is not installed")?;
    symlink("busybox", stage.join("bin/sh"))?;
    fs::write(stage.join("init"), init)?;
    fs::set_permissions(stage.join("init"), fs::Permissions::from_mode(0o755))?;
    let scratch = path.with_extension("tmp");
    Tool::new("sh", MINUTE)
        .args([
            "-c",
            "find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > \"$0\"",
        ])
        .arg(&scratch)
        .dir(stage)
        .run()?;
    fs::remove_dir_all(stage)?;
    fs::rename(&scratch, path).with_context(|| format!("cannot make {}", path.display()))
}

/// The files of some modules and of all they need, in the order they must be loaded.
/// A module that `modules.dep` does not have is built in.
fn closure(dep: &str, names: &[&str]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let Some((file, needs)) =
            dep.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(file, _)| {
                    file.rsplit('/')
                        .next()
                        .and_then(|base| base.split('.').next())
                        == Some(name)
                })
        else {
            continue;
        };
        // modules.dep lists what is needed last first.
        for module in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|known| known == module) {
                order.push(module.to_owned());
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::closure;

    #[test]
    fn needed_modules_come_first() {
        let dep = "k/virtio.ko: k/ring.ko\nk/ring.ko:\nk/virtio_blk.ko: k/virtio.ko k/ring.ko\n";
        assert_eq!(
            closure(dep, &["virtio_blk"]),
            ["k/ring.ko", "k/virtio.ko", "k/virtio_blk.ko"]
        );
    }

    #[test]
    fn built_in_modules_are_left_out() {
        assert_eq!(
            closure("k/virtio_blk.ko.xz:\n", &["virtio_pci", "virtio_blk"]),
            ["k/virtio_blk.ko.xz"]
        );
    }
}
