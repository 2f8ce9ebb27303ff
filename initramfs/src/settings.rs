//! Settings of the kernel that programs rely on (sysctl(8), and those of memory in `/sys`), read before
//! the jump and written after it. Only those that administrators change; what the new kernel does not
//! know, or what has the right value already, is left alone.

use std::path::Path;

/// Settings below a folder.
type Folder = (&'static str, &'static [&'static str]);

/// Paths without their `/`. Names come before what depends on them, and shares before sizes, which replace them.
/// Some depend on the size of the memory, of which a new kernel knows only a part while it boots.
const FOLDERS: &[Folder] = &[
    (
        "proc/sys/kernel",
        &[
            "hostname",
            "domainname",
            "pid_max",
            "ns_last_pid",
            "threads-max",
            "core_pattern",
            "core_pipe_limit",
            "core_uses_pid",
            "randomize_va_space",
            "dmesg_restrict",
            "kptr_restrict",
            "perf_event_paranoid",
            "unprivileged_bpf_disabled",
            "unprivileged_userns_clone",
            "yama/ptrace_scope",
            "sysrq",
            "panic",
            "panic_on_oops",
            "panic_on_warn",
            "hung_task_timeout_secs",
            "numa_balancing",
            "sched_autogroup_enabled",
            "sched_rt_period_us",
            "sched_rt_runtime_us",
            "keys/maxkeys",
            "keys/maxbytes",
            "shmmax",
            "shmall",
            "shmmni",
            "shm_rmid_forced",
            "msgmax",
            "msgmnb",
            "msgmni",
            "sem",
        ],
    ),
    (
        "proc/sys/fs",
        &[
            "file-max",
            "nr_open",
            "aio-max-nr",
            "pipe-max-size",
            "pipe-user-pages-hard",
            "pipe-user-pages-soft",
            "suid_dumpable",
            "protected_fifos",
            "protected_hardlinks",
            "protected_regular",
            "protected_symlinks",
            "leases-enable",
            "lease-break-time",
            "epoll/max_user_watches",
            "inotify/max_user_instances",
            "inotify/max_user_watches",
            "inotify/max_queued_events",
            "fanotify/max_user_groups",
            "fanotify/max_user_marks",
            "fanotify/max_queued_events",
            "mqueue/queues_max",
            "mqueue/msg_max",
            "mqueue/msgsize_max",
            "mqueue/msg_default",
            "mqueue/msgsize_default",
        ],
    ),
    (
        "proc/sys/user",
        &[
            "max_cgroup_namespaces",
            "max_ipc_namespaces",
            "max_mnt_namespaces",
            "max_net_namespaces",
            "max_pid_namespaces",
            "max_time_namespaces",
            "max_user_namespaces",
            "max_uts_namespaces",
        ],
    ),
    (
        "proc/sys/vm",
        &[
            "overcommit_memory",
            "overcommit_ratio",
            "overcommit_kbytes",
            "max_map_count",
            "mmap_min_addr",
            "mmap_rnd_bits",
            "legacy_va_layout",
            "swappiness",
            "vfs_cache_pressure",
            "page-cluster",
            "zone_reclaim_mode",
            "panic_on_oom",
            "oom_kill_allocating_task",
            "unprivileged_userfaultfd",
            "dirty_ratio",
            "dirty_background_ratio",
            "dirty_bytes",
            "dirty_background_bytes",
            "dirty_expire_centisecs",
            "dirty_writeback_centisecs",
        ],
    ),
    (
        "proc/sys/net/core",
        &[
            "default_qdisc",
            "somaxconn",
            "rmem_max",
            "wmem_max",
            "rmem_default",
            "wmem_default",
            "optmem_max",
            "netdev_max_backlog",
            "netdev_budget",
            "netdev_budget_usecs",
            "busy_poll",
            "busy_read",
            "bpf_jit_harden",
        ],
    ),
    (
        "proc/sys/net/ipv4",
        &[
            "ip_forward",
            "ip_default_ttl",
            "ip_nonlocal_bind",
            "ip_no_pmtu_disc",
            "ip_local_port_range",
            "ip_local_reserved_ports",
            "ip_unprivileged_port_start",
            "ping_group_range",
            "icmp_echo_ignore_all",
            "icmp_echo_ignore_broadcasts",
            "icmp_ratelimit",
            "igmp_max_memberships",
            "igmp_max_msf",
            "neigh/default/gc_thresh1",
            "neigh/default/gc_thresh2",
            "neigh/default/gc_thresh3",
            "tcp_rmem",
            "tcp_wmem",
            "tcp_mem",
            "udp_mem",
            "udp_rmem_min",
            "udp_wmem_min",
            "tcp_syncookies",
            "tcp_congestion_control",
            "tcp_allowed_congestion_control",
            "tcp_ecn",
            "tcp_fastopen",
            "tcp_fin_timeout",
            "tcp_keepalive_time",
            "tcp_keepalive_intvl",
            "tcp_keepalive_probes",
            "tcp_max_orphans",
            "tcp_max_syn_backlog",
            "tcp_max_tw_buckets",
            "tcp_moderate_rcvbuf",
            "tcp_mtu_probing",
            "tcp_no_metrics_save",
            "tcp_notsent_lowat",
            "tcp_orphan_retries",
            "tcp_retries1",
            "tcp_retries2",
            "tcp_rfc1337",
            "tcp_sack",
            "tcp_slow_start_after_idle",
            "tcp_syn_retries",
            "tcp_synack_retries",
            "tcp_abort_on_overflow",
            "tcp_timestamps",
            "tcp_tw_reuse",
            "tcp_window_scaling",
        ],
    ),
    (
        "proc/sys/net/ipv6",
        &[
            "bindv6only",
            "ip_nonlocal_bind",
            "neigh/default/gc_thresh1",
            "neigh/default/gc_thresh2",
            "neigh/default/gc_thresh3",
        ],
    ),
    ("proc/sys/net/unix", &["max_dgram_qlen"]),
    (
        "sys/kernel/mm/transparent_hugepage",
        &[
            "enabled",
            "defrag",
            "shmem_enabled",
            "khugepaged/defrag",
            "khugepaged/max_ptes_none",
            "khugepaged/pages_to_scan",
            "khugepaged/scan_sleep_millisecs",
        ],
    ),
    (
        "sys/kernel/mm/ksm",
        &["pages_to_scan", "sleep_millisecs", "run"],
    ),
];

/// Those that every network interface has, and `all` and `default`.
const OF_INTERFACES: &[Folder] = &[
    (
        "proc/sys/net/ipv4/conf",
        &[
            "forwarding",
            "rp_filter",
            "accept_local",
            "accept_redirects",
            "accept_source_route",
            "arp_announce",
            "arp_filter",
            "arp_ignore",
            "log_martians",
            "proxy_arp",
            "route_localnet",
            "secure_redirects",
            "send_redirects",
        ],
    ),
    (
        "proc/sys/net/ipv6/conf",
        &[
            "disable_ipv6",
            "forwarding",
            "accept_ra",
            "accept_redirects",
            "accept_source_route",
            "addr_gen_mode",
            "autoconf",
            "use_tempaddr",
        ],
    ),
];

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

/// All but [`of_namespaces`].
#[must_use]
pub fn of_host(settings: &[Setting]) -> Vec<Setting> {
    let some = settings.iter().filter(|setting| !is_of_namespaces(setting));
    some.cloned().collect()
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
