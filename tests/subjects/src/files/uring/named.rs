//! Rings that a thread has under numbers of its own (`IORING_REGISTER_RING_FDS`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;

use super::ring::{GETEVENTS, Ring};
use crate::kit::{SOON, Setting, Watch, args, raw, same, until};

/// `IORING_ENTER_REGISTERED_RING`
const REGISTERED: u64 = 1 << 4;
const RING_FDS: u64 = 20;
/// Any number: the kernel chooses.
const ANY: u32 = u32::MAX;

/// Gives the calling thread a number for a ring.
fn name(ring: Ring, wanted: u32) -> Result<u32> {
    let mut update = [u64::from(wanted), ring.fd as u64];
    ring.register(RING_FDS, update.as_mut_ptr() as u64, 1)?;
    Ok(update[0] as u32)
}

fn enter(number: u32, submit: u64, complete: u64) -> i64 {
    let flags = REGISTERED | if complete > 0 { GETEVENTS } else { 0 };
    raw(
        libc::SYS_io_uring_enter,
        args([number.into(), submit, complete, flags]),
    )
}

/// The main thread has two, and another one waits for the second.
pub(crate) fn rings(_: &Setting) -> Result<Watch> {
    let [first, second] = [Ring::new(8, 16, 0)?, Ring::new(8, 16, 0)?];
    let chosen = name(first, ANY)?;
    name(second, 5)?;
    let returned = Arc::new(AtomicI64::new(0));
    let (told, named) = (returned.clone(), Arc::new(OnceLock::new()));
    let ready = named.clone();
    std::thread::spawn(move || {
        let number = name(second, 7).map_err(|e| e.to_string());
        let _ = ready.set(number.clone());
        while number.is_ok() {
            told.store(1 + enter(7, 0, 1), Ordering::SeqCst);
            while told.load(Ordering::SeqCst) != 0 {
                std::thread::yield_now();
            }
        }
    });
    until("it has a number", SOON, || named.get().is_some())?;
    same("its number", &Some(&Ok(7)), &named.get())?;
    Ok(Watch::new(move || {
        first.nop(1);
        same("the first", &1, &enter(chosen, 1, 1))?;
        same("its completion", &vec![(1, 0)], &first.take_all())?;
        same("it waits", &0, &returned.load(Ordering::SeqCst))?;
        second.nop(2);
        same("the second", &1, &enter(5, 1, 0))?;
        until("it returns", SOON, || returned.load(Ordering::SeqCst) != 0)?;
        same("what it returns", &1, &returned.load(Ordering::SeqCst))?;
        same("a completion", &vec![(2, 0)], &second.take_all())?;
        returned.store(0, Ordering::SeqCst);
        Ok(())
    })
    .spoiled_by(move || {
        // IORING_UNREGISTER_RING_FDS
        let update = [5_u64, 0];
        second.register(21, update.as_ptr() as u64, 1)
    }))
}
