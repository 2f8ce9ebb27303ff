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
            "modprobe",
            "poweroff_cmd",
            "randomize_va_space",
            "dmesg_restrict",
            "kptr_restrict",
            "perf_event_paranoid",
            "perf_event_max_sample_rate",
            "perf_event_mlock_kb",
            "perf_event_max_stack",
            "io_uring_disabled",
            "io_uring_group",
            "unprivileged_bpf_disabled",
            "unprivileged_userns_clone",
            "yama/ptrace_scope",
            "sysrq",
            "ctrl-alt-del",
            "printk",
            "printk_delay",
            "printk_ratelimit",
            "printk_ratelimit_burst",
            "panic",
            "panic_on_oops",
            "panic_on_warn",
            "panic_on_rcu_stall",
            "panic_on_unrecovered_nmi",
            "softlockup_panic",
            "softlockup_all_cpu_backtrace",
            "hung_task_panic",
            "hung_task_check_count",
            "hung_task_warnings",
            "oops_limit",
            "warn_limit",
            "nmi_watchdog",
            "soft_watchdog",
            "watchdog_thresh",
            "hung_task_timeout_secs",
            "numa_balancing",
            "timer_migration",
            "sched_rr_timeslice_ms",
            "sched_schedstats",
            "sched_deadline_period_max_us",
            "sched_deadline_period_min_us",
            "sched_util_clamp_max",
            "sched_util_clamp_min",
            "sched_autogroup_enabled",
            "sched_rt_period_us",
            "sched_rt_runtime_us",
            "keys/maxkeys",
            "keys/maxbytes",
            "keys/root_maxkeys",
            "keys/root_maxbytes",
            "keys/gc_delay",
            "keys/persistent_keyring_expiry",
            "max_lock_depth",
            "overflowgid",
            "overflowuid",
            "perf_event_max_contexts_per_stack",
            "print-fatal-signals",
            "pty/max",
            "pty/reserve",
            "sched_cfs_bandwidth_slice_us",
            "split_lock_mitigate",
            "sysctl_writes_strict",
            "task_delayacct",
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
            "dir-notify-enable",
            "overflowgid",
            "overflowuid",
            "mount-max",
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
            "dirtytime_expire_seconds",
            "laptop_mode",
            "min_free_kbytes",
            "admin_reserve_kbytes",
            "user_reserve_kbytes",
            "watermark_boost_factor",
            "watermark_scale_factor",
            "lowmem_reserve_ratio",
            "compaction_proactiveness",
            "compact_unevictable_allowed",
            "hugetlb_shm_group",
            "memory_failure_early_kill",
            "memory_failure_recovery",
            "oom_dump_tasks",
            "stat_interval",
            "min_unmapped_ratio",
            "min_slab_ratio",
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
            "bpf_jit_enable",
            "bpf_jit_kallsyms",
            "bpf_jit_limit",
            "max_skb_frags",
            "mem_pcpu_rsv",
            "skb_defer_max",
            "warnings",
            "dev_weight",
            "dev_weight_rx_bias",
            "dev_weight_tx_bias",
            "flow_limit_table_len",
            "gro_normal_batch",
            "message_burst",
            "message_cost",
            "rps_sock_flow_entries",
            "tstamp_allow_data",
            "txrehash",
            "fb_tunnels_only_for_init_net",
            "devconf_inherit_init_net",
            "netdev_tstamp_prequeue",
            "high_order_alloc_disable",
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
            "ip_autobind_reuse",
            "ip_dynaddr",
            "ip_early_demux",
            "ip_forward_update_priority",
            "ip_forward_use_pmtu",
            "fwmark_reflect",
            "fib_multipath_hash_policy",
            "fib_multipath_hash_fields",
            "fib_multipath_use_neigh",
            "fib_notify_on_flag_change",
            "fib_sync_mem",
            "ipfrag_high_thresh",
            "ipfrag_low_thresh",
            "ipfrag_max_dist",
            "ipfrag_time",
            "inet_peer_maxttl",
            "inet_peer_minttl",
            "inet_peer_threshold",
            "nexthop_compat_mode",
            "ping_group_range",
            "icmp_echo_ignore_all",
            "icmp_echo_ignore_broadcasts",
            "icmp_echo_enable_probe",
            "icmp_errors_use_inbound_ifaddr",
            "icmp_ignore_bogus_error_responses",
            "icmp_msgs_burst",
            "icmp_msgs_per_sec",
            "icmp_ratemask",
            "icmp_ratelimit",
            "igmp_max_memberships",
            "igmp_max_msf",
            "igmp_link_local_mcast_reports",
            "igmp_qrv",
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
            "tcp_adv_win_scale",
            "tcp_app_win",
            "tcp_autocorking",
            "tcp_base_mss",
            "tcp_challenge_ack_limit",
            "tcp_child_ehash_entries",
            "tcp_comp_sack_delay_ns",
            "tcp_comp_sack_nr",
            "tcp_comp_sack_slack_ns",
            "tcp_dsack",
            "tcp_early_demux",
            "tcp_early_retrans",
            "tcp_ecn_fallback",
            "tcp_fastopen_blackhole_timeout_sec",
            "tcp_fastopen_key",
            "tcp_frto",
            "tcp_fwmark_accept",
            "tcp_invalid_ratelimit",
            "tcp_limit_output_bytes",
            "tcp_max_reordering",
            "tcp_migrate_req",
            "tcp_min_rtt_wlen",
            "tcp_min_snd_mss",
            "tcp_min_tso_segs",
            "tcp_mtu_probe_floor",
            "tcp_no_ssthresh_metrics_save",
            "tcp_pacing_ca_ratio",
            "tcp_pacing_ss_ratio",
            "tcp_probe_interval",
            "tcp_probe_threshold",
            "tcp_recovery",
            "tcp_reflect_tos",
            "tcp_reordering",
            "tcp_retrans_collapse",
            "tcp_stdurg",
            "tcp_syn_linear_timeouts",
            "tcp_thin_linear_timeouts",
            "tcp_tso_rtt_log",
            "tcp_tso_win_divisor",
            "tcp_workaround_signed_windows",
            "udp_child_hash_entries",
            "udp_early_demux",
        ],
    ),
    (
        "proc/sys/net/ipv6",
        &[
            "bindv6only",
            "ip_nonlocal_bind",
            "anycast_src_echo_reply",
            "auto_flowlabels",
            "fib_multipath_hash_policy",
            "fib_multipath_hash_fields",
            "fib_notify_on_flag_change",
            "flowlabel_consistency",
            "flowlabel_reflect",
            "flowlabel_state_ranges",
            "fwmark_reflect",
            "icmp/echo_ignore_all",
            "icmp/echo_ignore_anycast",
            "icmp/echo_ignore_multicast",
            "icmp/ratelimit",
            "icmp/ratemask",
            "idgen_delay",
            "idgen_retries",
            "ip6frag_high_thresh",
            "ip6frag_low_thresh",
            "ip6frag_time",
            "max_dst_opts_length",
            "max_dst_opts_number",
            "max_hbh_length",
            "max_hbh_opts_number",
            "mld_max_msf",
            "mld_qrv",
            "route/gc_elasticity",
            "route/gc_interval",
            "route/gc_min_interval_ms",
            "route/gc_thresh",
            "route/gc_timeout",
            "route/max_size",
            "route/min_adv_mss",
            "route/mtu_expires",
            "route/skip_notify_on_dev_down",
            "seg6_flowlabel",
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
            "khugepaged/alloc_sleep_millisecs",
            "khugepaged/max_ptes_shared",
            "khugepaged/max_ptes_swap",
            "use_zero_page",
        ],
    ),
    (
        "sys/kernel/mm/ksm",
        &[
            "max_page_sharing",
            "stable_node_chains_prune_millisecs",
            "use_zero_pages",
            "smart_scan",
            "pages_to_scan",
            "sleep_millisecs",
            "run",
        ],
    ),
    ("proc/irq", &["default_smp_affinity"]),
    ("proc/sys/abi", &["vsyscall32"]),
    ("proc/sys/debug", &["exception-trace"]),
    ("proc/sys/dev/tty", &["ldisc_autoload", "legacy_tiocsti"]),
    ("sys/kernel/mm/lru_gen", &["enabled", "min_ttl_ms"]),
    ("sys/kernel/mm/swap", &["vma_ra_enabled"]),
];

/// Of the neighbours of an interface (arp(7)).
const NEIGHBOURS: [&str; 13] = [
    "anycast_delay",
    "app_solicit",
    "base_reachable_time_ms",
    "delay_first_probe_time",
    "gc_stale_time",
    "locktime",
    "mcast_resolicit",
    "mcast_solicit",
    "proxy_delay",
    "proxy_qlen",
    "retrans_time_ms",
    "ucast_solicit",
    "unres_qlen_bytes",
];

/// Those that every network interface has, and `all` and `default`.
const OF_INTERFACES: &[Folder] = &[
    (
        "proc/sys/net/ipv4/conf",
        &[
            "forwarding",
            "rp_filter",
            "accept_local",
            "arp_accept",
            "accept_redirects",
            "accept_source_route",
            "arp_announce",
            "arp_filter",
            "arp_ignore",
            "arp_notify",
            "disable_policy",
            "disable_xfrm",
            "drop_gratuitous_arp",
            "drop_unicast_in_l2_multicast",
            "force_igmp_version",
            "ignore_routes_with_linkdown",
            "igmpv2_unsolicited_report_interval",
            "igmpv3_unsolicited_report_interval",
            "log_martians",
            "medium_id",
            "promote_secondaries",
            "proxy_arp",
            "proxy_arp_pvlan",
            "route_localnet",
            "secure_redirects",
            "send_redirects",
            "shared_media",
            "src_valid_mark",
            "tag",
        ],
    ),
    ("proc/sys/net/ipv4/neigh", &NEIGHBOURS),
    ("proc/sys/net/ipv6/neigh", &NEIGHBOURS),
    (
        "proc/sys/net/ipv6/conf",
        &[
            "disable_ipv6",
            "forwarding",
            "accept_dad",
            "accept_ra",
            "accept_ra_defrtr",
            "accept_ra_from_local",
            "accept_ra_min_hop_limit",
            "accept_ra_mtu",
            "accept_ra_pinfo",
            "accept_ra_rt_info_max_plen",
            "accept_ra_rt_info_min_plen",
            "accept_ra_rtr_pref",
            "accept_redirects",
            "accept_source_route",
            "addr_gen_mode",
            "autoconf",
            "dad_transmits",
            "disable_policy",
            "drop_unicast_in_l2_multicast",
            "drop_unsolicited_na",
            "enhanced_dad",
            "force_mld_version",
            "force_tllao",
            "hop_limit",
            "ignore_routes_with_linkdown",
            "keep_addr_on_down",
            "max_addresses",
            "ndisc_notify",
            "ndisc_tclass",
            "optimistic_dad",
            "proxy_ndp",
            "regen_max_retry",
            "router_probe_interval",
            "router_solicitation_delay",
            "router_solicitation_interval",
            "router_solicitation_max_interval",
            "router_solicitations",
            "suppress_frag_ndisc",
            "temp_prefered_lft",
            "temp_valid_lft",
            "use_oif_addrs_only",
            "use_optimistic",
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
    const THEM: [&str; 8] = [
        "min_free_kbytes",
        "admin_reserve_kbytes",
        "user_reserve_kbytes",
        "watermark_boost_factor",
        "watermark_scale_factor",
        "lowmem_reserve_ratio",
        "min_unmapped_ratio",
        "min_slab_ratio",
    ];
    let name = name.strip_prefix("proc/sys/vm/");
    name.is_some_and(|name| THEM.contains(&name))
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
