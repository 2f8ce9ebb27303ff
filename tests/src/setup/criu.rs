//! CRIU, to be measured beside: Debian's package of sid with its own libraries, unpacked and
//! not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::Apt;
use super::unpack::unpack;
use crate::ui;

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Its folder in the cache, made when absent.
pub(super) fn ensure(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("criu");
    if dir.join("usr/sbin/criu").exists() {
        return Ok(dir);
    }
    ui::step("downloading CRIU");
    let apt = Apt::open(cache, "sid")?;
    let scratch = cache.join("criu.new");
    unpack(apt.download_all("criu")?, &scratch)?;
    fs::rename(&scratch, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Runs it with its own loader and libraries.
pub(crate) fn command(root: &Path) -> Command {
    let mut command = Command::new(root.join(LIBRARIES).join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(root.join(LIBRARIES))
        .arg(root.join("usr/sbin/criu"));
    command
}
