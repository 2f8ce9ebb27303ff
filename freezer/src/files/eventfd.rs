//! eventfd(2).

use super::Open;
use crate::{FreezerError, kernel};
use persist_mem::manifest::DescriptionKind;
use std::os::fd::AsFd;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let count = open
        .info
        .number("eventfd-count", 16)
        .ok_or_else(|| open.format())?;
    let semaphore = match open.info.number("eventfd-semaphore", 10) {
        Some(flag) => flag != 0,
        // Kernels before 6.5 do not tell. Who tries wakes those who wait (io_uring tells them so).
        None => match kernel::look(|kernel| {
            let file = kernel.own_file(open.copy.as_fd())?;
            kernel.is_semaphore(file)
        }) {
            Ok(semaphore) => semaphore,
            Err(_) => probe_semaphore(open, count)?,
        },
    };
    Ok(DescriptionKind::EventFd { count, semaphore })
}

/// A semaphore gives 1 for every read, a plain eventfd all it has. Whoever uses it is stopped.
fn probe_semaphore(open: &Open<'_>, count: u64) -> Result<bool, FreezerError> {
    if count < 2 {
        add(open, 2)?;
    }
    let mut word = [0; 8];
    nix::unistd::read(open.copy, &mut word).map_err(open.call("reading the counter"))?;
    let got = u64::from_ne_bytes(word);
    let semaphore = got == 1;
    let added = if count < 2 { 2 } else { 0 };
    if semaphore {
        // One was taken; of what was added, the rest is taken out again.
        match added {
            0 => add(open, 1)?,
            _ => {
                nix::unistd::read(open.copy, &mut word)
                    .map_err(open.call("reading the counter"))?;
            }
        }
    } else if count > 0 {
        add(open, count)?;
    }
    Ok(semaphore)
}

fn add(open: &Open<'_>, n: u64) -> Result<(), FreezerError> {
    nix::unistd::write(open.copy, &n.to_ne_bytes())
        .map(drop)
        .map_err(open.call("setting the counter"))
}
