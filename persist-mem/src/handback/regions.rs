//! Soft-reserved ranges as the dax bus shows them.

use super::Result;
use super::sysfs::{file_error, read_hex, read_number};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A soft-reserved range as the dax bus sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Number of the region (`N` of `daxN.M`).
    pub id: u32,
    /// Physical bytes.
    pub range: Range<u64>,
    /// NUMA node the memory will belong to; negative when the kernel knows none, and then it
    /// cannot become RAM.
    pub node: i32,
    /// Directory of the region's device.
    pub(super) dir: PathBuf,
}

/// `daxN.M` devices in the region's directory.
pub(super) fn devices_of(region: &Region) -> Result<BTreeSet<String>> {
    let prefix = format!("dax{}.", region.id);
    let entries = std::fs::read_dir(&region.dir).map_err(file_error(&region.dir))?;
    Ok(entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect())
}

/// All regions of the dax bus. A region always has a device `daxN.0`; while that is empty, its
/// `resource` is the region's start.
pub(super) fn regions(sys: &Path) -> Result<Vec<Region>> {
    let bus = sys.join("bus/dax/devices");
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(&bus) else {
        return Ok(found);
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix("dax").and_then(|n| n.strip_suffix(".0")) else {
            continue;
        };
        let Ok(id) = id.parse() else { continue };
        let device = std::fs::canonicalize(entry.path()).map_err(file_error(&entry.path()))?;
        let Some(dir) = device.parent().map(Path::to_owned) else {
            continue;
        };
        let start = read_hex(&device.join("resource"))?;
        let size: u64 = read_number(&dir.join("dax_region/size"))?;
        // The kernel hides the file when it knows no node.
        let node = read_number(&device.join("target_node")).unwrap_or(-1);
        found.push(Region {
            id,
            range: start..start.saturating_add(size),
            node,
            dir,
        });
    }
    found.sort_by_key(|r| r.range.start);
    Ok(found)
}
