//! Where the lab keeps things.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The root of the repository.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The cache of what is slow to make: `$KUPGRADE_CACHE`, else `~/.cache/kupgrade-lab`.
pub(crate) fn cache() -> Result<PathBuf> {
    let dir = match std::env::var_os("KUPGRADE_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set; set KUPGRADE_CACHE")?)
                .join(".cache/kupgrade-lab")
        }
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The folder for what runs leave behind: `target/lab`.
pub(crate) fn lab_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join("lab")
}

/// A new folder for the logs of one run, below `target/lab/`.
pub(crate) fn run_dir(name: &str) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let dir = lab_dir().join(format!("{name}-{now}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// A 64-bit FNV-1a hash, the same on every machine: names recipes in the cache.
pub(crate) fn recipe_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::recipe_hash;

    #[test]
    fn a_changed_recipe_has_another_hash() {
        assert_eq!(recipe_hash(["a", "b"]), recipe_hash(["a", "b"]));
        assert_ne!(recipe_hash(["a", "b"]), recipe_hash(["ab"]));
        assert_ne!(recipe_hash(["a", "b"]), recipe_hash(["b", "a"]));
    }
}
