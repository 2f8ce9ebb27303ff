//! Settings of the kernel that programs rely on (sysctl(8), and those of memory in `/sys`), read before
//! the jump and written after it. Only those that administrators change; what the new kernel does not
//! know, or what has the right value already, is left alone.

mod list;

use list::{FOLDERS, OF_INTERFACES};
use std::path::Path;

/// Path without its `/`, and value.
pub type Setting = (String, String);

/// Reads the settings this kernel has. `root` is `/`.
#[must_use]
pub fn capture(root: &Path) -> Vec<Setting> {
    let of_interfaces = OF_INTERFACES.iter().flat_map(|(folder, names)| {
        let interfaces = interfaces(root).into_iter();
        interfaces.flat_map(move |interface| {
            let path = move |name| format!("{folder}/{interface}/{name}");
            names.iter().map(path)
        })
    });
    let paths = FOLDERS
        .iter()
        .flat_map(|(folder, names)| names.iter().map(move |name| format!("{folder}/{name}")));
    let read = |name: String| {
        let text = std::fs::read_to_string(root.join(&name)).ok()?;
        let value = chosen(&text).to_owned();
        Some((name, value))
    };
    paths.chain(of_interfaces).filter_map(read).collect()
}

/// `all`, `default`, and those that are there on every kernel.
fn interfaces(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("sys/class/net"));
    let lasting = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        (name == "lo" || entry.path().join("device").exists()).then_some(name)
    });
    let common = ["all", "default"].map(str::to_owned).into_iter();
    common.chain(lasting).collect()
}

/// Those that every PID namespace has for itself (pid_namespaces(7); `pid_max` since Linux 6.14).
#[must_use]
pub fn of_pid_namespace(settings: &[Setting]) -> Vec<Setting> {
    const OWN: [&str; 2] = ["proc/sys/kernel/pid_max", "proc/sys/kernel/ns_last_pid"];
    let own = settings
        .iter()
        .filter(|(name, _)| OWN.contains(&name.as_str()));
    own.cloned().collect()
}

/// How many namespaces there may be (`/proc/sys/user`, namespaces(7)). They wait until those that the processes are
/// put into are made: there may be none at all.
#[must_use]
pub fn of_namespaces(settings: &[Setting]) -> Vec<Setting> {
    let some = settings.iter().filter(|setting| is_of_namespaces(setting));
    some.cloned().collect()
}

/// How much memory is kept free. They wait until all of it is there.
#[must_use]
pub fn of_memory(settings: &[Setting]) -> Vec<Setting> {
    let some = settings.iter().filter(|setting| is_of_memory(setting));
    some.cloned().collect()
}

/// All but [`of_namespaces`] and [`of_memory`].
#[must_use]
pub fn of_host(settings: &[Setting]) -> Vec<Setting> {
    let waits = |setting: &&Setting| is_of_namespaces(setting) || is_of_memory(setting);
    let some = settings.iter().filter(|setting| !waits(setting));
    some.cloned().collect()
}

fn is_of_memory((name, _): &Setting) -> bool {
    let own = name
        .rsplit_once('/')
        .filter(|(folder, _)| *folder == list::VM);
    own.is_some_and(|(_, name)| list::OF_MEMORY.contains(&name))
}

fn is_of_namespaces((name, _): &Setting) -> bool {
    name.starts_with("proc/sys/user/")
}

/// The word in brackets of `always [madvise] never`, or all of it.
#[must_use]
pub fn chosen(text: &str) -> &str {
    let text = text.trim_end_matches('\n');
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text, |(word, _)| word)
}

/// Writes those that have another value now. Returns what could not be written, in words.
#[must_use]
pub fn restore(root: &Path, settings: &[Setting]) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, value) in settings {
        let path = root.join(name);
        match std::fs::read_to_string(&path) {
            Ok(now) if chosen(&now) == value => {}
            Ok(_) => {
                if let Err(error) = std::fs::write(&path, value) {
                    failed.push(format!("the setting {name} = {value}: {error}"));
                }
            }
            Err(error) => failed.push(format!("the setting {name} = {value}: {error}")),
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn only_what_differs_is_written() {
        let tmp = TestDir::new("settings");
        tmp.write("old/proc/sys/kernel/hostname", "lab\n");
        tmp.write("old/proc/sys/kernel/pid_max", "4194304\n");
        tmp.write("old/proc/sys/kernel/sysrq", "1\n");
        let huge = "sys/kernel/mm/transparent_hugepage/enabled";
        tmp.write(&format!("old/{huge}"), "always [madvise] never\n");
        tmp.write(&format!("new/{huge}"), "[always] madvise never\n");
        let settings = capture(&tmp.path().join("old"));
        assert_eq!(settings.len(), 4);
        tmp.write("new/proc/sys/kernel/hostname", "(none)\n");
        tmp.write("new/proc/sys/kernel/pid_max", "4194304\n");
        let failed = restore(&tmp.path().join("new"), &settings);
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].contains("kernel/sysrq = 1"));
        let read = |name: &str| std::fs::read_to_string(tmp.path().join("new").join(name)).unwrap();
        assert_eq!(read("proc/sys/kernel/hostname"), "lab");
        assert_eq!(read(huge), "madvise");
        assert_eq!(read("proc/sys/kernel/pid_max"), "4194304\n", "not touched");
    }
}
