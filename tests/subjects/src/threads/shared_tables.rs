//! Processes that share what clone(2) can share, without being threads of one process.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use crate::kit::{Area, Kin, PAGE, SOON, Setting, Watch, args, fork, raw, same, sys, until};

/// One descriptor table: what either opens, the other has.
pub(crate) fn files(setting: &Setting) -> Result<Watch> {
    let mut child = Kin::start_with(setting, "child", libc::CLONE_FILES, |_| {
        Ok(Watch::new(|| {
            if std::fs::exists("/proc/self/fd/100")? {
                bail!("descriptor 100 is there before it is made");
            }
            let null = std::fs::File::open("/dev/null")?;
            // SAFETY: takes numbers; nobody uses descriptor 100 otherwise.
            sys("dup2", unsafe { libc::dup2(null.as_raw_fd(), 100) }).map(drop)
        }))
    })?;
    Ok(Watch::new(move || {
        child.check()?;
        // SAFETY: as above: the descriptor that the child has made.
        sys("the child's descriptor", unsafe { libc::close(100) }).map(drop)
    }))
}

/// One working directory and umask.
pub(crate) fn fs(setting: &Setting) -> Result<Watch> {
    let mut child = Kin::start_with(setting, "child", libc::CLONE_FS, |_| {
        Ok(Watch::new(|| {
            same(
                "the child's directory",
                "/",
                &std::env::current_dir()?.to_string_lossy(),
            )?;
            std::env::set_current_dir("/proc")?;
            Ok(())
        }))
    })?;
    std::env::set_current_dir("/")?;
    Ok(Watch::new(move || {
        child.check()?;
        same(
            "the directory",
            "/proc",
            &std::env::current_dir()?.to_string_lossy(),
        )?;
        Ok(std::env::set_current_dir("/")?)
    })
    .spoiled_by(|| Ok(std::env::set_current_dir("/usr")?)))
}

/// One I/O context: the priority that the parent sets is the child's.
pub(crate) fn io(setting: &Setting) -> Result<Watch> {
    const PROCESS: u64 = 1;
    const BEST_EFFORT: u64 = 2 << 13;
    const IDLE: u64 = 3 << 13;
    let set = |priority: u64| {
        let own = args([PROCESS, 0, priority]);
        sys("ioprio_set", raw(libc::SYS_ioprio_set, own)).map(drop)
    };
    // Whoever has set one has a context.
    let mut level = 3;
    set(BEST_EFFORT | level)?;
    let nothing = |_: &Setting| Ok(Watch::new(|| Ok(())));
    let mut child = Kin::start_with(setting, "child", libc::CLONE_IO, nothing)?;
    let pid = child.pid as u64;
    let seen = move |what: &str, priority: u64| {
        let found = raw(libc::SYS_ioprio_get, args([PROCESS, pid]));
        same(what, &(priority as i64), &found)
    };
    level += 1;
    set(BEST_EFFORT | level)?;
    seen("the child's priority", BEST_EFFORT | level)?;
    Ok(Watch::new(move || {
        child.check()?;
        seen("the child's priority", BEST_EFFORT | level)?;
        level = (level + 1) % 8;
        set(BEST_EFFORT | level)?;
        seen("the priority set since", BEST_EFFORT | level)
    })
    .spoiled_by(move || set(IDLE)))
}

/// What the brothers that share memory have in it.
static TOLD: AtomicU32 = AtomicU32::new(0);

/// Two children that share memory, and their parent has other memory: what one writes there the other reads.
pub(crate) fn brothers(_: &Setting) -> Result<Watch> {
    const ASK: usize = 0;
    const ANSWER: usize = 1;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let page = Area::map(1, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    let stack = Area::anonymous(16)?;
    let nap = || std::thread::sleep(std::time::Duration::from_millis(2));
    extern "C" fn younger(page: *mut libc::c_void) -> i32 {
        let page = Area::at(page, 1);
        loop {
            page.put(0, ANSWER, TOLD.load(Ordering::SeqCst).into());
            let pause = libc::timespec {
                tv_sec: 0,
                tv_nsec: 2_000_000,
            };
            // SAFETY: the structure lives.
            unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
        }
    }
    fork(|| {
        let flags = libc::CLONE_VM | libc::CLONE_PARENT;
        // SAFETY: it has a stack of its own, and touches the page, an atomic and what is on that stack.
        unsafe { libc::clone(younger, stack.page(16), flags, page.page(0)) };
        loop {
            TOLD.store(page.get(0, ASK) as u32, Ordering::SeqCst);
            nap();
        }
    })?;
    let mut asked = 0;
    let ask = move |with: u64| {
        page.put(0, ASK, with);
        until("the younger one answers", SOON, || {
            page.get(0, ANSWER) == with
        })
    };
    ask(7)?;
    Ok(Watch::new(move || {
        asked += 1;
        ask(asked)?;
        same("its own", &0, &TOLD.load(Ordering::SeqCst))
    })
    .spoiled_by(|| {
        TOLD.store(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// An I/O context that two threads share and the first one does not.
pub(crate) fn io_of_threads(_: &Setting) -> Result<Watch> {
    const PROCESS: u64 = 1;
    const BEST_EFFORT: u64 = 2 << 13;
    let stack = Area::anonymous(16)?;
    let top = stack.page(16) as usize;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Who has set a priority has a context.
        let set = |level: u64| {
            raw(
                libc::SYS_ioprio_set,
                args([PROCESS, 0, BEST_EFFORT | level]),
            )
        };
        set(3);
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_IO;
        let top = std::ptr::with_exposed_provenance_mut(top);
        // SAFETY: the thread has a stack of its own and runs a function that touches its own variables and two
        // atomics.
        let other = unsafe { libc::clone(answer, top, flags, std::ptr::null_mut()) };
        let _ = tell.send(other);
        for level in (0..8).cycle() {
            set(level);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let other = told.recv_timeout(SOON)?;
    sys("clone", other)?;
    Ok(Watch::new(move || {
        // The other thread's priority changes with the first one's.
        let level = || raw(libc::SYS_ioprio_get, args([PROCESS, other as u64]));
        let before = level();
        let _stack = &stack;
        until("another priority", SOON, || level() != before)
    }))
}

static QUESTION: AtomicU32 = AtomicU32::new(0);
static ANSWER: AtomicU32 = AtomicU32::new(0);

/// Answers numbers until the end of time. It shares the thread-local data of the first thread,
/// so it must not touch any.
extern "C" fn answer(_: *mut libc::c_void) -> i32 {
    loop {
        ANSWER.store(QUESTION.load(Ordering::SeqCst), Ordering::SeqCst);
        let tick = [0_u64, 5_000_000];
        // SAFETY: nanosleep(2) without the C library, so that errno is not written.
        unsafe {
            std::arch::asm!("syscall", inlateout("rax") libc::SYS_nanosleep => _,
                in("rdi") tick.as_ptr(), in("rsi") 0, out("rcx") _, out("r11") _)
        };
    }
}

/// A child in the same memory, with the same signal handlers.
pub(crate) fn vm(_: &Setting) -> Result<Watch> {
    let stack = Area::anonymous(16)?;
    let flags =
        libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FS | libc::CLONE_FILES | libc::SIGCHLD;
    let top = stack.page(16);
    // SAFETY: the child has a stack of its own and runs a function that touches its own
    // variables and two atomics.
    let child = unsafe { libc::clone(answer, top, flags, std::ptr::null_mut()) };
    sys("clone", child)?;
    let mut number = 0;
    Ok(Watch::new(move || {
        number += 1;
        QUESTION.store(number, Ordering::SeqCst);
        until("an answer in memory", SOON / 5, || {
            ANSWER.load(Ordering::SeqCst) == number
        })?;
        // SAFETY: kcmp(2) takes numbers: KCMP_VM 1, KCMP_FILES 2, KCMP_FS 3, KCMP_SIGHAND 4.
        let differ =
            |kind: i32| unsafe { libc::syscall(libc::SYS_kcmp, libc::getpid(), child, kind, 0, 0) };
        same("what is shared", &[0; 4], &[1, 2, 3, 4].map(differ))?;
        same("a page of the stack", &PAGE, &(stack.pages() * PAGE / 16))
    })
    .spoiled_by(move || {
        // SAFETY: ends the child of ours.
        sys("kill", unsafe { libc::kill(child, libc::SIGKILL) })?;
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(child, std::ptr::null_mut(), 0)
        })?;
        QUESTION.store(0, Ordering::SeqCst);
        Ok(())
    }))
}
