//! QEMU: the host's own where it is new enough, else Debian's backport, unpacked and not
//! installed.
//!
//! Up to 8.0, a translated guest with two processors dies now and then with an `int3` oops while
//! its kernel patches itself: one processor translates an instruction that the other one is just
//! writing, and runs the breakpoint that is no longer there. 8.1 locks the page before it
//! translates ("accel/tcg: Always lock pages before translation").

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::unpack::unpack;
use crate::tool::Tool;
use crate::ui;

const PROGRAM: &str = "qemu-system-x86_64";

/// The first version, major and minor, that translates patched code safely.
const SAFE: (u32, u32) = (8, 1);

/// The Debian release whose libraries the backport wants, and where it is.
const RELEASE: &str = "bookworm";
const SUITE: &str = "bookworm-backports";

/// The backport's parts; what it links with comes with the release's own package.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// A QEMU to start machines with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// Where its firmware is, when that is not in its usual places.
    firmware: Vec<PathBuf>,
}

impl Qemu {
    /// The program and the arguments that every start of it begins with.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let firmware = self
            .firmware
            .iter()
            .flat_map(|dir| ["-L".into(), dir.clone().into_os_string()]);
        std::iter::once(self.program.clone().into_os_string())
            .chain(firmware)
            .collect()
    }

    /// The host's.
    fn of_host() -> Self {
        Self {
            program: PROGRAM.into(),
            firmware: Vec::new(),
        }
    }

    /// The one that was unpacked in `dir`.
    fn unpacked(dir: &Path) -> Self {
        Self {
            program: dir.join("usr/bin").join(PROGRAM),
            firmware: ["qemu", "seabios"]
                .map(|name| dir.join("usr/share").join(name))
                .into(),
        }
    }

    /// Its version, major and minor.
    fn version(&self) -> Result<(u32, u32)> {
        let text = Tool::new(&self.program.to_string_lossy(), Duration::from_secs(60))
            .arg("--version")
            .output()?;
        version_in(&text).with_context(|| format!("no version of QEMU in: {text}"))
    }
}

/// The QEMU to use: the host's, or one in the cache that is downloaded when absent.
pub(super) fn ensure(cache: &Path) -> Result<Qemu> {
    let host = Qemu::of_host();
    let (major, minor) = host.version()?;
    if (major, minor) >= SAFE {
        return Ok(host);
    }
    let dir = cache.join("qemu");
    if dir.exists() {
        return Ok(Qemu::unpacked(&dir));
    }
    match download(cache, &dir) {
        Ok(newer) => Ok(newer),
        Err(error) => {
            ui::step(&format!(
                "QEMU {major}.{minor} of this host is used, whose translated guests die now and then \
                 while they boot; a newer one could not be had: {error:#}"
            ));
            Ok(host)
        }
    }
}

fn download(cache: &Path, dir: &Path) -> Result<Qemu> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if codename(&release) != Some(RELEASE) {
        bail!("install one of {}.{} or later", SAFE.0, SAFE.1);
    }
    ui::step("downloading QEMU");
    let apt = Apt::open(cache, SUITE)?;
    let scratch = cache.join("qemu.new");
    let files = PACKAGES.iter().map(|package| apt.download(package));
    unpack(files.collect::<Result<Vec<_>>>()?, &scratch)?;
    let found = Qemu::unpacked(&scratch).version()?;
    if found < SAFE {
        bail!("{SUITE} has {}.{}", found.0, found.1);
    }
    fs::rename(&scratch, dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(Qemu::unpacked(dir))
}

/// Major and minor in what `--version` prints.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let number = text.split_once("version ")?.1.split_whitespace().next()?;
    let mut parts = number.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// `VERSION_CODENAME` of an os-release(5) file.
fn codename(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(version_in(debian), Some((7, 2)));
        assert_eq!(version_in("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version_in("something else"), None);
        assert!((7, 2) < SAFE && (10, 0) > SAFE);
    }

    #[test]
    fn codenames() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(text), Some("bookworm"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
