//! A parent that waits in vfork(2) for a child with its memory, or with a copy of it (`CLONE_VFORK` alone).

use std::arch::asm;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use anyhow::Result;
use libc::{CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, SIGCHLD};

use crate::kit::{Area, SOON, Setting, Watch, errno, fork, fork_with, procfs, same, sys, until};
use crate::signals::traced_timers as timers;
use crate::threads::seccomp::{answer, install};

/// Words of the page that all three share.
const ASKED: usize = 0;
const DONE: usize = 1;
const WAITING: usize = 2;
const CHILD: usize = 3;
const WRONG: usize = 4;
const TICKS: usize = 5;
const COPY: usize = 6;

/// A descriptor that the child closes and the parent keeps.
const CLOSED: i32 = 60;
const SIGUSR2: u64 = 12;
/// Fields of `/proc/PID/stat`: the state, and the signal that the parent gets at the end.
const STATE: usize = 3;
const END: usize = 38;

/// In the memory of parent and child: what the child left there.
static LEFT: AtomicI64 = AtomicI64::new(0);
/// Times that the handler ran.
static HANDLED: AtomicU32 = AtomicU32::new(0);

/// What a child does when it is let go.
#[derive(Clone, Copy, PartialEq)]
enum Goal {
    Exit,
    Exec,
    /// It has waited for a child of its own that does so.
    Nested,
    /// It ends, and has had memory of its own.
    Copied,
}

/// Who else there is in the process that waits.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    Nobody,
    /// The leader waits; threads do not.
    Threads,
    /// A thread waits, its leader does not.
    Leader,
    /// Nobody; but signals wait for the process and for the thread.
    Signals,
    /// Threads, and signals.
    ThreadsAndSignals,
    /// Nobody; but it has seccomp filters.
    Filters,
    /// Threads that have the same ones, and some more.
    ThreadsAndFilters,
    /// A leader that does not wait, and has no filters; who waits has.
    LeaderWithoutFilters,
    /// Nobody; but it has timers.
    Timers,
    /// Nobody; but its child is stopped.
    StoppedChild,
    /// Nobody; but it has a scheduling policy.
    Policy,
}

/// Who they all are.
#[derive(Clone, Copy, PartialEq)]
enum As {
    /// With all privileges.
    Root,
    /// An ordinary user.
    User,
}

/// It ends.
pub(crate) fn exit(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::Nobody)
}

/// It starts another program.
pub(crate) fn exec(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exec, Others::Nobody)
}

/// It waits for a child of its own.
pub(crate) fn nested(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Nested, Others::Nobody)
}

/// It has timers.
pub(crate) fn timers(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::Timers)
}

/// The same, whose child has a copy of its memory.
pub(crate) fn timers_copied(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Copied, Others::Timers)
}

/// The child has a copy of its memory.
pub(crate) fn copied(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Copied, Others::Nobody)
}

/// So has that of a leader with threads.
pub(crate) fn copied_of_leader(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Copied, Others::ThreadsAndSignals)
}

/// The leader of a process with threads waits.
pub(crate) fn leader(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exec, Others::Threads)
}

/// A thread waits whose leader does not.
pub(crate) fn thread(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exec, Others::Leader)
}

/// Signals wait for who waits.
pub(crate) fn signals(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::Signals)
}

/// Signals wait for the leader of a process with threads.
pub(crate) fn signals_of_leader(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::ThreadsAndSignals)
}

/// It has filters.
pub(crate) fn filters(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exec, Others::Filters)
}

/// A leader that waits has filters, and its threads have.
pub(crate) fn filters_of_leader(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::ThreadsAndFilters)
}

/// An ordinary user's child ends.
pub(crate) fn of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exit, Others::Signals, As::User)
}

/// It starts another program.
pub(crate) fn exec_of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exec, Others::Filters, As::User)
}

/// It waits for a child of its own.
pub(crate) fn nested_of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Nested, Others::Nobody, As::User)
}

/// A thread waits, and has filters; its leader has none and does not wait.
pub(crate) fn thread_of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exec, Others::LeaderWithoutFilters, As::User)
}

/// A leader waits while threads run.
pub(crate) fn leader_of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exit, Others::ThreadsAndSignals, As::User)
}

/// The user has timers.
pub(crate) fn timers_of_user(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exit, Others::Timers, As::User)
}

/// A thread has filters that its leader has not.
pub(crate) fn own_filters(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::LeaderWithoutFilters)
}

/// A user's child is stopped.
pub(crate) fn stopped_child(setting: &Setting) -> Result<Watch> {
    start_as(setting, Goal::Exec, Others::StoppedChild, As::User)
}

/// It has a scheduling policy.
pub(crate) fn policy(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit, Others::Policy)
}

/// Others end before it does: it must not see the end of its child then. It would leave a mark.
pub(crate) fn beside_others(setting: &Setting) -> Result<Watch> {
    const OTHERS: usize = 40;
    let rest = || {
        loop {
            // SAFETY: no pointers.
            unsafe { libc::pause() };
        }
    };
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let mark = setting.fresh("mark");
    let left = mark.clone();
    fork(move || {
        let others = (0..OTHERS).map(|_| fork(rest));
        let made = others.collect::<Result<Vec<i32>>>();
        let waited = fork_with(CLONE_VFORK, || {
            page.put(0, WAITING, 1 + u64::from(made.is_err()));
            rest();
        });
        let _ = std::fs::write(left, format!("{waited:?}"));
        rest();
    })?;
    until("the parent waits", SOON, || page.get(0, WAITING) != 0)?;
    let spoilt = mark.clone();
    Ok(Watch::new(move || {
        same("whether there are others", &1, &page.get(0, WAITING))?;
        same("whether it went on", &false, &mark.exists())
    })
    .spoiled_by(move || Ok(std::fs::write(&spoilt, "spoilt")?)))
}

fn start(setting: &Setting, goal: Goal, others: Others) -> Result<Watch> {
    start_as(setting, goal, others, As::Root)
}

fn start_as(_: &Setting, goal: Goal, others: Others, who: As) -> Result<Watch> {
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let waiting = fork(|| {
        if who == As::Root || become_user().is_ok() {
            process(page, goal, others);
        }
    })?;
    let stops = others == Others::StoppedChild;
    let tell_child = move |signal| {
        // SAFETY: takes numbers.
        sys("kill", unsafe {
            libc::kill(page.get(0, CHILD) as i32, signal)
        })
        .map(drop)
    };
    let is_stopped = move || {
        let state = procfs::stat(page.get(0, CHILD) as i32, STATE);
        state.is_ok_and(|state| state == "T")
    };
    let waits = move |round: u64| {
        until("the parent waits", SOON, || {
            page.get(0, WAITING) == round + 1
        })?;
        if stops {
            tell_child(libc::SIGSTOP)?;
            until("the child is stopped", SOON, is_stopped)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    waits(0)?;
    let mut round = 0;
    Ok(Watch::new(move || {
        same("rounds done", &round, &page.get(0, DONE))?;
        if stops {
            same("whether the child is stopped", &true, &is_stopped())?;
            tell_child(libc::SIGCONT)?;
        }
        round += 1;
        page.put(0, ASKED, round);
        until("the parent goes on", SOON, || page.get(0, DONE) == round)?;
        same("what is wrong", &0, &page.get(0, WRONG))?;
        let told = procfs::stat(waiting, END)?;
        same("the signal of its end", &SIGCHLD.to_string(), &told)?;
        waits(round)
    })
    .spoiled_by(move || {
        // Without its child the parent goes on before it should.
        tell_child(libc::SIGKILL)?;
        until("the parent goes on", SOON, || page.get(0, DONE) != 0)
    }))
}

extern "C" fn count(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn become_user() -> Result<()> {
    const NOBODY: u32 = 65534;
    // SAFETY: takes numbers and no list.
    unsafe {
        sys("setgroups", libc::setgroups(0, std::ptr::null()))?;
        sys("setresgid", libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        sys("setresuid", libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        // It installs filters.
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    }
    Ok(())
}

/// Has threads as `others` says.
fn process(page: Area, goal: Goal, others: Others) {
    let blocked = QUEUED.iter().fold(0, |all, one| all | 1 << (one - 1));
    mask(libc::SIG_BLOCK, blocked);
    match others {
        Others::Nobody | Others::Signals | Others::Timers | Others::StoppedChild => {
            parent(page, goal, others);
        }
        Others::Policy => {
            // SAFETY: zeros are the parameters of this policy.
            unsafe {
                let batch: libc::sched_param = std::mem::zeroed();
                let batch = &raw const batch;
                libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, batch);
            }
            parent(page, goal, others);
        }
        Others::Threads | Others::ThreadsAndSignals => {
            std::thread::spawn(move || tick(page));
            parent(page, goal, others);
        }
        Others::Filters => {
            if confine().is_ok() {
                parent(page, goal, others);
            }
        }
        Others::ThreadsAndFilters => {
            if confine().is_err() {
                return;
            }
            std::thread::spawn(move || {
                let more = install(libc::SYS_getppid, libc::EIO as u32);
                if more.is_ok() {
                    tick(page);
                }
            });
            parent(page, goal, others);
        }
        Others::LeaderWithoutFilters => {
            std::thread::spawn(move || {
                if confine().is_ok() {
                    parent(page, goal, others);
                }
            });
            tick(page);
        }
        Others::Leader => {
            std::thread::spawn(move || parent(page, goal, others));
            tick(page);
        }
    }
}

/// One call fails, another one ends the process.
fn confine() -> Result<()> {
    answer(libc::SYS_pause, libc::SECCOMP_RET_KILL_PROCESS)?;
    install(libc::SYS_getpgrp, libc::EIO as u32)
}

/// Whether it does.
fn is_confined() -> bool {
    // SAFETY: takes no arguments.
    let done = unsafe { libc::syscall(libc::SYS_getpgrp) };
    let count = procfs::status("thread-self", "Seccomp_filters");
    done == -1 && errno() == libc::EIO && count.is_ok_and(|count| count == "2")
}

/// Counts, and takes no signals.
fn tick(page: Area) {
    mask(libc::SIG_BLOCK, u64::MAX);
    for ticks in 1.. {
        page.put(0, TICKS, ticks);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Waits for one child after the other, and notes what is not as it should be.
fn parent(page: Area, goal: Goal, others: Others) {
    // SAFETY: takes numbers; the handler touches an atomic only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::signal(libc::SIGUSR1, count as *const () as libc::sighandler_t);
        libc::dup2(2, CLOSED);
    }
    mask(libc::SIG_BLOCK, 1 << (SIGUSR2 - 1));
    let (Ok(stack), Ok(inner)) = (Area::anonymous(16), Area::anonymous(16)) else {
        return;
    };
    let (before, capabilities) = (seen(), able());
    let timers = (others == Others::Timers).then(Timers::arm);
    let ticks = !matches!(
        others,
        Others::Nobody
            | Others::Signals
            | Others::Filters
            | Others::Timers
            | Others::StoppedChild
            | Others::Policy
    );
    let confined = matches!(
        others,
        Others::Filters | Others::ThreadsAndFilters | Others::LeaderWithoutFilters
    );
    let queue = matches!(others, Others::Signals | Others::ThreadsAndSignals);
    let makes = if goal == Goal::Nested { 2 } else { 1 };
    for round in 1.. {
        let inner = inner.page(16) as u64;
        let task = Task {
            page,
            round,
            goal,
            inner,
        };
        let queued = if queue { send_all() } else { None };
        let (child, kept) = wait_in_vfork(&task, stack.page(16) as u64);
        let ticked = page.get(0, TICKS);
        let handled = || HANDLED.load(Ordering::SeqCst) == round as u32 * makes;
        let left = LEFT.swap(0, Ordering::SeqCst);
        let in_copy = page.get(0, COPY).cast_signed();
        let checks = [
            kept,
            match goal {
                Goal::Copied => left == 0 && in_copy == child,
                _ => left == child,
            },
            until("the signal is handled", SOON, handled).is_ok(),
            before == seen(),
            // SAFETY: takes numbers.
            unsafe { libc::fcntl(CLOSED, libc::F_GETFD) } >= 0,
            ended_well(child, goal),
            // The signal of its end is one too many.
            queued.is_none_or(|queued| queued == take_all()),
            !confined || is_confined(),
            capabilities == able(),
            timers.as_ref().is_none_or(Timers::are_kept),
            !ticks || until("ticks", SOON, || page.get(0, TICKS) > ticked).is_ok(),
        ];
        let wrong = checks.iter().enumerate().filter(|(_, well)| !**well);
        let wrong = wrong.fold(0, |all, (bit, _)| all | 1 << bit);
        page.put(0, WRONG, page.get(0, WRONG) | wrong);
        page.put(0, DONE, round);
    }
}

/// An interval timer and a POSIX timer, and when they end.
struct Timers {
    timer: libc::timer_t,
    ends: [i64; 2],
}

impl Timers {
    /// Nanoseconds.
    const LAST: i64 = 3_600_000_000_000;
    const EVERY: i64 = 5_000_000_000;

    fn arm() -> Timers {
        let time = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
        let wanted = libc::itimerval {
            it_interval: time(Timers::EVERY / 1_000_000_000),
            it_value: time(Timers::LAST / 1_000_000_000),
        };
        // SAFETY: the structure lives through the call.
        unsafe {
            libc::setitimer(
                libc::ITIMER_REAL as _,
                &raw const wanted,
                std::ptr::null_mut(),
            )
        };
        let times = [Timers::LAST, Timers::EVERY];
        let timer = timers::create(libc::CLOCK_MONOTONIC, QUEUED[0], times, 0);
        let mut armed = Timers {
            timer,
            ends: [0; 2],
        };
        armed.ends = armed.told().map(|(end, _)| end);
        armed
    }

    /// When they end, and their intervals.
    fn told(&self) -> [(i64, i64); 2] {
        let now = timers::now(libc::CLOCK_MONOTONIC);
        [
            timers::told_interval(libc::ITIMER_REAL as _),
            timers::told(self.timer),
        ]
        .map(|(left, every)| (now + left, every))
    }

    fn are_kept(&self) -> bool {
        const NEAR: i64 = 400_000_000;
        let told = self.told().into_iter().zip(self.ends);
        told.into_iter()
            .all(|((end, every), before)| (end - before).abs() < NEAR && every == Timers::EVERY)
    }
}

/// A real-time signal for one thread, one with a value for the process, and one of a child that has ended.
const QUEUED: [i32; 3] = [40, 41, libc::SIGCHLD];

/// Queues them. Tells who the child was, and this thread.
fn send_all() -> Option<[(i32, i32, i32); 3]> {
    let me = std::process::id() as i32;
    // SAFETY: takes numbers.
    let (child, tid) = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(3);
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
        (child, libc::syscall(libc::SYS_gettid) as i32)
    };
    let value = libc::sigval {
        sival_ptr: 0x5151 as *mut libc::c_void,
    };
    // SAFETY: takes numbers.
    unsafe {
        libc::syscall(libc::SYS_tgkill, me, tid, QUEUED[0]);
        libc::sigqueue(me, QUEUED[1], value);
    }
    Some([
        (libc::SI_TKILL, me, 0),
        (libc::SI_QUEUE, me, 0x5151),
        (libc::CLD_EXITED, child, 3),
    ])
}

/// Takes them: code, sender, value or status.
fn take_all() -> [(i32, i32, i32); 3] {
    QUEUED.map(|signal| {
        let set = 1_u64 << (signal - 1);
        let soon = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: a set of 8 bytes; the kernel fills a siginfo, for which zeros are valid.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let (set, info_at) = (&raw const set, &raw mut info);
            let got = libc::syscall(libc::SYS_rt_sigtimedwait, set, info_at, &raw const soon, 8);
            match signal {
                _ if got != i64::from(signal) => (0, 0, 0),
                libc::SIGCHLD => (info.si_code, info.si_pid(), info.si_status()),
                41 => (
                    info.si_code,
                    info.si_pid(),
                    info.si_value().sival_ptr as usize as i32,
                ),
                _ => (info.si_code, info.si_pid(), 0),
            }
        }
    })
}

fn mask(how: i32, set: u64) {
    let set = &raw const set;
    // SAFETY: a set of signals as the kernel knows it, 8 bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, set, 0, 8) };
}

/// `IOPRIO_WHO_PROCESS`, and the lowest of the best effort class.
const IOPRIO: (i32, i32) = (1, 2 << 13 | 7);

/// Blocked signals, signal stack, subreaper, scheduling policy and I/O priority.
fn seen() -> (u64, usize, usize, i32, [i64; 2]) {
    let (mut mask, mut subreaper) = (0_u64, 0);
    // SAFETY: the kernel fills a set of 8 bytes, an int and a stack_t, for which zeros are valid.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        let none = std::ptr::null::<u64>();
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            none,
            &raw mut mask,
            8,
        );
        libc::sigaltstack(std::ptr::null(), &raw mut stack);
        libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper);
        let scheduling = [
            libc::syscall(libc::SYS_sched_getscheduler, 0),
            libc::syscall(libc::SYS_ioprio_get, IOPRIO.0, 0),
        ];
        (
            mask,
            stack.ss_sp as usize,
            stack.ss_size,
            subreaper,
            scheduling,
        )
    }
}

/// Who it is and what it may do.
fn able() -> [Option<String>; 3] {
    ["CapPrm", "CapEff", "Uid"].map(|field| procfs::status("thread-self", field).ok())
}

fn ended_well(child: i64, goal: Goal) -> bool {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let found = unsafe { libc::waitpid(child as i32, &raw mut status, 0) };
    let code = if goal == Goal::Exec { 0 } else { 7 };
    i64::from(found) == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code
}

/// What a child is told.
struct Task {
    page: Area,
    round: u64,
    goal: Goal,
    /// A stack for a child's child.
    inner: u64,
}

/// Makes a child on a stack of its own and waits for it in the kernel; tells its id and whether the registers
/// are those of before.
fn wait_in_vfork(task: &Task, stack: u64) -> (i64, bool) {
    const MARKS: [u64; 3] = [0x0123_4567_89ab_cdef, 0xfeed_f00d_dead_beef, 0x1122_3344];
    let memory = if task.goal == Goal::Copied {
        0
    } else {
        CLONE_VM
    };
    let flags = memory | CLONE_VFORK | SIGCHLD;
    let (mut pid, mut told) = (libc::SYS_clone, std::ptr::from_ref(task) as u64);
    let [mut general, mut other, mut vector] = MARKS;
    // SAFETY: the child calls `child` on its own stack and never returns; what it shares with the caller, who
    // stands still meanwhile, are atomics and the task.
    unsafe {
        asm!(
            "movq xmm9, {vector}",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {child}",
            "ud2",
            "2:",
            "movq {vector}, xmm9",
            vector = inout(reg) vector,
            child = sym child,
            inout("rax") pid,
            in("rdi") flags,
            in("rsi") stack,
            in("rdx") 0,
            in("r10") 0,
            inout("r8") other,
            inout("r12") told,
            inout("r14") general,
            out("rcx") _,
            out("r11") _,
            out("xmm9") _,
        );
    }
    let kept = [general, other, vector] == MARKS && told == std::ptr::from_ref(task) as u64;
    (pid, kept)
}

/// Waits until it is let go. It has its parent's thread-local data, which nobody else uses meanwhile.
extern "C" fn child(task: *const Task) -> ! {
    // SAFETY: the parent, in whose memory it is, waits.
    let Task {
        page,
        round,
        goal,
        inner,
    } = unsafe { &*task };
    let mut well = true;
    if *goal == Goal::Nested {
        let task = Task {
            page: *page,
            round: *round,
            goal: Goal::Exit,
            inner: 0,
        };
        let (child, kept) = wait_in_vfork(&task, *inner);
        well = kept && LEFT.load(Ordering::SeqCst) == child && ended_well(child, Goal::Exit);
    }
    let pause = libc::timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    // SAFETY: calls that take numbers, and strings and structures that live.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(CLOSED);
        if *goal != Goal::Nested {
            // Its own, and not its parent's.
            let batch: libc::sched_param = std::mem::zeroed();
            libc::syscall(
                libc::SYS_sched_setscheduler,
                0,
                libc::SCHED_BATCH,
                &raw const batch,
            );
            libc::syscall(libc::SYS_ioprio_set, IOPRIO.0, 0, IOPRIO.1);
            page.put(0, CHILD, libc::getpid() as u64);
            page.put(0, WAITING, *round);
        }
        while page.get(0, ASKED) < *round {
            libc::nanosleep(&raw const pause, std::ptr::null_mut());
        }
        let closed = libc::fcntl(CLOSED, libc::F_GETFD) == -1;
        LEFT.store(
            if closed && well {
                libc::getpid().into()
            } else {
                -1
            },
            Ordering::SeqCst,
        );
        page.put(0, COPY, LEFT.load(Ordering::SeqCst).cast_unsigned());
        // It waits until its parent has returned.
        libc::kill(libc::getppid(), libc::SIGUSR1);
        if *goal == Goal::Exec {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr());
        }
        libc::_exit(7)
    }
}
