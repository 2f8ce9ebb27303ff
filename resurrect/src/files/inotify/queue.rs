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
//!
//! Where `IN_Q_OVERFLOW` is one of the events, it comes in its place.

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
const IN_Q_OVERFLOW: u32 = 0x4000;

/// Makes the queue of `notify`, which has no watches yet, hold these events.
pub(super) fn fill(notify: &OwnedFd, events: &[WatchEvent]) -> sys::Result<()> {
    let free = (1..).find(|number| events.iter().all(|event| event.number != *number));
    let mut queue = Queue {
        notify,
        padding: None,
        stand_ins: StandIns::new(notify, events)?,
    };
    let padding = Padding::new(&queue.stand_ins, notify, free.ok_or(Errno::ENOSPC)?)?;
    let padding = queue.padding.insert(padding);
    let most = overfill(notify, padding)?;
    let lost = events
        .iter()
        .position(|event| event.mask & IN_Q_OVERFLOW != 0);
    match lost.map(|at| events.split_at(at)) {
        Some((before, after)) => queue.full(most, before, after.get(1..).unwrap_or_default()),
        None => queue.not_full(most, events),
    }
}

/// A queue that is being filled.
struct Queue<'a> {
    notify: &'a OwnedFd,
    padding: Option<Padding>,
    stand_ins: StandIns<'a>,
}

impl Queue<'_> {
    /// It holds `IN_Q_OVERFLOW` to begin with.
    fn not_full(mut self, most: usize, events: &[WatchEvent]) -> sys::Result<()> {
        let between = most.checked_sub(1 + events.len()).ok_or(Errno::ENOBUFS)?;
        self.pad(between)?;
        self.cause(events)?;
        self.finish(1 + between, events)
    }

    /// Events were lost behind `before`, and others came when some had been read. It is filled as it was, with
    /// padding for what was read: as much of it stays until the watches end as there is room behind.
    fn full(mut self, most: usize, before: &[WatchEvent], after: &[WatchEvent]) -> sys::Result<()> {
        take(self.notify, 1)?;
        let read = most.checked_sub(before.len()).ok_or(Errno::ENOBUFS)?;
        self.pad(read)?;
        self.cause(before)?;
        // One more than there is room for.
        self.pad(1)?;
        let taken = if after.is_empty() { 0 } else { after.len() + 1 };
        let left = read.checked_sub(taken).ok_or(Errno::ENOBUFS)?;
        take(self.notify, taken)?;
        self.cause(after)?;
        let lost = WatchEvent {
            number: -1,
            mask: IN_Q_OVERFLOW,
            cookie: 0,
            name: Vec::new(),
        };
        self.finish(left, &[before, &[lost], after].concat())
    }

    fn pad(&mut self, count: usize) -> sys::Result<()> {
        let padding = self.padding.as_mut().ok_or(Errno::EPROTO)?;
        (0..count).try_for_each(|_| padding.add())
    }

    fn cause(&mut self, events: &[WatchEvent]) -> sys::Result<()> {
        let mut rest = events;
        while !rest.is_empty() {
            let caused = self.stand_ins.cause(rest)?;
            rest = rest.get(caused..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the watches, and takes out so many that are before the events.
    fn finish(mut self, before: usize, events: &[WatchEvent]) -> sys::Result<()> {
        let size: usize = events.iter().map(size).sum();
        let whole = size + before * EVENT;
        // One less or one more, and the ends of the watches would be among them.
        if sys::files::readable(self.notify)? != whole {
            return Err(Errno::EPROTO);
        }
        self.stand_ins.end()?;
        let padding = self.padding.take().ok_or(Errno::EPROTO)?;
        padding.end(self.notify)?;
        if sys::files::readable(self.notify)? != whole {
            return Err(Errno::EPROTO);
        }
        take(self.notify, before)?;
        if sys::files::readable(self.notify)? == size {
            Ok(())
        } else {
            Err(Errno::EPROTO)
        }
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
