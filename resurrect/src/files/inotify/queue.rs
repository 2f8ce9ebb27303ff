//! Events that nobody has read, queued again.
//!
//! An event has the number of a watch, and only what is done to the watched inode makes one. Doing that to the
//! real files again would change them. So files of our own are watched under these numbers
//! ([`StandIns`]). When such a watch ends to make room for the real one, that is an event, too
//! (`IN_IGNORED`), which is not wanted. It is lost where the queue is full and says already that events were
//! lost (`IN_Q_OVERFLOW`; fs/notify/notification.c, `fsnotify_insert_event`). The queue grows at its end
//! and is read from its beginning, so:
//!
//! 1. It is overfilled and emptied but for the `IN_Q_OVERFLOW` that is its last event then.
//! 2. Padding comes behind that, and the events that are wanted behind the padding, so that it is full.
//! 3. The watches end, and the queue does not change.
//! 4. `IN_Q_OVERFLOW` and the padding are read. What is left are the events.

use super::stand_ins::StandIns;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::read;
use persist_mem::manifest::WatchEvent;
use std::os::fd::{AsFd, OwnedFd};
use sys::Errno;

/// Bytes of an event without a name, of which names are multiples.
const EVENT: usize = 16;
/// Events between two looks at how many there are.
const SOME: usize = 1024;
const IN_CLOSE_NOWRITE: u32 = 0x10;
const IN_OPEN: u32 = 0x20;

/// Makes the queue of `notify`, which has no watches yet, hold these events.
pub(super) fn fill(notify: &OwnedFd, events: &[WatchEvent]) -> sys::Result<()> {
    let free = (1..).find(|number| events.iter().all(|event| event.number != *number));
    let mut stand_ins = StandIns::new(notify, events)?;
    let mut padding = Padding::new(&stand_ins, notify, free.ok_or(Errno::ENOSPC)?)?;
    let most = overfill(notify, &mut padding)?;
    let between = most.checked_sub(1 + events.len()).ok_or(Errno::ENOBUFS)?;
    for _ in 0..between {
        padding.add()?;
    }
    let mut rest = events;
    while !rest.is_empty() {
        let caused = stand_ins.cause(rest)?;
        rest = rest.get(caused..).unwrap_or_default();
    }
    let size: usize = events.iter().map(size).sum();
    let whole = size + (1 + between) * EVENT;
    // One less or one more, and the ends of the watches would be among them.
    if sys::files::readable(notify)? != whole {
        return Err(Errno::EPROTO);
    }
    stand_ins.end()?;
    padding.end(notify)?;
    if sys::files::readable(notify)? != whole {
        return Err(Errno::EPROTO);
    }
    take(notify, 1 + between)?;
    if sys::files::readable(notify)? == size {
        Ok(())
    } else {
        Err(Errno::EPROTO)
    }
}

/// Bytes that read(2) returns of an event.
fn size(event: &WatchEvent) -> usize {
    match event.name.len() {
        0 => EVENT,
        len => EVENT + (len + 1).next_multiple_of(EVENT),
    }
}

/// Leaves nothing in the queue but `IN_Q_OVERFLOW`. Returns how many events may wait.
fn overfill(notify: &OwnedFd, padding: &mut Padding) -> sys::Result<usize> {
    let mut before = 0;
    loop {
        for _ in 0..SOME {
            padding.add()?;
        }
        let now = sys::files::readable(notify)? / EVENT;
        if now < before + SOME {
            // The last one is not counted.
            let most = now.saturating_sub(1);
            take(notify, most)?;
            let left = sys::files::readable(notify)?;
            return if left == EVENT {
                Ok(most)
            } else {
                Err(Errno::EPROTO)
            };
        }
        before = now;
    }
}

/// Reads so many events without names.
fn take(notify: &OwnedFd, count: usize) -> sys::Result<()> {
    let mut buffer = vec![0; SOME * EVENT];
    let mut left = count * EVENT;
    while left > 0 {
        let now = left.min(buffer.len());
        let got = read(notify, buffer.get_mut(..now).unwrap_or_default())?;
        left = left
            .checked_sub(got)
            .filter(|_| got > 0)
            .ok_or(Errno::EPROTO)?;
    }
    Ok(())
}

/// Events that are there to be taken out again: a file is opened and closed, which are never two alike in a row.
struct Padding {
    root: OwnedFd,
    number: i32,
    open: Option<OwnedFd>,
}

const NAME: &str = "padding";

impl Padding {
    fn new(stand_ins: &StandIns<'_>, notify: &OwnedFd, number: i32) -> sys::Result<Padding> {
        let root = stand_ins.root().try_clone_to_owned();
        let root = root.map_err(|e| e.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
        let flags = OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let file = openat(&root, NAME, flags | OFlag::O_WRONLY, Mode::S_IRWXU)?;
        super::watch_as(notify, &file, number, IN_OPEN | IN_CLOSE_NOWRITE)?;
        Ok(Padding {
            root,
            number,
            open: None,
        })
    }

    /// One more.
    fn add(&mut self) -> sys::Result<()> {
        self.open = match self.open.take() {
            Some(_closed) => None,
            None => {
                let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                Some(openat(self.root.as_fd(), NAME, flags, Mode::empty())?)
            }
        };
        Ok(())
    }

    fn end(self, notify: &OwnedFd) -> sys::Result<()> {
        sys::files::remove_watch(notify, self.number)
    }
}
