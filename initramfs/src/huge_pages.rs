//! Pools of huge pages (hugetlbpage.rst): processes can only have huge pages again that the new kernel
//! has set aside before.

use persist_mem::manifest::HugePool;
use std::path::{Path, PathBuf};

/// Below `/sys`; a directory `hugepages-<KiB>kB` for every size.
const POOLS: &str = "kernel/mm/hugepages";
/// How many pages there may be beyond a pool's own.
const BEYOND: &str = "nr_overcommit_hugepages";

/// The pools of this kernel that are not empty.
#[must_use]
pub fn capture(sys: &Path) -> Vec<HugePool> {
    let entries = std::fs::read_dir(sys.join(POOLS)).into_iter().flatten();
    let pool = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let kib = name
            .to_str()?
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?;
        let read = |file: &str| number(&entry.path().join(file)).unwrap_or(0);
        let made = read("nr_hugepages");
        let surplus = read("surplus_hugepages");
        Some(HugePool {
            kib: kib.parse().ok()?,
            pages: made.saturating_sub(surplus),
            overcommit: read(BEYOND),
            taken: made.saturating_sub(read("free_hugepages")),
            promised: read("resv_hugepages"),
        })
    };
    let mut pools: Vec<HugePool> = entries.flatten().filter_map(pool).collect();
    pools.retain(|pool| pool.pages > 0 || pool.overcommit > 0);
    pools.sort_unstable_by_key(|pool| pool.kib);
    pools
}

/// Bytes that processes were promised and that are on no page of theirs.
#[must_use]
pub fn promised_bytes(pools: &[HugePool]) -> u64 {
    let bytes = |pool: &HugePool| pool.promised * (pool.kib << 10);
    pools.iter().map(bytes).sum()
}

/// Fills the pools as far as processes need them: while they are rebuilt memory is short. The rest of a pool may be
/// had beyond that, since a new mapping is promised all its pages, also those that the old one had given back. Returns
/// what could not be done, in words: the kernel takes what it finds.
#[must_use]
pub fn begin(sys: &Path, pools: &[HugePool]) -> Vec<String> {
    let fill = |pool: &HugePool| {
        let needed = pool.pages.min(pool.taken + pool.promised);
        let filled = fill(sys, pool, needed).err();
        let beyond = pool.overcommit + (pool.pages - needed);
        // Pools of gigantic pages take nothing beyond them.
        let _ = std::fs::write(directory(sys, pool).join(BEYOND), beyond.to_string());
        filled
    };
    pools.iter().filter_map(fill).collect()
}

/// Fills them again.
#[must_use]
pub fn restore(sys: &Path, pools: &[HugePool]) -> Vec<String> {
    let fill = |pool: &HugePool| fill(sys, pool, pool.pages).err();
    pools.iter().filter_map(fill).collect()
}

fn directory(sys: &Path, pool: &HugePool) -> PathBuf {
    sys.join(POOLS).join(format!("hugepages-{}kB", pool.kib))
}

fn fill(sys: &Path, pool: &HugePool, pages: u64) -> Result<(), String> {
    let extra = number(&directory(sys, pool).join("surplus_hugepages")).is_some_and(|n| n > 0);
    for (file, value) in [(BEYOND, pool.overcommit), ("nr_hugepages", pages)] {
        let path: PathBuf = directory(sys, pool).join(file);
        // Pages had beyond the pool count as well, and become its own when it is set.
        if number(&path) != Some(value) || extra {
            std::fs::write(&path, value.to_string())
                .map_err(|error| format!("{value} huge pages of {} KiB: {error}", pool.kib))?;
        }
        match number(&path) {
            Some(now) if now < value => {
                return Err(format!(
                    "only {now} of {value} huge pages of {} KiB could be set aside",
                    pool.kib
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn a_pool_without_its_surplus_is_made_again() {
        let tmp = TestDir::new("huge-pages");
        for (file, text) in [
            ("nr_hugepages", "5\n"),
            ("surplus_hugepages", "1\n"),
            ("free_hugepages", "3\n"),
            ("resv_hugepages", "1\n"),
            ("nr_overcommit_hugepages", "8\n"),
        ] {
            tmp.write(&format!("old/{POOLS}/hugepages-2048kB/{file}"), text);
            tmp.write(&format!("old/{POOLS}/hugepages-1048576kB/{file}"), "0\n");
            tmp.write(&format!("new/{POOLS}/hugepages-2048kB/{file}"), "0\n");
        }
        let pools = capture(&tmp.path().join("old"));
        let pool = HugePool {
            kib: 2048,
            pages: 4,
            overcommit: 8,
            taken: 2,
            promised: 1,
        };
        assert_eq!(pools, [pool]);
        assert_eq!(promised_bytes(&pools), 2 << 20);
        let new = tmp.path().join("new");
        assert!(begin(&new, &pools).is_empty());
        assert_eq!(capture(&new)[0].pages, 3, "only what is needed");
        assert_eq!(capture(&new)[0].overcommit, 9, "but all may be had");
        assert!(restore(&new, &pools).is_empty());
        assert_eq!(capture(&new)[0].pages, 4);
        assert_eq!(capture(&new)[0].overcommit, 8);
        let other = HugePool { kib: 64, ..pool };
        assert!(restore(&new, &[other])[0].contains("of 64 KiB"));
    }
}
