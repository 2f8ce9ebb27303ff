//! Events that an inotify descriptor holds and that nobody has read.
//!
//! They are read from the kernel's memory (`struct fsnotify_group`, fs/notify/notification.c; `struct
//! inotify_event_info`, fs/notify/inotify), since read(2) would take them out.

use crate::kernel::{Kernel, Unreadable, half, word};
use persist_mem::manifest::WatchEvent;
use std::os::fd::{AsFd, OwnedFd};

const WRONG: Unreadable = Unreadable::Inconsistent("the events of an inotify descriptor");
/// `struct inotify_event` without a name; names are padded to multiples of it.
const EVENT: usize = 16;
/// Bytes of a name that are read with its event.
const SHORT_NAME: usize = 64;
/// Longest name (`NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// How many may wait in a new queue.
const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";
/// More events than anybody lets wait (`fs.inotify.max_queued_events` is 16384 as a rule).
const MOST: usize = 1 << 20;
/// What a program is shown of a mask: `IN_ALL_EVENTS`, `IN_UNMOUNT`, `IN_Q_OVERFLOW`, `IN_IGNORED`,
/// `IN_ISDIR`.
const SHOWN: u32 = IN_ALL_EVENTS | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED | 0x4000_0000;
const IN_ALL_EVENTS: u32 = 0xfff;
const IN_MOVED_FROM: u32 = 0x40;
const IN_MOVED_TO: u32 = 0x80;
const IN_DELETE_SELF: u32 = 0x400;
const IN_UNMOUNT: u32 = 0x2000;
const IN_Q_OVERFLOW: u32 = 0x4000;
const IN_IGNORED: u32 = 0x8000;

/// What the kernel keeps of an inotify descriptor.
pub(super) struct Kept {
    /// The number from which the next watch's is looked for.
    pub(super) next: i32,
    /// Events, the oldest first.
    pub(super) events: Vec<WatchEvent>,
    /// How many events may wait, in a new queue as well.
    most: usize,
}

impl Kept {
    /// Bytes that read(2) returns of them.
    pub(super) fn size(&self) -> usize {
        let size = |event: &WatchEvent| match event.name.len() {
            0 => EVENT,
            len => EVENT + (len + 1).next_multiple_of(EVENT),
        };
        self.events.iter().map(size).sum()
    }

    /// Why they cannot be queued again. None when they can.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let lost = |event: &WatchEvent| event.mask & IN_Q_OVERFLOW != 0;
        if let Some(before) = self.events.iter().position(lost) {
            // It comes when the queue is full, and what came after it has the places of what was read since.
            let after = self.events.len() - before - 1;
            if before > self.most || after > 0 && before + after + 1 > self.most {
                return Some("more than a new queue has room for have not been read yet");
            }
        } else if self.events.len() + 2 > self.most {
            // One place is taken while they are queued.
            return Some("as many as there may be have not been read yet");
        }
        (0..self.events.len()).find_map(|at| self.obstacle_at(at))
    }

    /// What is the matter with an event.
    fn obstacle_at(&self, at: usize) -> Option<&'static str> {
        let event = self.events.get(at)?;
        // What is lost with an end of a watch is that end.
        let ended = |next: &WatchEvent| {
            next.mask & IN_IGNORED != 0 && next.number == event.number
                || next.mask & IN_Q_OVERFLOW != 0
        };
        let other_half =
            |other: &WatchEvent| other.mask & IN_MOVED_TO != 0 && other.cookie == event.cookie;
        if event.mask & IN_UNMOUNT != 0 {
            Some("one of an unmounted file system has not been read yet")
        } else if event.mask & IN_DELETE_SELF != 0 && !self.events.get(at + 1).is_some_and(ended) {
            Some("one of a removed file has not been read yet, with others before its watch's end")
        } else if event.mask & IN_MOVED_FROM != 0 && self.events.iter().skip(at + 2).any(other_half)
        {
            Some("those of a move have not been read yet, with others between them")
        } else if (event.mask & (IN_ALL_EVENTS | IN_IGNORED | IN_Q_OVERFLOW)).count_ones() != 1 {
            Some("one of an unknown kind has not been read yet")
        } else {
            None
        }
    }
}

/// Where things are in the kernel's structures.
struct Layout {
    private: u64,
    list: u64,
    most: u64,
    next: u64,
    /// From the start of an event to its link.
    link: u64,
    mask: u64,
    number: u64,
    cookie: u64,
    name_len: u64,
    name: u64,
}

impl Layout {
    fn of(kernel: &Kernel) -> Result<Layout, Unreadable> {
        let field = |structure, path| Ok(kernel.btf().field(structure, path)?.offset);
        let event = |path| field("inotify_event_info", path);
        Ok(Layout {
            private: field("file", "private_data")?,
            list: field("fsnotify_group", "notification_list")?,
            most: field("fsnotify_group", "max_events")?,
            next: field("fsnotify_group", "inotify_data.idr.idr_next")?,
            link: event("fse.list")?,
            mask: event("mask")?,
            number: event("wd")?,
            cookie: event("sync_cookie")?,
            name_len: event("name_len")?,
            name: event("name")?,
        })
    }
}

/// Of an inotify descriptor of this process.
pub(super) fn read(kernel: &mut Kernel, notify: &OwnedFd) -> Result<Kept, Unreadable> {
    let layout = Layout::of(kernel)?;
    let file = kernel.own_file(notify.as_fd())?;
    let group = kernel.word(file.wrapping_add(layout.private), "an inotify descriptor")?;
    let at = |field: u64| group.wrapping_add(field);
    let read = kernel.read(&[(at(layout.most), 4), (at(layout.next), 4)])?;
    let number = |place: usize| half(read.get(place)?.as_ref()?, 0);
    let (most, next) = (number(0).ok_or(WRONG)?, number(1).ok_or(WRONG)?);
    let head = at(layout.list);
    let mut link = kernel.word(head, "the events of an inotify descriptor")?;
    let mut events = Vec::new();
    while link != head {
        if events.len() == MOST {
            return Err(WRONG);
        }
        let (event, after) = one(kernel, &layout, link)?;
        events.push(event);
        link = after;
    }
    let now = std::fs::read_to_string(LIMIT).ok();
    let now = now.and_then(|text| text.trim().parse().ok());
    Ok(Kept {
        next: next.cast_signed(),
        events,
        most: now.unwrap_or(usize::MAX).min(most as usize),
    })
}

/// The event that a link belongs to, and the link of the next one.
fn one(kernel: &mut Kernel, layout: &Layout, link: u64) -> Result<(WatchEvent, u64), Unreadable> {
    let start = link.wrapping_sub(layout.link);
    let len = layout.name as usize + SHORT_NAME;
    let bytes = kernel.read(&[(start, len)])?.pop().flatten().ok_or(WRONG)?;
    let number = |at| half(&bytes, at).ok_or(WRONG);
    let name_len = number(layout.name_len)? as usize;
    if name_len > LONGEST_NAME {
        return Err(WRONG);
    }
    let name = if name_len > SHORT_NAME {
        let request = (start.wrapping_add(layout.name), name_len);
        kernel.read(&[request])?.pop().flatten().ok_or(WRONG)?
    } else {
        bytes[layout.name as usize..][..name_len].to_vec()
    };
    let event = WatchEvent {
        number: number(layout.number)?.cast_signed(),
        mask: number(layout.mask)? & SHOWN,
        cookie: number(layout.cookie)?,
        name,
    };
    Ok((event, word(&bytes, layout.link).ok_or(WRONG)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: i32, mask: u32, cookie: u32, name: &[u8]) -> WatchEvent {
        WatchEvent {
            number,
            mask,
            cookie,
            name: name.to_vec(),
        }
    }

    fn kept(events: Vec<WatchEvent>) -> Kept {
        Kept {
            next: 1,
            events,
            most: 100,
        }
    }

    #[test]
    fn what_is_read_has_padded_names() {
        let events = vec![
            event(1, 2, 0, b""),
            event(1, 2, 0, b"fifteen letters"),
            event(1, 2, 0, b"sixteen letters!"),
        ];
        assert_eq!(kept(events).size(), 16 + 32 + 48);
    }

    #[test]
    fn events_that_cannot_be_caused_are_told_apart() {
        let (from, to) = (
            event(1, IN_MOVED_FROM, 7, b"a"),
            event(2, IN_MOVED_TO, 7, b"b"),
        );
        let other = event(1, 2, 0, b"c");
        assert_eq!(
            kept(vec![from.clone(), to.clone(), other.clone()]).obstacle(),
            None
        );
        assert!(kept(vec![from, other.clone(), to]).obstacle().is_some());
        let gone = event(3, IN_DELETE_SELF, 0, b"");
        let ignored = event(3, IN_IGNORED, 0, b"");
        assert_eq!(kept(vec![gone.clone(), ignored]).obstacle(), None);
        assert!(kept(vec![gone, other.clone()]).obstacle().is_some());
        assert!(kept(vec![other.clone(); 99]).obstacle().is_some());
        let lost = event(-1, IN_Q_OVERFLOW, 0, b"");
        let full = |before: usize, after: usize| {
            let mut events = vec![other.clone(); before];
            events.push(lost.clone());
            events.extend(vec![other.clone(); after]);
            kept(events).obstacle()
        };
        assert_eq!((full(100, 0), full(90, 9)), (None, None));
        assert!(full(101, 0).is_some() && full(90, 10).is_some() && full(100, 1).is_some());
        let end = event(3, IN_DELETE_SELF, 0, b"");
        assert_eq!(kept(vec![end, lost]).obstacle(), None);
    }
}
