//! Syscall user dispatch (PR_SET_SYSCALL_USER_DISPATCH, Linux 5.11).

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, not_here, same};

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;

static SELECTOR: AtomicU8 = AtomicU8::new(0);
static CAUGHT: AtomicI64 = AtomicI64::new(-1);

/// SIGSYS: notes the call's number and lets the thread go on.
extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SELECTOR.store(0, Ordering::SeqCst);
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel hands over a valid context; RAX holds the number.
    let number = unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] };
    CAUGHT.store(number, Ordering::SeqCst);
}

fn switch(mode: u64) -> i32 {
    let selector = if mode == 0 {
        0
    } else {
        SELECTOR.as_ptr() as u64
    };
    // SAFETY: the selector is a static; no range of addresses is exempt.
    unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, 0, 0, selector) }
}

/// A thread whose calls become signals while its selector says so.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    // SAFETY: zeros are a valid structure; the handler only uses atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
    }
    let mut crew = Crew::default();
    crew.add(|| {
        if switch(1) != 0 {
            return not_here("no syscall user dispatch");
        }
        Ok(Watch::new(|| {
            CAUGHT.store(-1, Ordering::SeqCst);
            SELECTOR.store(1, Ordering::SeqCst);
            // SAFETY: takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
            SELECTOR.store(0, Ordering::SeqCst);
            same(
                "the caught call",
                &libc::SYS_getppid,
                &CAUGHT.load(Ordering::SeqCst),
            )
        })
        .spoiled_by(|| {
            switch(0);
            Ok(())
        }))
    })?;
    Ok(crew.watch())
}
