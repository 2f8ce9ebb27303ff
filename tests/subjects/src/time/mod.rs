//! Timers and clocks.

mod clocks;
mod cpu;
mod itimers;
mod owners;
mod posix;
mod timerfd;

use crate::registry::{Group, subject};

/// Time.
pub(crate) const GROUP: Group = Group {
    name: "time",
    subjects: &[
        subject(
            "clocks",
            "CLOCK_MONOTONIC and CLOCK_BOOTTIME never go back",
            clocks::start,
        ),
        subject(
            "cpu-clocks",
            "clocks of processor time of a process and its threads",
            cpu::start,
        ),
        subject(
            "cpu-clocks-family",
            "clocks of processor time of parent and child",
            cpu::family,
        ),
        subject(
            "cpu-clocks-filtered",
            "clocks of processor time behind seccomp filters",
            cpu::filtered,
        ),
        subject(
            "cpu-clocks-crowd",
            "clocks of processor time of the busy ones among hundreds of threads",
            cpu::crowd,
        ),
        subject(
            "cpu-clocks-busy",
            "clocks of processor time that threads read without a pause",
            cpu::busy,
        ),
        subject("itimer-real", "setitimer(ITIMER_REAL)", itimers::real),
        subject("itimer-virtual", "setitimer(ITIMER_VIRTUAL)", itimers::virt),
        subject("itimer-prof", "setitimer(ITIMER_PROF)", itimers::prof),
        subject(
            "itimer-ticks",
            "setitimer(ITIMER_VIRTUAL, ITIMER_PROF) to the microsecond",
            itimers::ticks,
        ),
        subject(
            "itimer-periodic",
            "a periodic interval timer fires on",
            itimers::periodic,
        ),
        subject(
            "itimer-phase",
            "a periodic interval timer keeps its phase",
            itimers::phase,
        ),
        subject(
            "itimer-phase-taken",
            "a periodic interval timer keeps its phase while its signal waits",
            itimers::phase_taken,
        ),
        subject(
            "itimer-pending",
            "a periodic interval timer whose signal is pending",
            itimers::pending,
        ),
        subject("alarm", "alarm", itimers::alarm),
        subject(
            "posix-timers",
            "POSIX timers of several clocks with gaps between their ids",
            posix::start,
        ),
        subject(
            "posix-timers-many",
            "thousands of POSIX timers",
            posix::many,
        ),
        subject(
            "posix-timers-thread",
            "POSIX timers that signal a thread",
            posix::thread,
        ),
        subject(
            "posix-timers-own-clock",
            "POSIX timers of threads' own processor time (CLOCK_THREAD_CPUTIME_ID)",
            owners::busy,
        ),
        subject(
            "posix-timers-ended",
            "POSIX timers of threads and children that have ended",
            owners::ended,
        ),
        subject(
            "posix-timers-overruns",
            "overruns of a POSIX timer whose signal waits",
            posix::overruns,
        ),
        subject(
            "posix-timers-expired-cpu",
            "a periodic POSIX timer of processor time whose signal waits",
            posix::expired_cpu,
        ),
        subject(
            "posix-timers-periodic",
            "a periodic POSIX timer and its overruns",
            posix::periodic,
        ),
        subject(
            "posix-timers-count",
            "periodic POSIX timers of every clock lose no period",
            posix::counted,
        ),
        subject(
            "posix-timers-phase",
            "periodic POSIX timers keep their phase",
            posix::phase,
        ),
        subject(
            "posix-timers-next-id",
            "the id of the next POSIX timer, behind those of removed ones",
            posix::next_id,
        ),
        subject(
            "posix-timers-removed",
            "the id of the next POSIX timer where all were removed",
            posix::removed,
        ),
        subject(
            "posix-timers-ids",
            "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
            posix::ids,
        ),
        subject(
            "posix-timers-absolute",
            "absolute POSIX timers",
            posix::absolute,
        ),
        subject(
            "posix-timers-relative",
            "a periodic POSIX timer of CLOCK_REALTIME that does not follow when that is set",
            posix::relative,
        ),
        subject("timerfd", "timerfds of every clock", timerfd::clocks),
        subject("timerfd-absolute", "absolute timerfds", timerfd::absolute),
        subject(
            "timerfd-periodic",
            "periodic timerfds fire on",
            timerfd::periodic,
        ),
        subject(
            "timerfd-count",
            "periodic timerfds of every clock lose no expiration",
            timerfd::counted,
        ),
        subject(
            "timerfd-short",
            "timerfds with periods below a millisecond",
            timerfd::short,
        ),
        subject(
            "timerfd-ticks",
            "expirations of a timerfd that nobody has read",
            timerfd::ticks,
        ),
        subject(
            "timerfd-disarmed",
            "a timerfd that is not set",
            timerfd::disarmed,
        ),
    ],
};
