//! Alternate signal stacks.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

use crate::kit::{Area, Crew, PAGE, Setting, Watch, same, sys, tid};

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: i32) {
    let local = 0_u8;
    SEEN.store(&raw const local as u64, Ordering::SeqCst);
}

fn sigaltstack(new: Option<libc::stack_t>) -> Result<(u64, i32, usize)> {
    let mut old = libc::stack_t {
        ss_sp: std::ptr::null_mut(),
        ss_flags: 0,
        ss_size: 0,
    };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both structures are alive.
    sys("sigaltstack", unsafe {
        libc::sigaltstack(new, &raw mut old)
    })?;
    Ok((old.ss_sp as u64, old.ss_flags, old.ss_size))
}

/// Two threads, each with its own: the handler runs on it.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut action: libc::sigaction = unsafe {
        // SAFETY: zeros are a valid structure.
        std::mem::zeroed()
    };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handler only stores a word.
    sys("sigaction", unsafe {
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
    })?;
    let mut crew = Crew::default();
    for pages in [16, 32] {
        crew.add(move || {
            let area = Area::anonymous(pages)?;
            let stack = libc::stack_t {
                ss_sp: area.page(0),
                ss_flags: 0,
                ss_size: pages * PAGE,
            };
            sigaltstack(Some(stack))?;
            let expected = (area.page(0) as u64, 0, pages * PAGE);
            Ok(Watch::new(move || {
                same("the stack", &expected, &sigaltstack(None)?)?;
                // SAFETY: a signal with a handler, for this thread.
                sys("tgkill", unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), tid(), libc::SIGUSR1)
                })?;
                let seen = SEEN.load(Ordering::SeqCst);
                if !(area.page(0) as u64..area.page(pages) as u64).contains(&seen) {
                    bail!("the handler ran at {seen:#x}");
                }
                Ok(())
            })
            .spoiled_by(|| {
                let none = libc::stack_t {
                    ss_sp: std::ptr::null_mut(),
                    ss_flags: libc::SS_DISABLE,
                    ss_size: 0,
                };
                sigaltstack(Some(none)).map(drop)
            }))
        })?;
    }
    Ok(crew.watch())
}
