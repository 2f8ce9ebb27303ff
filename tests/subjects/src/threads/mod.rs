//! What threads and processes are, apart from their memory.

mod altstack;
mod attributes;
mod barriers;
mod capabilities;
pub(crate) mod cgroups;
mod confined;
mod credentials;
mod descriptors;
mod directory;
mod dispatch;
mod flags;
mod landlock;
mod leader;
mod limits;
mod listener;
mod lists;
mod names;
mod namespaces;
mod ports;
mod profiles;
mod registers;
mod scheduling;
pub(crate) mod seccomp;
mod segments;
mod shared_tables;
mod steps;
mod tiles;

use crate::registry::{Group, subject};

/// Threads.
pub(crate) const GROUP: Group = Group {
    name: "threads",
    subjects: &[
        subject(
            "registers",
            "general, x87, SSE, AVX and AVX-512 registers of 16 threads",
            registers::start,
        ),
        subject("amx", "tiles of AMX in three threads", tiles::held),
        subject(
            "amx-asked",
            "leave to use AMX that no thread has used",
            tiles::asked,
        ),
        subject(
            "steps",
            "a thread that steps itself by the trap flag",
            steps::start,
        ),
        subject("flag-id", "the flag of RFLAGS for CPUID", flags::start),
        subject("segments", "fs and gs base of threads", segments::start),
        subject(
            "ldt",
            "segments of a process's own (modify_ldt)",
            segments::table,
        ),
        subject("thread-names", "names of threads", names::start),
        subject(
            "credentials",
            "credentials per thread: real, effective, saved, file system, groups",
            credentials::start,
        ),
        subject(
            "groups-most",
            "as many supplementary groups as there can be",
            credentials::most_groups,
        ),
        subject(
            "capabilities",
            "capability sets per thread",
            capabilities::sets,
        ),
        subject(
            "ambient",
            "ambient and bounding capabilities, securebits",
            capabilities::ambient,
        ),
        subject(
            "capabilities-orders",
            "capabilities outside of the bounding set, locked securebits that are off",
            capabilities::orders,
        ),
        subject(
            "no-new-privs",
            "no_new_privs per thread",
            attributes::no_new_privs,
        ),
        subject("limits", "resource limits", limits::start),
        subject(
            "limits-used-up",
            "resource limits below what is used",
            limits::used_up,
        ),
        subject(
            "limits-processes",
            "RLIMIT_NPROC below the number of a user's processes",
            limits::too_many,
        ),
        subject("umask", "umask", directory::umask),
        subject("cwd", "working directory", directory::start),
        subject(
            "cwd-removed",
            "a working directory that was removed",
            directory::removed,
        ),
        subject(
            "directories-of-threads",
            "directories and umasks of single threads",
            directory::of_threads,
        ),
        subject(
            "directories-of-others",
            "directories that threads share and the first thread has not, with other tables of their own",
            directory::of_others,
        ),
        subject(
            "descriptors-of-threads",
            "descriptors of a thread that has left its process's table",
            descriptors::apart,
        ),
        subject(
            "descriptors-of-others",
            "descriptors that threads share and the first thread has not",
            descriptors::shared,
        ),
        subject(
            "recv-timed-apart",
            "recv with SO_RCVTIMEO on a descriptor of one thread, stopped twice",
            descriptors::waiting,
        ),
        subject("chroot", "a root directory of its own", directory::root),
        subject(
            "policy",
            "scheduling policies and priorities per thread",
            scheduling::policies,
        ),
        subject("slices", "time slices per thread", scheduling::slices),
        subject(
            "utilisation",
            "bounds of utilisation per thread (sched_util_min, sched_util_max)",
            scheduling::utilisation,
        ),
        subject("nice", "nice values per thread", scheduling::nice),
        subject(
            "idle-priority",
            "priorities of SCHED_IDLE by another nice value",
            scheduling::idle,
        ),
        subject("affinity", "affinity per thread", scheduling::affinity),
        subject("ioprio", "I/O priorities per thread", scheduling::ioprio),
        subject("timer-slack", "timer slack per thread", scheduling::slack),
        subject(
            "timer-slack-first",
            "timer slack that threads have from who made them",
            scheduling::first_slack,
        ),
        subject(
            "cgroups",
            "control groups of processes and threads",
            cgroups::start,
        ),
        subject(
            "cgroups-delegated",
            "owners and attributes of control groups, one of them empty",
            cgroups::delegated,
        ),
        subject(
            "cgroups-held",
            "a child that a control group holds still (cgroup.freeze)",
            cgroups::held,
        ),
        subject(
            "cgroups-watched",
            "an inotify watch of a control group's events",
            cgroups::watched,
        ),
        subject(
            "autogroup",
            "nice value of the session's autogroup",
            cgroups::autogroup,
        ),
        subject("robust-list", "robust futex lists", lists::robust),
        subject(
            "tid-address",
            "clear-child-tid addresses",
            lists::tid_address,
        ),
        subject("rseq", "restartable sequences", lists::rseq),
        subject(
            "altstack",
            "alternate signal stacks per thread",
            altstack::start,
        ),
        subject("dumpable", "dumpable", attributes::dumpable),
        subject(
            "pdeathsig",
            "the signal at the parent's death",
            attributes::pdeathsig,
        ),
        subject("subreaper", "child subreaper", attributes::subreaper),
        subject(
            "thp-disabled",
            "huge pages switched off for the process",
            attributes::thp,
        ),
        subject(
            "thp-advised",
            "huge pages switched off but where they are asked for (PR_THP_DISABLE_EXCEPT_ADVISED)",
            attributes::thp_advised,
        ),
        subject(
            "futex-slots",
            "the size of a process's own table of futexes (PR_FUTEX_HASH)",
            attributes::futex_slots,
        ),
        subject("personality", "personality", attributes::personality),
        subject(
            "coredump-filter",
            "coredump filter",
            attributes::coredump_filter,
        ),
        subject(
            "oom-score-adj",
            "OOM score adjustment",
            attributes::oom_score_adj,
        ),
        subject(
            "oom-score-bound",
            "OOM score adjustment that an unprivileged process has raised",
            attributes::oom_score_bound,
        ),
        subject("keepcaps", "keep-capabilities flag", attributes::keepcaps),
        subject("machine-check", "machine check policy", attributes::mce),
        subject("io-flusher", "I/O flusher state", attributes::io_flusher),
        subject(
            "memory-barriers",
            "what a process is registered for with membarrier",
            barriers::registered,
        ),
        subject(
            "seccomp-busy",
            "threads that make calls which a filter denies, without a pause",
            seccomp::busy,
        ),
        subject(
            "seccomp-listener",
            "a child whose calls its parent decides about (seccomp_unotify)",
            listener::of_child,
        ),
        subject(
            "seccomp-listener-waiting",
            "a call that waits for a decision of another thread (seccomp_unotify)",
            listener::waiting,
        ),
        subject("seccomp-strict", "seccomp strict mode", seccomp::strict),
        subject(
            "seccomp-filter",
            "seccomp filters of a process",
            seccomp::filter,
        ),
        subject(
            "seccomp-threads",
            "seccomp filter stacks that differ between threads",
            seccomp::threads,
        ),
        subject(
            "seccomp-order",
            "seccomp filters in their order",
            seccomp::order,
        ),
        subject(
            "profiles",
            "profiles of AppArmor of threads, one of which forbids signals",
            profiles::start,
        ),
        subject("landlock", "a domain of Landlock", landlock::plain),
        subject(
            "landlock-everything",
            "a domain of Landlock that forbids all there is",
            landlock::everything,
        ),
        subject(
            "landlock-files",
            "rules of Landlock for directories and files",
            landlock::files,
        ),
        subject(
            "landlock-ruleset",
            "a ruleset of Landlock that nobody has enforced yet",
            landlock::open_ruleset,
        ),
        subject(
            "landlock-process",
            "a domain of Landlock that all threads are in",
            landlock::process,
        ),
        subject(
            "landlock-stacked",
            "layers of Landlock that differ between threads",
            landlock::stacked,
        ),
        subject(
            "landlock-network",
            "rules of Landlock for ports",
            landlock::network,
        ),
        subject(
            "landlock-scopes",
            "scopes of Landlock for signals and sockets",
            landlock::scopes,
        ),
        subject(
            "landlock-scopes-shared",
            "scopes of Landlock that several threads are in who may start programs",
            landlock::scopes_shared,
        ),
        subject(
            "landlock-scopes-family",
            "scopes of Landlock that threads and children are in",
            landlock::scopes_family,
        ),
        subject(
            "landlock-opened",
            "files opened in a domain of Landlock that denies to truncate them",
            landlock::opened,
        ),
        subject(
            "landlock-epoll",
            "a domain of Landlock and an epoll entry whose number was closed",
            landlock::epoll,
        ),
        subject(
            "landlock-shared",
            "a domain of Landlock that several processes are in",
            landlock::shared,
        ),
        subject(
            "namespace-thread",
            "a thread in a namespace of its own",
            namespaces::of_thread,
        ),
        subject(
            "namespace-children",
            "a namespace that only children will be in",
            namespaces::of_children,
        ),
        subject("ports", "ports of devices (ioperm)", ports::start),
        subject("keys", "keys in a process keyring", confined::keys),
        subject(
            "request-keyring",
            "the keyring that new keys come to (KEYCTL_SET_REQKEY_KEYRING)",
            confined::request_keyring,
        ),
        subject(
            "session-keys",
            "keys in a keyring of the session",
            confined::session_keys,
        ),
        subject("syscall-dispatch", "syscall user dispatch", dispatch::start),
        subject(
            "leader-exited",
            "a leader that exited while its threads run",
            leader::start,
        ),
        subject(
            "leader-exited-itimer",
            "an interval timer of a process whose leader exited, which expires meanwhile",
            leader::interval_timer,
        ),
        subject(
            "clone-files",
            "a descriptor table shared by processes",
            shared_tables::files,
        ),
        subject(
            "clone-io",
            "an I/O context shared by processes",
            shared_tables::io,
        ),
        subject(
            "clone-vm-brothers",
            "memory that brothers share and their parent has not",
            shared_tables::brothers,
        ),
        subject(
            "clone-io-threads",
            "an I/O context that threads share and their leader has not",
            shared_tables::io_of_threads,
        ),
        subject(
            "clone-fs",
            "a working directory shared by processes",
            shared_tables::fs,
        ),
        subject(
            "clone-vm",
            "memory and signal handlers shared by processes",
            shared_tables::vm,
        ),
        subject("many-threads", "two hundred threads", names::many),
    ],
};
