//! Parents, children, sessions and process groups.

mod family;
mod groups;
mod killed;
mod threads;
mod vfork;
mod zombies;

use crate::registry::{Group, subject};

/// Ancestry.
pub(crate) const GROUP: Group = Group {
    name: "ancestry",
    subjects: &[
        subject(
            "family",
            "a tree of processes with its PIDs and parents",
            family::start,
        ),
        subject("wide-family", "a hundred children", family::wide),
        subject(
            "killed-at-once",
            "children that are killed as soon as their parent runs",
            killed::start,
        ),
        subject(
            "children-of-threads",
            "children of threads, killed with the thread that made them",
            threads::start,
        ),
        subject(
            "orphans",
            "orphans taken over by a subreaper",
            family::orphans,
        ),
        subject(
            "groups",
            "process groups, one with a leader that is gone",
            groups::groups,
        ),
        subject(
            "sessions",
            "sessions, one with a leader that is gone",
            groups::sessions,
        ),
        subject(
            "sessions-since",
            "children forked before generations of their parents founded sessions",
            groups::forked_before_setsid,
        ),
        subject(
            "groups-swapped",
            "founders of groups that are in each other's",
            groups::swapped_groups,
        ),
        subject(
            "group-of-zombie",
            "a group whose leader is a zombie",
            groups::zombie_leader,
        ),
        subject(
            "zombies",
            "zombies that nobody has waited for, with their status",
            zombies::start,
        ),
        subject(
            "zombies-of-session",
            "an ended leader of a session and a member that it has not waited for",
            zombies::session,
        ),
        subject(
            "zombies-kept",
            "zombies of who ignores SIGCHLD since, and what is seen of them",
            zombies::kept_all_the_same,
        ),
        subject(
            "zombie-limits",
            "resource limits of a zombie",
            zombies::limited,
        ),
        subject(
            "zombie-namespace",
            "a zombie that had a user namespace of its own",
            zombies::with_namespace,
        ),
        subject(
            "zombie-killed",
            "a zombie killed by a signal",
            zombies::killed,
        ),
        subject(
            "zombie-dumped",
            "a zombie that has dumped its core",
            zombies::dumped,
        ),
        subject(
            "zombie-user",
            "user and group of a zombie",
            zombies::belonging,
        ),
        subject(
            "zombie-personality",
            "personality of a zombie",
            zombies::personality,
        ),
        subject(
            "exit-signal",
            "children that end with another signal than SIGCHLD",
            zombies::exit_signal,
        ),
        subject(
            "exit-signals-told",
            "ended children whose signals at their end wait, or do not any more",
            zombies::exit_signals_told,
        ),
        subject(
            "exit-signals-of-threads",
            "children with threads that end with another signal than SIGCHLD",
            zombies::exit_signal_of_threads,
        ),
        subject(
            "zombies-order",
            "ended children, orphans among them, in the order in which their parent got them",
            zombies::order,
        ),
        subject(
            "vfork",
            "a parent in vfork(2) whose child ends",
            vfork::exit,
        ),
        subject(
            "vfork-beside",
            "a parent in vfork(2) that has other children",
            vfork::beside_others,
        ),
        subject(
            "vfork-exec",
            "a parent in vfork(2) whose child starts another program",
            vfork::exec,
        ),
        subject(
            "vfork-nested",
            "a parent in vfork(2) whose child is in vfork(2) itself",
            vfork::nested,
        ),
        subject(
            "vfork-copied",
            "a parent in vfork(2) whose child has memory of its own",
            vfork::copied,
        ),
        subject(
            "vfork-copied-threads",
            "a leader in vfork(2) whose child has memory of its own, while its threads run",
            vfork::copied_of_leader,
        ),
        subject(
            "vfork-timers",
            "a parent in vfork(2) with timers",
            vfork::timers,
        ),
        subject(
            "vfork-timers-copied",
            "a parent in vfork(2) with timers, whose child has memory of its own",
            vfork::timers_copied,
        ),
        subject(
            "vfork-leader",
            "a leader in vfork(2) while its threads run",
            vfork::leader,
        ),
        subject(
            "vfork-thread",
            "a thread in vfork(2) while others run",
            vfork::thread,
        ),
        subject(
            "vfork-signals",
            "a parent in vfork(2) with queued signals",
            vfork::signals,
        ),
        subject(
            "vfork-signals-threads",
            "a leader in vfork(2) with queued signals, while its threads run",
            vfork::signals_of_leader,
        ),
        subject(
            "vfork-filters",
            "a parent in vfork(2) with seccomp filters",
            vfork::filters,
        ),
        subject(
            "vfork-user",
            "a user's parent in vfork(2) whose child ends, with queued signals",
            vfork::of_user,
        ),
        subject(
            "vfork-user-exec",
            "a user's parent in vfork(2) with seccomp filters whose child starts another program",
            vfork::exec_of_user,
        ),
        subject(
            "vfork-user-nested",
            "a user's parent in vfork(2) whose child is in vfork(2) itself",
            vfork::nested_of_user,
        ),
        subject(
            "vfork-user-thread",
            "a user's thread in vfork(2) with filters that others have not",
            vfork::thread_of_user,
        ),
        subject(
            "vfork-user-leader",
            "a user's leader in vfork(2) with queued signals, while its threads run",
            vfork::leader_of_user,
        ),
        subject(
            "vfork-user-timers",
            "a user's parent in vfork(2) with timers",
            vfork::timers_of_user,
        ),
        subject(
            "vfork-user-stopped",
            "a user's parent in vfork(2) whose child is stopped",
            vfork::stopped_child,
        ),
        subject(
            "vfork-policy",
            "a parent in vfork(2) with a scheduling policy",
            vfork::policy,
        ),
        subject(
            "vfork-filters-own",
            "a thread in vfork(2) with seccomp filters that others have not",
            vfork::own_filters,
        ),
        subject(
            "vfork-filters-threads",
            "a leader in vfork(2) with seccomp filters, while its threads run",
            vfork::filters_of_leader,
        ),
    ],
};
