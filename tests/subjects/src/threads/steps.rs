//! A thread that steps itself: after each of its instructions comes a SIGTRAP (TF in RFLAGS).

use std::arch::asm;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::kit::{SOON, Setting, Watch, give_way, same, sys, until};

static STEPS: AtomicU64 = AtomicU64::new(0);
static LAPS: AtomicU64 = AtomicU64::new(0);
/// Laps that came to something else than they should.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Rounds of a lap.
const ROUNDS: u64 = 50;
/// Instructions of a lap that are followed by a trap.
const STEPS_OF_LAP: u64 = 3 * ROUNDS + 4;

extern "C" fn trapped(_: i32) {
    STEPS.fetch_add(1, Ordering::SeqCst);
}

/// Adds the numbers up to [`ROUNDS`], stepping itself.
fn lap() -> u64 {
    let mut sum = 0_u64;
    // SAFETY: the flag is off again at the end; the stack is as before.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "mov {left}, {rounds}",
            "2:",
            "add {sum}, {left}",
            "dec {left}",
            "jnz 2b",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            sum = inout(reg) sum,
            left = out(reg) _,
            rounds = const ROUNDS,
        );
    }
    sum
}

/// One thread in laps of which every instruction is counted.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    // SAFETY: zeros are a valid structure, the handler uses an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        let none = std::ptr::null_mut();
        sys("sigaction", libc::sigaction(libc::SIGTRAP, &action, none))?;
    }
    std::thread::spawn(|| {
        give_way();
        loop {
            let before = STEPS.load(Ordering::SeqCst);
            let sum = lap();
            let steps = STEPS.load(Ordering::SeqCst) - before;
            if (sum, steps) != (ROUNDS * (ROUNDS + 1) / 2, STEPS_OF_LAP) {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
            LAPS.fetch_add(1, Ordering::SeqCst);
        }
    });
    Ok(Watch::new(|| {
        let before = LAPS.load(Ordering::SeqCst);
        until("it goes on", SOON, || {
            LAPS.load(Ordering::SeqCst) > before + 3
        })?;
        same(
            "laps with a wrong sum, or another number of steps",
            &0,
            &WRONG.load(Ordering::SeqCst),
        )
    })
    .spoiled_by(|| {
        STEPS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}
