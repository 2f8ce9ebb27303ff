//! Settings of the kernel that programs rely on (sysctl(8), and those of memory in `/sys`), read before
//! the jump and written after it. Only those that administrators change; what the new kernel does not
//! know, or what has the right value already, is left alone.

use std::path::Path;

/// Paths without their `/`. Names come before what depends on them.
const NAMES: &[&str] = &[
    "proc/sys/kernel/hostname",
    "proc/sys/kernel/domainname",
    "proc/sys/kernel/pid_max",
    "proc/sys/kernel/ns_last_pid",
    "proc/sys/kernel/threads-max",
    "proc/sys/kernel/core_pattern",
    "proc/sys/kernel/core_uses_pid",
    "proc/sys/kernel/randomize_va_space",
    "proc/sys/kernel/dmesg_restrict",
    "proc/sys/kernel/kptr_restrict",
    "proc/sys/kernel/perf_event_paranoid",
    "proc/sys/kernel/yama/ptrace_scope",
    "proc/sys/kernel/sysrq",
    "proc/sys/kernel/panic",
    "proc/sys/kernel/panic_on_oops",
    "proc/sys/kernel/shmmax",
    "proc/sys/kernel/shmall",
    "proc/sys/kernel/shmmni",
    "proc/sys/kernel/msgmax",
    "proc/sys/kernel/msgmnb",
    "proc/sys/kernel/msgmni",
    "proc/sys/kernel/sem",
    "proc/sys/fs/file-max",
    "proc/sys/fs/nr_open",
    "proc/sys/fs/aio-max-nr",
    "proc/sys/fs/pipe-max-size",
    "proc/sys/fs/suid_dumpable",
    "proc/sys/fs/protected_hardlinks",
    "proc/sys/fs/protected_symlinks",
    "proc/sys/fs/inotify/max_user_instances",
    "proc/sys/fs/inotify/max_user_watches",
    "proc/sys/fs/inotify/max_queued_events",
    "proc/sys/vm/overcommit_memory",
    "proc/sys/vm/overcommit_ratio",
    "proc/sys/vm/max_map_count",
    "proc/sys/vm/mmap_min_addr",
    "proc/sys/vm/swappiness",
    "proc/sys/vm/dirty_ratio",
    "proc/sys/vm/dirty_background_ratio",
    "proc/sys/net/core/somaxconn",
    "proc/sys/net/core/rmem_max",
    "proc/sys/net/core/wmem_max",
    "proc/sys/net/core/rmem_default",
    "proc/sys/net/core/wmem_default",
    "proc/sys/net/ipv4/ip_forward",
    "proc/sys/net/ipv4/ip_local_port_range",
    "proc/sys/net/ipv4/ip_local_reserved_ports",
    "proc/sys/net/ipv4/ip_unprivileged_port_start",
    "proc/sys/net/ipv4/ping_group_range",
    "proc/sys/net/ipv4/tcp_rmem",
    "proc/sys/net/ipv4/tcp_wmem",
    "proc/sys/net/ipv4/tcp_syncookies",
    "proc/sys/net/ipv4/tcp_congestion_control",
    "proc/sys/net/unix/max_dgram_qlen",
    "proc/sys/net/ipv6/conf/all/disable_ipv6",
    "proc/sys/net/ipv6/conf/default/disable_ipv6",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/kernel/mm/transparent_hugepage/defrag",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none",
    "sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan",
    "sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
    "sys/kernel/mm/ksm/pages_to_scan",
    "sys/kernel/mm/ksm/sleep_millisecs",
    "sys/kernel/mm/ksm/run",
];

/// Path without its `/`, and value.
pub type Setting = (String, String);

/// Reads the settings this kernel has. `root` is `/`.
#[must_use]
pub fn capture(root: &Path) -> Vec<Setting> {
    let read = |name: &&str| {
        let text = std::fs::read_to_string(root.join(name)).ok()?;
        Some(((*name).to_owned(), chosen(&text).to_owned()))
    };
    NAMES.iter().filter_map(read).collect()
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
