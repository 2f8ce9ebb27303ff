//! On which processors interrupts are served (Documentation/core-api/irq/irq-affinity.rst): recorded before the jump,
//! set again after it. An interrupt's number is another one on another kernel; the names of who handles it are not.

use nix::errno::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Below `/proc`; a directory for every interrupt, with one inside for everybody who handles it.
const ALL: &str = "irq";
const PROCESSORS: &str = "smp_affinity_list";

/// Number of an interrupt, its handlers by name, and the processors it may be served on.
pub type Interrupt = (u32, Vec<String>, String);

/// All interrupts that somebody handles, by number.
#[must_use]
pub fn capture(proc: &Path) -> Vec<Interrupt> {
    handled(proc)
        .into_iter()
        .filter_map(|(number, handlers)| {
            let processors = std::fs::read_to_string(file(proc, number)).ok()?;
            Some((number, handlers, processors.trim().to_owned()))
        })
        .collect()
}

fn file(proc: &Path, number: u32) -> PathBuf {
    proc.join(ALL).join(number.to_string()).join(PROCESSORS)
}

/// Numbers and handlers.
fn handled(proc: &Path) -> BTreeMap<u32, Vec<String>> {
    let mut all = BTreeMap::new();
    for interrupt in directories(&proc.join(ALL)) {
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let number = name(&interrupt).and_then(|name| name.parse().ok());
        let mut handlers: Vec<String> = directories(&interrupt).iter().filter_map(name).collect();
        handlers.sort_unstable();
        if let (Some(number), false) = (number, handlers.is_empty()) {
            all.insert(number, handlers);
        }
    }
    all
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

/// Sets those that are served elsewhere now. Returns what could not be, in words. Who handles none here is left alone.
#[must_use]
pub fn restore(proc: &Path, interrupts: &[Interrupt]) -> Vec<String> {
    let now = handled(proc);
    let mut failed = Vec::new();
    for (number, handlers, processors) in interrupts {
        let Some(number) = same(&now, *number, handlers) else {
            continue;
        };
        let path = file(proc, number);
        let is = std::fs::read_to_string(&path).unwrap_or_default();
        if is.trim() == processors {
            continue;
        }
        match std::fs::write(&path, processors) {
            // The kernel spreads those of a device with many queues by itself.
            Err(error) if !by_kernel(&error) => {
                let name = handlers.join(", ");
                failed.push(format!(
                    "processors {processors} for interrupts of {name}: {error}"
                ));
            }
            _ => {}
        }
    }
    failed
}

/// `EPERM` on newer kernels, `EIO` on older ones.
fn by_kernel(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error();
    [Errno::EIO, Errno::EPERM]
        .iter()
        .any(|known| errno == Some(*known as i32))
}

/// The one with these handlers: that of the same number, or the only one.
fn same(now: &BTreeMap<u32, Vec<String>>, number: u32, handlers: &[String]) -> Option<u32> {
    if now.get(&number).is_some_and(|those| those == handlers) {
        return Some(number);
    }
    let mut same = now.iter().filter(|(_, those)| *those == handlers);
    let (found, _) = same.next()?;
    same.next().is_none().then_some(*found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn they_are_found_by_who_handles_them() {
        let tmp = TestDir::new("interrupts");
        for (path, text) in [
            ("old/irq/24/smp_affinity_list", "1\n"),
            ("old/irq/24/eth0-input.0/x", ""),
            ("old/irq/25/smp_affinity_list", "0\n"),
            ("old/irq/25/ahci/x", ""),
            ("old/irq/26/smp_affinity_list", "1\n"),
            ("old/irq/26/ahci/x", ""),
            ("old/irq/27/smp_affinity_list", "0-1\n"),
            ("new/irq/25/smp_affinity_list", "0-1\n"),
            ("new/irq/25/eth0-input.0/x", ""),
            ("new/irq/24/smp_affinity_list", "0-1\n"),
            ("new/irq/24/ahci/x", ""),
            ("new/irq/26/smp_affinity_list", "0-1\n"),
            ("new/irq/26/ahci/x", ""),
        ] {
            tmp.write(path, text);
        }
        let interrupts = capture(&tmp.path().join("old"));
        assert_eq!(interrupts.len(), 3);
        assert!(restore(&tmp.path().join("new"), &interrupts).is_empty());
        let read = |path: &str| std::fs::read_to_string(tmp.path().join(path)).unwrap();
        assert_eq!(read("new/irq/25/smp_affinity_list"), "1");
        assert_eq!(
            read("new/irq/24/smp_affinity_list"),
            "0-1\n",
            "which of two?"
        );
        assert_eq!(read("new/irq/26/smp_affinity_list"), "1");
    }
}
