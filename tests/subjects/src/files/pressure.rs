//! Triggers of pressure (Documentation/accounting/psi.rst).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use libc::O_RDWR;

use crate::kit::files::{open, place, ready};
use crate::kit::{Setting, Watch, not_here, same, sys as kit_sys};
use crate::threads::cgroups::hierarchy;

/// What tells of tasks that have waited for a processor for so long within so much time, in microseconds. Whoever is
/// not privileged can ask for such a window.
const TEXT: &str = "some 2000 2000000\n";

/// A file that tells of pressure, and one that nothing was written to.
pub(crate) fn trigger(_: &Setting) -> Result<Watch> {
    if std::fs::read("/proc/pressure/cpu").is_err() {
        return not_here("this kernel does not measure pressure");
    }
    let told = open("/proc/pressure/cpu", O_RDWR)?;
    let plain = open("/proc/pressure/memory", O_RDWR)?;
    write(told, TEXT)?;
    Ok(Watch::new(move || {
        let errors = (tells_an_error(told)?, tells_an_error(plain)?);
        same("who tells of errors", &(false, true), &errors)?;
        let again = write(told, TEXT).map_err(|error| error.to_string());
        if again.is_ok() {
            bail!("it can be asked once more");
        }
        fires(told)
    })
    .spoiled_by(move || {
        let other = open("/proc/pressure/cpu", O_RDWR)?;
        // SAFETY: descriptors of ours.
        kit_sys("dup2", unsafe { libc::dup2(other, told) }).map(drop)
    }))
}

/// The same of a control group.
pub(crate) fn of_a_group(setting: &Setting) -> Result<Watch> {
    let group = hierarchy(setting)?;
    let files = [group.join("memory.pressure"), group.join("io.pressure")];
    if !files.iter().all(|file| file.exists()) {
        return not_here("control groups do not measure pressure");
    }
    let [told, plain] = files.map(|file| open(file, O_RDWR));
    let (told, plain) = (told?, plain?);
    write(told, "full 100000 2000000\n")?;
    place(told, Some(0))?;
    let observe = move || {
        let again = write(told, TEXT).map_err(|error| error.to_string());
        let at = place(told, None)?;
        Ok((tells_an_error(told)?, tells_an_error(plain)?, again, at))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        // SAFETY: descriptors of ours.
        kit_sys("dup2", unsafe { libc::dup2(plain, told) }).map(drop)
    }))
}

/// More threads than processors work until it tells.
fn fires(file: i32) -> Result<()> {
    const BOUND: Duration = Duration::from_secs(30);
    let done = AtomicBool::new(false);
    let workers = 1 + std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let begun = Instant::now();
        let mut told = false;
        while !told && begun.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(100));
            told = ready(file, libc::POLLPRI)? & libc::POLLPRI != 0;
        }
        done.store(true, Ordering::Relaxed);
        match told {
            true => Ok(()),
            false => bail!("it tells nothing of {workers} threads that work"),
        }
    })
}

/// What a file does that nothing was written to.
fn tells_an_error(file: i32) -> Result<bool> {
    Ok(ready(file, libc::POLLPRI)? & libc::POLLERR != 0)
}

fn write(file: i32, text: &str) -> Result<()> {
    // SAFETY: the text outlives the call.
    let done = unsafe { libc::write(file, text.as_ptr().cast(), text.len()) };
    kit_sys("write", done as i32).map(drop)
}
