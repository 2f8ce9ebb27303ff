//! Swap areas: recorded before the jump, taken into use again when all memory is back.

use crate::early::root::{RootSpec, wait_for};
use crate::mounts::info::unescape;
use crate::mounts::support::{show, stacked};
use crate::superblock::identify;
use persist_mem::manifest::Swap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a device may take to appear.
const WAIT: Duration = Duration::from_secs(5);

/// What `/proc/swaps` adds to the name of a file that was removed.
const REMOVED: &[u8] = b" (deleted)";

/// Reads the areas in use. A kernel without swap has none.
#[must_use]
pub fn capture(proc: &Path) -> Vec<Swap> {
    let text = std::fs::read(proc.join("swaps")).unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(area)
        .collect()
}

/// Name, type, size, bytes in use and priority, with blanks or tabs between them (proc_swaps(5)).
fn area(line: &[u8]) -> Option<Swap> {
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let path = unescape(words.next()?);
    let kind = words.next()?;
    let priority = std::str::from_utf8(words.nth(2)?).ok()?.parse().ok()?;
    let device = kind == b"partition";
    let uuid = || identify(Path::new(OsStr::from_bytes(&path))).ok()?;
    Some(Swap {
        uuid: if device {
            uuid().map(|found| found.uuid)
        } else {
            None
        },
        path,
        priority,
    })
}

/// Areas that cannot be taken into use again, in words.
#[must_use]
pub fn check(swaps: &[Swap]) -> Vec<String> {
    let problem = |swap: &Swap| {
        let path = show(&swap.path);
        let reason = if swap.path.ends_with(REMOVED) {
            "its file was removed"
        } else {
            let name = path.strip_prefix("/dev/")?;
            match (stacked(name), &swap.uuid) {
                (Some(what), _) => {
                    return Some(format!(
                        "the swap area {path} cannot be set up again yet: it is {what}; swapoff it first"
                    ));
                }
                (None, None) => "it has no UUID to be found again by",
                (None, Some(_)) => return None,
            }
        };
        Some(format!(
            "the swap area {path} cannot be set up again: {reason}; swapoff it first"
        ))
    };
    swaps.iter().filter_map(problem).collect()
}

/// Takes them into use, the first one first: their priorities follow from that. Returns what could not be done, in
/// words.
#[must_use]
pub fn restore(swaps: &[Swap]) -> Vec<String> {
    let on = |swap: &Swap| {
        let path = match &swap.uuid {
            Some(uuid) => {
                wait_for(&RootSpec::Uuid(uuid.clone()), WAIT)
                    .map_err(|error| error.to_string())?
                    .device
            }
            None => PathBuf::from(OsStr::from_bytes(&swap.path)),
        };
        sys::swap::on(&path, swap.priority).map_err(|errno| errno.to_string())
    };
    let failed = |swap: &Swap| {
        let error = on(swap).err()?;
        Some(format!("the swap area {}: {error}", show(&swap.path)))
    };
    swaps.iter().filter_map(failed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn areas_are_read_and_judged() {
        let tmp = TestDir::new("swaps");
        tmp.write(
            "swaps",
            "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
             /var/swap\\040file                          file\t\t262140\t\t12\t\t-2\n\
             /dev/zram0                              partition\t262140\t\t0\t\t100\n\
             /gone\\040(deleted)                              file\t\t4\t\t0\t\t-3\n",
        );
        let found = capture(tmp.path());
        let area = |path: &str, priority| Swap {
            path: path.into(),
            uuid: None,
            priority,
        };
        let want = [
            area("/var/swap file", -2),
            area("/dev/zram0", 100),
            area("/gone (deleted)", -3),
        ];
        assert_eq!(found, want);
        let problems = check(&found);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("compressed RAM"), "{problems:?}");
        assert!(problems[1].contains("removed"), "{problems:?}");
        assert!(capture(&tmp.path().join("none")).is_empty());
    }

    #[test]
    fn what_is_not_there_is_told() {
        let swap = Swap {
            path: b"/nonexistent/swap".to_vec(),
            uuid: None,
            priority: -2,
        };
        let failed = restore(&[swap]);
        assert!(failed[0].contains("/nonexistent/swap"), "{failed:?}");
    }
}
