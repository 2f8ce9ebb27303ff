//! Settings of the kernel that programs rely on (sysctl(8)), read before the jump and written
//! after it. Only those that administrators change; what the new kernel does not know, or what has
//! the right value already, is left alone.

use std::path::Path;

/// Below `/proc/sys`. Names come before what depends on them.
const NAMES: &[&str] = &[
    "kernel/hostname",
    "kernel/domainname",
    "kernel/pid_max",
    "kernel/ns_last_pid",
    "kernel/threads-max",
    "kernel/core_pattern",
    "kernel/core_uses_pid",
    "kernel/randomize_va_space",
    "kernel/dmesg_restrict",
    "kernel/kptr_restrict",
    "kernel/perf_event_paranoid",
    "kernel/yama/ptrace_scope",
    "kernel/sysrq",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "fs/file-max",
    "fs/nr_open",
    "fs/aio-max-nr",
    "fs/pipe-max-size",
    "fs/suid_dumpable",
    "fs/protected_hardlinks",
    "fs/protected_symlinks",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "fs/inotify/max_queued_events",
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
    "vm/max_map_count",
    "vm/mmap_min_addr",
    "vm/swappiness",
    "vm/dirty_ratio",
    "vm/dirty_background_ratio",
    "net/core/somaxconn",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/rmem_default",
    "net/core/wmem_default",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_congestion_control",
    "net/unix/max_dgram_qlen",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/default/disable_ipv6",
];

/// Name below `/proc/sys` and value.
pub type Setting = (String, String);

/// Reads the settings this kernel has, from `sysctl` (`/proc/sys`).
#[must_use]
pub fn capture(sysctl: &Path) -> Vec<Setting> {
    let read = |name: &&str| {
        let value = std::fs::read_to_string(sysctl.join(name)).ok()?;
        Some(((*name).to_owned(), value.trim_end_matches('\n').to_owned()))
    };
    NAMES.iter().filter_map(read).collect()
}

/// Writes those that have another value now. Returns what could not be written, in words.
#[must_use]
pub fn restore(sysctl: &Path, settings: &[Setting]) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, value) in settings {
        let path = sysctl.join(name);
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim_end_matches('\n') == value => {}
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
        tmp.write("old/kernel/hostname", "lab\n");
        tmp.write("old/kernel/pid_max", "4194304\n");
        tmp.write("old/kernel/sysrq", "1\n");
        let settings = capture(&tmp.path().join("old"));
        assert_eq!(settings.len(), 3);
        tmp.write("new/kernel/hostname", "(none)\n");
        tmp.write("new/kernel/pid_max", "4194304\n");
        let failed = restore(&tmp.path().join("new"), &settings);
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].contains("kernel/sysrq = 1"));
        let read = |name: &str| std::fs::read_to_string(tmp.path().join("new").join(name)).unwrap();
        assert_eq!(read("kernel/hostname"), "lab");
        assert_eq!(read("kernel/pid_max"), "4194304\n", "not touched");
    }
}
