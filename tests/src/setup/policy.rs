//! A policy of AppArmor for machines, compiled here: their own programs need not know how.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::Apt;
use super::unpack::unpack;
use crate::paths::recipe_hash;
use crate::tool::Tool;
use crate::ui;

const TEXT: &str = include_str!("../../guest/policy");

/// The compiled policy in the cache, made when absent or when its text changed.
pub(super) fn ensure(cache: &Path) -> Result<PathBuf> {
    let binary = cache.join(format!("policy-{}", recipe_hash([TEXT])));
    if binary.exists() {
        return Ok(binary);
    }
    let parser = parser(cache)?;
    let text = binary.with_extension("text");
    fs::write(&text, TEXT)?;
    let scratch = binary.with_extension("new");
    let abstractions = parser.join("etc/apparmor.d");
    let features = abstractions.join("abi/3.0");
    let program = parser.join("sbin/apparmor_parser");
    Tool::new(&program.to_string_lossy(), Duration::from_secs(60))
        .args(["--skip-kernel-load", "--skip-cache", "--quiet", "--base"])
        .arg(&abstractions)
        .arg("--kernel-features")
        .arg(&features)
        .arg("--policy-features")
        .arg(&features)
        .arg("--ofile")
        .arg(&scratch)
        .arg(&text)
        .run()
        .context("the policy of AppArmor could not be compiled")?;
    fs::rename(&scratch, &binary).with_context(|| format!("cannot make {}", binary.display()))?;
    Ok(binary)
}

/// The folder with AppArmor's compiler: Debian's package, unpacked and not installed.
fn parser(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("apparmor");
    if dir.join("sbin/apparmor_parser").exists() {
        return Ok(dir);
    }
    ui::step("downloading the compiler of AppArmor");
    let file = Apt::open(cache, "bookworm")?.download("apparmor")?;
    let scratch = cache.join("apparmor.new");
    unpack([file], &scratch)?;
    fs::rename(&scratch, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
