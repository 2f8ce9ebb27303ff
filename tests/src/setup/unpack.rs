//! Packages that are unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::tool::Tool;

/// For a large one on a busy host.
const PATIENCE: Duration = Duration::from_secs(600);

/// Unpacks packages into a new folder; what is left there of an earlier try is removed.
pub(super) fn unpack(packages: impl IntoIterator<Item = PathBuf>, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    for file in packages {
        Tool::new("dpkg-deb", PATIENCE)
            .arg("-x")
            .arg(&file)
            .arg(folder)
            .run()
            .with_context(|| format!("cannot unpack {}", file.display()))?;
    }
    Ok(())
}
