//! Sockets that come and go without a pause: whoever looks at them meets some that were not there a moment ago.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use libc::SOCK_STREAM;

use crate::kit::files::{close, read, write};
use crate::kit::net::pair;
use crate::kit::{SOON, Setting, Watch, give_way, until};

/// Pairs that are there at a time, each with bytes that nobody has read yet.
const PAIRS: usize = 64;

/// What a thread of its own tells.
#[derive(Default)]
struct Told {
    pairs: AtomicU64,
    wrong: AtomicBool,
}

/// A thread that makes unix pairs, and reads and closes the oldest.
pub(crate) fn unix(_: &Setting) -> Result<Watch> {
    let told = Arc::new(Told::default());
    let maker = Arc::clone(&told);
    std::thread::spawn(move || {
        give_way();
        if make(&maker).is_err() {
            maker.wrong.store(true, Ordering::SeqCst);
        }
    });
    let breaker = Arc::clone(&told);
    let mut seen = 0;
    Ok(Watch::new(move || {
        let enough = seen + 2 * PAIRS as u64;
        let goes_on =
            || told.pairs.load(Ordering::SeqCst) > enough || told.wrong.load(Ordering::SeqCst);
        until("more pairs", SOON, goes_on)?;
        seen = told.pairs.load(Ordering::SeqCst);
        match told.wrong.load(Ordering::SeqCst) {
            true => bail!("a pair did not have what was written to it"),
            false => Ok(()),
        }
    })
    .spoiled_by(move || {
        breaker.wrong.store(true, Ordering::SeqCst);
        Ok(())
    }))
}

fn make(told: &Told) -> Result<()> {
    let mut open = VecDeque::new();
    for number in 0_u64.. {
        let [one, two] = pair(SOCK_STREAM)?;
        write(one, &number.to_ne_bytes())?;
        open.push_back((number, one, two));
        if open.len() < PAIRS {
            continue;
        }
        if let Some((number, one, two)) = open.pop_front() {
            if read(two, 100)? != number.to_ne_bytes() {
                bail!("other bytes");
            }
            close(one);
            close(two);
            told.pairs.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    Ok(())
}
