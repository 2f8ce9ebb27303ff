//! Debian's kernels, unpacked but never installed on the host.
//!
//! In the cache `kernels/<release>/` holds `boot/vmlinuz-<release>` and
//! `lib/modules/<release>`, whatever layout the package itself had.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::unpack::unpack;
use crate::tool::Tool;
use crate::ui;

const MINUTE: Duration = Duration::from_secs(60);

/// The kernels that the lab knows by a short name: name, Debian release, package.
const KNOWN: &[(&str, &str, &str)] = &[
    ("6.1", "bookworm", "linux-image-cloud-amd64"),
    ("6.12", "trixie", "linux-image-cloud-amd64"),
    ("backports", "trixie-backports", "linux-image-cloud-amd64"),
];

/// The short names of the kernels every root disk holds.
pub(crate) const STANDARD: [&str; 3] = ["6.1", "6.12", "backports"];

/// One unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What `uname -r` says on it.
    pub(crate) release: String,
    /// Its folder in the cache.
    pub(crate) dir: PathBuf,
}

impl Kernel {
    /// Its image on the host.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.dir
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// Its modules on the host.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }

    /// Where the guest has its image.
    pub(crate) fn guest_vmlinuz(&self) -> String {
        format!("/boot/vmlinuz-{}", self.release)
    }

    /// Major and minor version, as people call it.
    pub(crate) fn short(&self) -> String {
        self.release
            .splitn(3, '.')
            .take(2)
            .collect::<Vec<_>>()
            .join(".")
    }
}

/// Finds a kernel: a short name (`6.1`, `6.12`, `backports`, or the version that this is
/// today), a package of one of the three Debian releases, or a vmlinuz file on the host.
pub(super) fn find(cache: &Path, name: &str, update: bool) -> Result<Kernel> {
    if name.contains('/') {
        return from_file(cache, Path::new(name));
    }
    if let Some((short, suite, package)) = KNOWN.iter().find(|(short, _, _)| *short == name) {
        let note = cache.join("kernels").join(format!("{short}.release"));
        if !update
            && let Ok(release) = fs::read_to_string(&note)
            && let Some(kernel) = in_cache(cache, release.trim())
        {
            return Ok(kernel);
        }
        ui::step(&format!("asking apt for the kernel of {suite}"));
        let kernel = fetch(cache, &Apt::open(cache, suite)?, package)?;
        fs::write(&note, &kernel.release)?;
        return Ok(kernel);
    }
    if let Some(kernel) = in_cache(cache, name.trim_start_matches("linux-image-")) {
        return Ok(kernel);
    }
    let newest = find(cache, "backports", update)?;
    if newest.short() == name {
        return Ok(newest);
    }
    for suite in ["bookworm", "trixie", "trixie-backports"] {
        let apt = Apt::open(cache, suite)?;
        if apt.has(name) {
            return fetch(cache, &apt, name);
        }
    }
    bail!(
        "no kernel is called '{name}': give 6.1, 6.12, {}, a linux-image package of bookworm, trixie or trixie-backports, or the path of a vmlinuz",
        newest.short()
    )
}

fn in_cache(cache: &Path, release: &str) -> Option<Kernel> {
    let kernel = Kernel {
        release: release.to_owned(),
        dir: cache.join("kernels").join(release),
    };
    (!release.is_empty()
        && kernel.vmlinuz().exists()
        && kernel.modules().join("modules.dep").exists())
    .then_some(kernel)
}

/// Follows the meta package to the real one and unpacks it with its companions (newer
/// packages keep image, modules and lists apart).
fn fetch(cache: &Path, apt: &Apt, package: &str) -> Result<Kernel> {
    let mut image = package.to_owned();
    if release_of(&image).is_none() {
        image = apt
            .depends(package)?
            .into_iter()
            .find(|name| name.starts_with("linux-image-") && release_of(name).is_some())
            .with_context(|| format!("{package} names no kernel image"))?;
    }
    let release = release_of(&image)
        .with_context(|| format!("{image} is no kernel image"))?
        .to_owned();
    if let Some(kernel) = in_cache(cache, &release) {
        return Ok(kernel);
    }
    ui::step(&format!("fetching {image}"));
    let companions = apt
        .depends(&image)?
        .into_iter()
        .filter(|name| name.ends_with(&format!("-{release}")));
    let mut debs = vec![apt.download(&image)?];
    for name in companions {
        debs.push(apt.download(&name)?);
    }
    let scratch = cache.join("kernels").join(format!("{release}.tmp"));
    unpack(debs, &scratch)?;
    settle(cache, &release, &scratch)
}

/// The release in a package name such as `linux-image-6.1.0-56-cloud-amd64`.
fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    release
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(release)
}

/// Brings an unpacked package into the cache's layout.
fn settle(cache: &Path, release: &str, scratch: &Path) -> Result<Kernel> {
    let usr = scratch.join("usr/lib/modules");
    if usr.is_dir() {
        fs::create_dir_all(scratch.join("lib"))?;
        fs::rename(&usr, scratch.join("lib/modules"))?;
    }
    let modules = scratch.join("lib/modules").join(release);
    let boot = scratch.join("boot");
    fs::create_dir_all(&boot)?;
    for name in ["vmlinuz", "config", "System.map"] {
        let inside = modules.join(name);
        if inside.is_file() {
            fs::rename(inside, boot.join(format!("{name}-{release}")))?;
        }
    }
    let _ = fs::remove_dir_all(scratch.join("usr"));
    Tool::new("depmod", 2 * MINUTE)
        .arg("-b")
        .arg(scratch)
        .arg(release)
        .run()?;
    let dir = cache.join("kernels").join(release);
    let _ = fs::remove_dir_all(&dir);
    fs::rename(scratch, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    in_cache(cache, release)
        .with_context(|| format!("the packages of {release} hold no image or no modules"))
}

/// A kernel image of the host; its modules are looked for beside it and in the host's root.
fn from_file(cache: &Path, path: &Path) -> Result<Kernel> {
    let image = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let release = bzimage_release(&image)
        .with_context(|| format!("{} is no bzImage that tells its release", path.display()))?;
    let beside = path
        .parent()
        .and_then(Path::parent)
        .map(|root| root.join("lib/modules").join(&release));
    let modules = beside
        .into_iter()
        .chain([Path::new("/lib/modules").join(&release)])
        .find(|dir| dir.join("modules.dep").exists())
        .with_context(|| {
            format!(
                "no modules of {release} beside {} or in /lib/modules",
                path.display()
            )
        })?;
    let dir = cache.join("kernels").join(format!("{release}.tmp"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("lib/modules"))?;
    fs::create_dir_all(dir.join("boot"))?;
    Tool::new("cp", 2 * MINUTE)
        .arg("-a")
        .arg(modules)
        .arg(dir.join("lib/modules"))
        .run()?;
    fs::write(dir.join("boot").join(format!("vmlinuz-{release}")), image)?;
    settle(cache, &release, &dir)
}

/// The release that a bzImage names: a string whose offset from 0x200 is at 0x20e
/// (Documentation/arch/x86/boot.rst, `kernel_version`).
fn bzimage_release(image: &[u8]) -> Option<String> {
    let offset = u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?]);
    if image.get(0x202..0x206)? != b"HdrS" || offset == 0 {
        return None;
    }
    let text = image.get(usize::from(offset) + 0x200..)?;
    let end = text.iter().position(|b| *b == 0 || *b == b' ')?;
    String::from_utf8(text[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_in_package_names() {
        assert_eq!(
            release_of("linux-image-6.1.0-56-cloud-amd64"),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(release_of("linux-image-cloud-amd64"), None);
    }

    #[test]
    fn release_in_an_image() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x308].copy_from_slice(b"6.1.0-5 ");
        assert_eq!(bzimage_release(&image).as_deref(), Some("6.1.0-5"));
        image[0x202] = b'X';
        assert_eq!(bzimage_release(&image), None);
    }

    #[test]
    fn short_names() {
        let kernel = Kernel {
            release: "6.12.117+deb13-cloud-amd64".into(),
            dir: PathBuf::new(),
        };
        assert_eq!(kernel.short(), "6.12");
    }
}
