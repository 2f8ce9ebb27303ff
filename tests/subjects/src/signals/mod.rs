//! Signals.

mod dispositions;
mod filtered;
mod handler;
mod pending;
mod running;
mod stopped;
mod traced;
mod traced_debug;
mod traced_empty;
pub(crate) mod traced_timers;

use crate::registry::{Group, subject};

/// Signals.
pub(crate) const GROUP: Group = Group {
    name: "signals",
    subjects: &[
        subject(
            "dispositions",
            "dispositions with flags, masks and restorers",
            dispositions::start,
        ),
        subject("masks", "signal masks per thread", dispositions::masks),
        subject(
            "pending-process",
            "signals pending for a process, with their siginfo",
            pending::process,
        ),
        subject(
            "pending-thread",
            "signals pending for a thread, with their siginfo",
            pending::thread,
        ),
        subject(
            "pending-queue",
            "real-time signals queued in order",
            pending::queue,
        ),
        subject(
            "pending-plain",
            "every plain signal queued, those of faults among them",
            pending::plain,
        ),
        subject(
            "pending-stops",
            "signals queued that would stop a job",
            pending::stops,
        ),
        subject(
            "pending-every",
            "every signal queued, so that none is left",
            pending::every,
        ),
        subject("pending-many", "thousands of signals queued", pending::many),
        subject(
            "pending-limited",
            "more signals queued than RLIMIT_SIGPENDING allows by now",
            pending::limited,
        ),
        subject(
            "pending-trap",
            "SIGTRAP ignored, and pending",
            pending::trap,
        ),
        subject(
            "pending-kinds",
            "pending SIGCHLD and timer signals",
            pending::kinds,
        ),
        subject("handler", "a handler in progress", handler::start),
        subject(
            "handler-nested",
            "nested handlers on an alternate stack",
            handler::nested,
        ),
        subject(
            "stopped",
            "a stopped child whose stop was reported",
            stopped::reported,
        ),
        subject(
            "stopped-nap",
            "a nap that was over while its process was stopped",
            stopped::nap,
        ),
        subject(
            "stopped-threads",
            "a stopped child with many threads",
            stopped::threads,
        ),
        subject(
            "stopped-unreported",
            "a stopped child whose stop nobody has waited for",
            stopped::unreported,
        ),
        subject(
            "stopped-job",
            "a stopped background job with several processes",
            stopped::job,
        ),
        subject(
            "stopped-twice",
            "a stopped child that another SIGSTOP waits for",
            stopped::twice,
        ),
        subject(
            "continued-unreported",
            "a continued child that nobody has waited for",
            stopped::continued,
        ),
        subject(
            "continue-blocked",
            "SIGCONT that waits for a child whose threads sleep",
            stopped::blocked,
        ),
        subject(
            "traced-signal",
            "a traced child before a signal is delivered to it",
            traced::signalled,
        ),
        subject(
            "traced-entry-plain",
            "a traced child before a system call, without PTRACE_O_TRACESYSGOOD",
            traced::plain_entry,
        ),
        subject(
            "traced-exit-plain",
            "a traced child behind a system call, without PTRACE_O_TRACESYSGOOD",
            traced::plain_exit,
        ),
        subject(
            "traced-timers",
            "a traced child with interval timers and POSIX timers",
            traced_timers::timers,
        ),
        subject(
            "traced-empty",
            "a traced child that has unmapped all its memory",
            traced_empty::start,
        ),
        subject(
            "traced-attached",
            "a sleeping child that was attached to",
            traced::attached,
        ),
        subject(
            "traced-seized",
            "a running child that was seized and interrupted",
            traced::seized,
        ),
        subject(
            "traced-entry",
            "a traced child before a system call",
            traced::entry,
        ),
        subject(
            "traced-exit",
            "a traced child behind a system call",
            traced::exit,
        ),
        subject(
            "traced-unread",
            "a traced child whose stop nobody has waited for",
            traced::unread,
        ),
        subject(
            "traced-threads",
            "a traced child with several threads",
            traced::threaded,
        ),
        subject(
            "traced-emulated",
            "a traced child before a system call that is not made (PTRACE_SYSEMU)",
            traced_debug::emulated,
        ),
        subject(
            "traced-watched",
            "a traced child with a hardware break point",
            traced_debug::watched,
        ),
        subject(
            "traced-by-two",
            "two tracers, and a tracee of each",
            traced_debug::two_tracers,
        ),
        subject(
            "traced-breakpoint",
            "a traced child with threads at a break point",
            traced::breakpoint,
        ),
        subject(
            "traced-group",
            "a traced child in a group stop",
            traced::group_stopped,
        ),
        subject(
            "traced-group-seized",
            "a seized child whose threads are in a group stop",
            traced::group_seized,
        ),
        subject(
            "traced-listens",
            "a seized child that listens in a group stop",
            traced::listening,
        ),
        subject(
            "traced-filters",
            "a traced child with seccomp filters, before a signal",
            filtered::signalled,
        ),
        subject(
            "traced-filters-entry",
            "a traced child with seccomp filters, before a system call",
            filtered::entry,
        ),
        subject(
            "traced-filters-exit",
            "a traced child with seccomp filters, behind a system call",
            filtered::exit,
        ),
        subject(
            "traced-filters-threads",
            "a seized child whose threads have other seccomp filters each",
            filtered::threads,
        ),
        subject(
            "traced-filters-event",
            "a traced child whose filter asks its tracer (PTRACE_EVENT_SECCOMP)",
            filtered::event,
        ),
        subject(
            "traced-filters-runs",
            "a traced child with seccomp filters that sleeps again and again",
            running::filtered,
        ),
        subject(
            "traced-runs",
            "a traced child that runs while its tracer waits",
            running::spinning,
        ),
        subject(
            "traced-attached-runs",
            "a child that runs, attached to by who waits in poll",
            |_| running::attached(running::By::Poll),
        ),
        subject(
            "traced-by-read",
            "a child that runs, while its tracer reads a signalfd",
            |_| running::attached(running::By::Read),
        ),
        subject(
            "traced-by-epoll",
            "a child that runs, while its tracer waits in epoll_wait",
            |_| running::attached(running::By::Epoll),
        ),
        subject(
            "traced-by-select",
            "a child that runs, while its tracer waits in pselect",
            |_| running::attached(running::By::Select),
        ),
        subject(
            "traced-by-sigwait",
            "a child that runs, while its tracer waits in sigwaitinfo",
            |_| running::attached(running::By::Wait),
        ),
        subject(
            "traced-by-suspend",
            "a child that runs, while its tracer waits in sigsuspend",
            |_| running::attached(running::By::Suspend),
        ),
        subject(
            "traced-naps",
            "a child that sleeps again and again, traced from call to call",
            running::napping,
        ),
        subject(
            "traced-waits",
            "a child in a call that stops make fail, traced from call to call",
            running::waiting,
        ),
    ],
};
