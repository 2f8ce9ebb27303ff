//! Carried in the middle of a signal handler: the frame on the stack belongs to the interrupted
//! code, the mask of that time comes back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::kit::{Area, PAGE, SOON, Setting, Watch, args, raw, same, sys, tid, until};

/// Handlers wait until this has their depth or less.
static DEPTH: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// Goes up when the interrupted code shall tell how it is.
static ROUND: AtomicU32 = AtomicU32::new(0);

/// Waits inside.
extern "C" fn handler(_: i32) {
    let depth = INSIDE.fetch_add(1, Ordering::SeqCst) + 1;
    while DEPTH.load(Ordering::SeqCst) >= depth {
        let tick = [0_u64, 5_000_000];
        raw(libc::SYS_nanosleep, args([tick.as_ptr() as u64]));
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}

fn mask() -> u64 {
    let mut mask = 0_u64;
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, 0, &raw mut mask as u64, 8]),
    );
    mask
}

/// The handler for all of them, with one more signal in its mask.
fn install(signals: &[i32], flags: i32) -> Result<()> {
    for signal in signals {
        // SAFETY: zeros are a valid structure; the handler uses atomics and a raw call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            action.sa_mask = std::mem::transmute::<[u64; 16], libc::sigset_t>([1 << 49; 16]);
            sys(
                "sigaction",
                libc::sigaction(*signal, &action, std::ptr::null_mut()),
            )?;
        }
    }
    Ok(())
}

/// A thread in as many handlers as there are signals; on request they all end, and the thread
/// finds its mask as before, and starts again.
fn within(signals: &'static [i32], flags: i32) -> Result<Watch> {
    install(signals, flags)?;
    let depth = signals.len() as u32;
    DEPTH.store(depth, Ordering::SeqCst);
    let (send, results) = std::sync::mpsc::channel();
    let (ids, its_tid) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let area = Area::anonymous(32);
        if let (Ok(area), true) = (area, flags & libc::SA_ONSTACK != 0) {
            let stack = libc::stack_t {
                ss_sp: area.page(0),
                ss_flags: 0,
                ss_size: 32 * PAGE,
            };
            // SAFETY: the area stays.
            unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
        }
        let _ = ids.send(tid());
        let before = mask();
        loop {
            // The signals come here; a value on the stack must be there afterwards.
            let word = std::hint::black_box(0x1122_3344_u64);
            let round = ROUND.load(Ordering::SeqCst);
            while ROUND.load(Ordering::SeqCst) == round {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = send.send((std::hint::black_box(word), before == mask()));
        }
    });
    let tid = its_tid.recv_timeout(SOON)?;
    let enter = move || -> Result<()> {
        for (number, signal) in signals.iter().enumerate() {
            // SAFETY: a signal with a handler, for a thread of ours.
            sys("tgkill", unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, *signal)
            })?;
            until("the handler runs", SOON, || {
                INSIDE.load(Ordering::SeqCst) == number as u32 + 1
            })?;
        }
        Ok(())
    };
    enter()?;
    Ok(Watch::new(move || {
        same(
            "handlers in progress",
            &depth,
            &INSIDE.load(Ordering::SeqCst),
        )?;
        DEPTH.store(0, Ordering::SeqCst);
        until("the handlers have ended", SOON, || {
            INSIDE.load(Ordering::SeqCst) == 0
        })?;
        ROUND.fetch_add(1, Ordering::SeqCst);
        same(
            "the interrupted code",
            &(0x1122_3344, true),
            &results.recv_timeout(SOON)?,
        )?;
        DEPTH.store(depth, Ordering::SeqCst);
        enter()
    })
    .spoiled_by(|| {
        INSIDE.store(9, Ordering::SeqCst);
        Ok(())
    }))
}

/// One handler.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    within(&[libc::SIGUSR1], 0)
}

/// Three, on an alternate stack.
pub(crate) fn nested(_: &Setting) -> Result<Watch> {
    within(
        &[libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP],
        libc::SA_ONSTACK,
    )
}
