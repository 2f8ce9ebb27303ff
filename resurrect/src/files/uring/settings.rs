//! What a ring is set to. Restrictions come last, before it is enabled.

use persist_mem::manifest::{Ring, RingRestrictions};
use std::os::fd::OwnedFd;
use sys::uring::{self, flags, register};

/// `IORING_RESTRICTION_REGISTER_OP`, `_SQE_OP`, `_SQE_FLAGS_ALLOWED`, `_SQE_FLAGS_REQUIRED`
const KINDS: [u64; 4] = [0, 1, 2, 3];

/// Sets it; enables a ring that anybody may submit to.
pub(super) fn set(ring: &Ring, opened: &OwnedFd) -> sys::Result<()> {
    let settings = &ring.settings;
    if let Some((first, count)) = settings.places {
        // struct io_uring_file_index_range
        let range = [u64::from(first) | u64::from(count) << 32, 0];
        uring::register_words(opened, register::FILE_ALLOC_RANGE, &range, 0)?;
    }
    if settings.workers != [0; 2] {
        let [files, others] = settings.workers.map(u64::from);
        let workers = [files | others << 32];
        uring::register_words(opened, register::IOWQ_MAX_WORKERS, &workers, 2)?;
    }
    if let Some(clock) = settings.clock {
        // struct io_uring_clock_register
        uring::register_words(opened, register::CLOCK, &[clock.into(), 0], 0)?;
    }
    let Some(restrictions) = settings.restrictions else {
        return Ok(());
    };
    let words = words(&restrictions);
    let count = u32::try_from(words.len() / 2).unwrap_or(0);
    uring::register_words(opened, register::RESTRICTIONS, &words, count)?;
    let waits = ring.flags & flags::R_DISABLED != 0 || ring.submitter.is_some();
    match waits {
        true => Ok(()),
        false => uring::register_words(opened, register::ENABLE_RINGS, &[], 0),
    }
}

/// An array of `struct io_uring_restriction`.
fn words(restrictions: &RingRestrictions) -> Vec<u64> {
    let [register, request, allowed, required] = KINDS;
    let registers = (0..64).filter(|bit| restrictions.register >> bit & 1 != 0);
    let requests = (0..128).filter(|bit| restrictions.requests >> bit & 1 != 0);
    let mut all: Vec<(u64, u64)> = registers.map(|bit| (register, bit)).collect();
    all.extend(requests.map(|bit| (request, bit)));
    for (kind, flags) in [
        (allowed, restrictions.allowed),
        (required, restrictions.required),
    ] {
        if flags != 0 {
            all.push((kind, flags.into()));
        }
    }
    all.iter()
        .flat_map(|(kind, what)| [kind | what << 16, 0])
        .collect()
}
