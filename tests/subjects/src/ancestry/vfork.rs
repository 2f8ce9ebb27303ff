//! A parent that waits in vfork(2) for a child with its memory.

use std::arch::asm;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use anyhow::Result;
use libc::{CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, SIGCHLD};

use crate::kit::{Area, SOON, Setting, Watch, fork, same, sys, until};

/// Words of the page that all three share.
const ASKED: usize = 0;
const DONE: usize = 1;
const WAITING: usize = 2;
const CHILD: usize = 3;
const WRONG: usize = 4;

/// A descriptor that the child closes and the parent keeps.
const CLOSED: i32 = 60;
const SIGUSR2: u64 = 12;

/// In the memory of parent and child: what the child left there.
static LEFT: AtomicI64 = AtomicI64::new(0);
/// Times that the handler ran.
static HANDLED: AtomicU32 = AtomicU32::new(0);

/// What a child does when it is let go.
#[derive(Clone, Copy, PartialEq)]
enum Goal {
    Exit,
    Exec,
}

/// It ends.
pub(crate) fn exit(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exit)
}

/// It starts another program.
pub(crate) fn exec(setting: &Setting) -> Result<Watch> {
    start(setting, Goal::Exec)
}

fn start(_: &Setting, goal: Goal) -> Result<Watch> {
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    fork(|| parent(page, goal))?;
    let waits = move |round: u64| {
        until("the parent waits", SOON, || {
            page.get(0, WAITING) == round + 1
        })
    };
    waits(0)?;
    let mut round = 0;
    Ok(Watch::new(move || {
        same("rounds done", &round, &page.get(0, DONE))?;
        round += 1;
        page.put(0, ASKED, round);
        until("the parent goes on", SOON, || page.get(0, DONE) == round)?;
        same("what is wrong", &0, &page.get(0, WRONG))?;
        waits(round)
    })
    .spoiled_by(move || {
        // Without its child the parent goes on before it should.
        let child = page.get(0, CHILD) as i32;
        // SAFETY: takes numbers.
        sys("kill", unsafe { libc::kill(child, libc::SIGKILL) })?;
        until("the parent goes on", SOON, || page.get(0, DONE) != 0)
    }))
}

extern "C" fn count(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Waits for one child after the other, and notes what is not as it should be.
fn parent(page: Area, goal: Goal) {
    // SAFETY: takes numbers; the handler touches an atomic only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::signal(libc::SIGUSR1, count as *const () as libc::sighandler_t);
        libc::dup2(2, CLOSED);
    }
    block_one();
    let Ok(stack) = Area::anonymous(16) else {
        return;
    };
    let before = seen();
    for round in 1.. {
        let task = Task { page, round, goal };
        let (child, kept) = wait_in_vfork(&task, stack.page(16) as u64);
        let checks = [
            kept,
            LEFT.load(Ordering::SeqCst) == child,
            HANDLED.load(Ordering::SeqCst) == round as u32,
            before == seen(),
            // SAFETY: takes numbers.
            unsafe { libc::fcntl(CLOSED, libc::F_GETFD) } >= 0,
            ended_well(child, goal),
        ];
        let wrong = checks.iter().enumerate().filter(|(_, well)| !**well);
        let wrong = wrong.fold(0, |all, (bit, _)| all | 1 << bit);
        page.put(0, WRONG, page.get(0, WRONG) | wrong);
        page.put(0, DONE, round);
    }
}

fn block_one() {
    let mask = 1_u64 << (SIGUSR2 - 1);
    let set = &raw const mask;
    // SAFETY: a set of signals as the kernel knows it, 8 bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, set, 0, 8) };
}

/// Blocked signals, signal stack, subreaper.
fn seen() -> (u64, usize, usize, i32) {
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
        (mask, stack.ss_sp as usize, stack.ss_size, subreaper)
    }
}

fn ended_well(child: i64, goal: Goal) -> bool {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let found = unsafe { libc::waitpid(child as i32, &raw mut status, 0) };
    let code = if goal == Goal::Exit { 7 } else { 0 };
    i64::from(found) == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code
}

/// What a child is told.
struct Task {
    page: Area,
    round: u64,
    goal: Goal,
}

/// Makes a child on a stack of its own and waits for it in the kernel; tells its id and whether the registers
/// are those of before.
fn wait_in_vfork(task: &Task, stack: u64) -> (i64, bool) {
    const MARKS: [u64; 3] = [0x0123_4567_89ab_cdef, 0xfeed_f00d_dead_beef, 0x1122_3344];
    let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
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
    let Task { page, round, goal } = unsafe { &*task };
    let pause = libc::timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    // SAFETY: calls that take numbers, and strings and structures that live.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(CLOSED);
        page.put(0, CHILD, libc::getpid() as u64);
        page.put(0, WAITING, *round);
        while page.get(0, ASKED) < *round {
            libc::nanosleep(&raw const pause, std::ptr::null_mut());
        }
        let closed = libc::fcntl(CLOSED, libc::F_GETFD) == -1;
        LEFT.store(
            if closed { libc::getpid().into() } else { -1 },
            Ordering::SeqCst,
        );
        // It waits until its parent has returned.
        libc::kill(libc::getppid(), libc::SIGUSR1);
        if *goal == Goal::Exec {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr());
        }
        libc::_exit(7)
    }
}
