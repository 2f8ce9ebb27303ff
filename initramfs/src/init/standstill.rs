//! A restorer that stands still is no reason for the host to do so.
//!
//! It works or waits for others that do: nobody else runs yet. So when the whole host has been idle for a long time,
//! it waits for something that will never come.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use sys::procdir;

/// How long the host may be idle.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// Less work than this in a hundredth of [`LIMIT`] is none, in ticks of `/proc/stat` (a hundredth of a second).
const WORK: u64 = 5;

/// Reads what comes until the end. `ETIMEDOUT` when the host has been idle for `limit`; `work` tells how many ticks it
/// has worked so far.
pub(super) fn read_all(
    mut from: File,
    limit: Duration,
    work: impl Fn() -> Option<u64>,
) -> Result<Vec<u8>, Errno> {
    let pause = limit / 100;
    let wait = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    let mut text = Vec::new();
    let mut part = [0; 4096];
    let (mut seen, mut since) = (work(), Instant::now());
    loop {
        let mut asked = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, wait) {
            Ok(0) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => match from.read(&mut part) {
                Ok(0) => return Ok(text),
                Ok(len) => text.extend_from_slice(&part[..len]),
                Err(error) => {
                    return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
                }
            },
        }
        let now = work();
        let idle =
            matches!((seen, now), (Some(seen), Some(now)) if now.saturating_sub(seen) < WORK);
        if !idle {
            since = Instant::now();
        }
        seen = now;
        if since.elapsed() >= limit {
            return Err(Errno::ETIMEDOUT);
        }
    }
}

/// Ticks in which processors worked or somebody waited for a disk, of all together (proc_stat(5)).
pub(super) fn work_of_host() -> Option<u64> {
    let mut text = String::new();
    procdir::host("stat").ok()?.read_to_string(&mut text).ok()?;
    work_in(&text)
}

fn work_in(stat: &str) -> Option<u64> {
    /// Place of `idle` behind the name.
    const IDLE: usize = 3;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers = line.split_whitespace().map(str::parse::<u64>);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
    // Guests' time is in the others as well.
    let counted = numbers.iter().take(8).enumerate();
    Some(
        counted
            .filter(|(at, _)| *at != IDLE)
            .map(|(_, ticks)| ticks)
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::Write;

    const SHORT: Duration = Duration::from_millis(300);

    #[test]
    fn who_waits_on_an_idle_host_is_given_up() {
        let (read, write) = std::io::pipe().unwrap();
        let read = File::from(std::os::fd::OwnedFd::from(read));
        assert_eq!(read_all(read, SHORT, || Some(7)), Err(Errno::ETIMEDOUT));
        drop(write);
    }

    #[test]
    fn who_works_may_take_long() {
        let (read, mut write) = std::io::pipe().unwrap();
        let read = File::from(std::os::fd::OwnedFd::from(read));
        let ticks = Cell::new(0);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(3 * SHORT);
            write.write_all(b"done").unwrap();
        });
        let work = || Some(ticks.replace(ticks.get() + WORK));
        assert_eq!(read_all(read, SHORT, work).as_deref(), Ok(&b"done"[..]));
        writer.join().unwrap();
    }

    #[test]
    fn where_nobody_tells_it_waits() {
        let (read, mut write) = std::io::pipe().unwrap();
        let read = File::from(std::os::fd::OwnedFd::from(read));
        let writer = std::thread::spawn(move || {
            std::thread::sleep(2 * SHORT);
            write.write_all(b"done").unwrap();
        });
        assert_eq!(read_all(read, SHORT, || None).as_deref(), Ok(&b"done"[..]));
        writer.join().unwrap();
    }

    #[test]
    fn idle_time_is_no_work() {
        let stat = "cpu  1 2 3 1000 5 6 7 8 9 10\ncpu0 1 2 3 4\n";
        assert_eq!(work_in(stat), Some(32));
        assert!(work_of_host().is_some_and(|ticks| ticks > 0));
    }
}
