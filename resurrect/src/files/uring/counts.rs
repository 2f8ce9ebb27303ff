//! What a ring has counted.
//!
//! A new ring's counts are brought to where the old one's were by requests that do nothing: some that make a completion,
//! some that make none, and, where completions were more than requests, by messages from a ring of our own.
//!
//! The kernel looks for room among the completions once for all places up to the end of the queue (io_uring/io_uring.c,
//! `io_cqe_cache_refill`). So when it comes to the last lap it must see what nobody has read there.

use super::at;
use super::mapped::Mapped;
use super::user::User;
use crate::ResurrectError;
use persist_mem::manifest::Ring;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::Errno;
use sys::uring::{
    self, ENTER_GETEVENTS, Entry, Memory, OFFSET_ENTRIES, OFFSET_RINGS, Params, flags, op,
};

/// `IOSQE_CQE_SKIP_SUCCESS`
const NO_COMPLETION: u8 = 1 << 6;
/// Entries of the ring that sends messages.
const SENT_AT_ONCE: u32 = 512;
/// Calls that one batch makes.
const AT_ONCE: u32 = 256;
/// How long messages may be on their way.
const WITHIN: Duration = Duration::from_secs(10);

/// What a ring has still to count, when it has counted so much.
fn rest(ring: &Ring, memory: &Mapped) -> Option<Ring> {
    let (submitted, completed) = ring.counts;
    let taken = memory.rings.word(ring.offsets[at::SQ_HEAD]);
    let counts = (
        submitted.checked_sub(taken)?,
        completed.checked_sub(memory.completed())?,
    );
    Some(Ring {
        counts,
        drains_no_more: ring.drains_no_more,
        ..Ring::default()
    })
}

/// How many requests with and without a completion, and messages, bring a new ring to these counts.
fn plan(ring: &Ring) -> Option<[u32; 3]> {
    let (submitted, completed) = ring.counts;
    // One without a completion at least leaves its trace.
    let silent = match ring.drains_no_more {
        true => submitted.saturating_sub(completed).max(1),
        false => submitted.saturating_sub(completed),
    };
    let plain = submitted.checked_sub(silent)?;
    let possible = ring.drains_no_more || silent == 0;
    possible.then_some([plain, silent, completed.checked_sub(plain)?])
}

/// How the completions go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Laps {
    /// Room for completions.
    size: u32,
    /// The first completion of the last lap.
    last: u32,
    /// The first one that nobody had read.
    unread: u32,
}

impl Laps {
    /// None when there are more unread than there is room for.
    pub(super) fn of(ring: &Ring) -> Option<Laps> {
        let (_, completed) = ring.counts;
        let at = usize::try_from(ring.offsets[at::CQ_HEAD]).ok()?;
        let unread = u32::from_le_bytes(*ring.rings.get(at..)?.first_chunk()?);
        let fits = completed.checked_sub(unread)? <= ring.completions;
        (fits && ring.completions.is_power_of_two()).then_some(Laps {
            size: ring.completions,
            last: completed - completed % ring.completions,
            unread,
        })
    }

    /// How many may come behind `completed` before some are taken.
    pub(super) fn room(&self, completed: u32) -> u32 {
        match self.last.checked_sub(completed) {
            Some(before) if before > 0 => before.min(self.size),
            _ => self.size,
        }
    }

    /// Takes what has been completed, but for what is to stay.
    pub(super) fn take(&self, memory: &Mapped) {
        let completed = memory.completed();
        let head = match completed < self.last {
            true => completed,
            false => self.unread.min(self.last),
        };
        memory.take(head);
    }
}

/// Brings a new ring to the counts of the old one.
pub(super) fn advance(
    ring: &Ring,
    memory: &Mapped,
    user: &mut User<'_>,
    target: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    let left = rest(ring, memory);
    let found = left.and_then(|left| plan(&left)).zip(Laps::of(ring));
    let wrong = ResurrectError::own("counting requests of io_uring");
    let ([plain, silent, messages], laps) = found.ok_or_else(|| wrong(Errno::EINVAL))?;
    // What is not allowed is the last one that a call takes, and completed all the same.
    let each = match ring.settings.restrictions {
        Some(_) => 1,
        None => ring.entries,
    };
    let most = each.saturating_mul(AT_ONCE);
    memory.fill(&Entry::default());
    let mut left = plain;
    while left > 0 {
        let now = left.min(laps.room(memory.completed())).min(most);
        memory.add_to_tail(now);
        user.submit(now, each)?;
        laps.take(memory);
        left -= now;
    }
    memory.fill(&Entry {
        opcode: op::NOP,
        flags: NO_COMPLETION,
        ..Entry::default()
    });
    let mut left = silent;
    while left > 0 {
        let now = left.min(most);
        memory.add_to_tail(now);
        user.submit(now, each)?;
        left -= now;
    }
    add(ring, memory, user, target, messages)
}

/// Adds so many completions without requests.
pub(super) fn add(
    ring: &Ring,
    memory: &Mapped,
    user: &mut User<'_>,
    target: BorrowedFd<'_>,
    messages: u32,
) -> Result<(), ResurrectError> {
    if messages == 0 {
        return Ok(());
    }
    let wrong = ResurrectError::own(COUNTING);
    let laps = Laps::of(ring).ok_or_else(|| wrong(Errno::EINVAL))?;
    let deferred = ring.flags & flags::DEFER_TASKRUN != 0;
    let sender = Sender::new(target).map_err(ResurrectError::own(COUNTING))?;
    let mut left = messages;
    while left > 0 {
        let now = left.min(laps.room(memory.completed())).min(SENT_AT_ONCE);
        sender.send(now, memory, deferred.then_some(&mut *user))?;
        laps.take(memory);
        left -= now;
    }
    Ok(())
}

const COUNTING: &str = "counting completions of io_uring";

/// A ring that sends another one messages, which are completions without requests.
struct Sender {
    ring: OwnedFd,
    memory: Mapped,
}

impl Sender {
    fn new(target: BorrowedFd<'_>) -> sys::Result<Sender> {
        let mut params = Params::new(2 * SENT_AT_ONCE, flags::CQSIZE);
        let ring = uring::setup(SENT_AT_ONCE, &mut params)?;
        let rings = params.offsets()[at::ARRAY] + SENT_AT_ONCE * 4;
        let memory = Mapped {
            rings: Memory::map(&ring, OFFSET_RINGS, rings as usize)?,
            sqes: Memory::map(&ring, OFFSET_ENTRIES, SENT_AT_ONCE as usize * 64)?,
            offsets: params.offsets(),
            entries: SENT_AT_ONCE,
            size: 64,
        };
        memory.fill(&Entry {
            opcode: op::MSG_RING,
            fd: target.as_raw_fd(),
            ..Entry::default()
        });
        Ok(Sender { ring, memory })
    }

    /// Sends so many, and waits until they are there. `user` is who must ask for them.
    fn send(
        &self,
        count: u32,
        target: &Mapped,
        mut user: Option<&mut User<'_>>,
    ) -> Result<(), ResurrectError> {
        let failed = || ResurrectError::own(COUNTING);
        let before = (self.memory.completed(), target.completed());
        self.memory.add_to_tail(count);
        let taken = uring::enter(&self.ring, count, 0, 0).map_err(failed())?;
        if taken != count {
            return Err(failed()(Errno::EAGAIN));
        }
        let begun = Instant::now();
        loop {
            if let Some(user) = &mut user {
                user.complete(count)?;
            }
            uring::enter(&self.ring, 0, 0, ENTER_GETEVENTS).map_err(failed())?;
            let (told, came) = (self.memory.completed(), target.completed());
            let (told, came) = (told.wrapping_sub(before.0), came.wrapping_sub(before.1));
            if (told, came) == (count, count) {
                self.memory.take(self.memory.completed());
                return Ok(());
            }
            if came > count || begun.elapsed() > WITHIN {
                return Err(failed()(Errno::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn counts_are_made_of_requests_and_messages() {
        let plan = |counts, drains_no_more| {
            plan(&Ring {
                counts,
                drains_no_more,
                ..Ring::default()
            })
        };
        assert_eq!(plan((5, 5), false), Some([5, 0, 0]));
        assert_eq!(plan((5, 9), false), Some([5, 0, 4]));
        assert_eq!(plan((9, 5), true), Some([5, 4, 0]));
        assert_eq!(plan((5, 5), true), Some([4, 1, 1]));
        assert_eq!((plan((9, 5), false), plan((0, 5), true)), (None, None));
    }

    /// A ring with these sizes that is to be brought to these counts and has this many unread completions; None where
    /// there is no io_uring, or none with these flags.
    fn wanted(
        sizes: (u32, u32),
        wanted: u32,
        counts: (u32, u32),
        unread: u32,
    ) -> Option<(Ring, OwnedFd)> {
        let (params, made) = match super::super::make(sizes.0, sizes.1, flags::CQSIZE | wanted) {
            Ok(made) => made,
            Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => return None,
            Err(other) => panic!("{other}"),
        };
        let offsets = params.offsets();
        let mut rings = vec![0; (offsets[at::ARRAY] + sizes.0 * 4) as usize];
        let mut set = |at: usize, value: u32| {
            let at = offsets[at] as usize;
            rings[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        set(at::CQ_HEAD, counts.1 - unread);
        set(at::CQ_TAIL, counts.1);
        let ring = Ring {
            flags: flags::CQSIZE | wanted,
            entries: sizes.0,
            completions: sizes.1,
            offsets,
            counts,
            drains_no_more: true,
            rings,
            sqes: vec![0; sizes.0 as usize * 64],
            ..Ring::default()
        };
        Some((ring, made))
    }

    /// Brings it there; its counts then.
    fn bring(ring: &Ring, made: &OwnedFd) -> (Mapped, (u32, u32)) {
        let memory = Mapped::of(ring, made).unwrap();
        let mut user = User::This(made.as_fd());
        advance(ring, &memory, &mut user, made.as_fd()).unwrap();
        let counts = (memory.rings.word(ring.offsets[0]), memory.completed());
        (memory, counts)
    }

    #[test]
    fn a_ring_is_brought_to_where_it_was() {
        let Some((ring, made)) = wanted((8, 64), 0, (1003, 5007), 0) else {
            return;
        };
        assert_eq!(bring(&ring, &made).1, (1003, 5007));
    }

    #[test]
    fn one_entry_and_many_completions() {
        let Some((ring, made)) = wanted((1, 1 << 16), 0, (70_000, 70_001), 0) else {
            return;
        };
        assert_eq!(bring(&ring, &made).1, (70_000, 70_001));
    }

    #[test]
    fn many_messages_come_to_a_ring_whose_thread_asks_for_them() {
        let deferred = flags::SINGLE_ISSUER | flags::DEFER_TASKRUN;
        let Some((ring, made)) = wanted((8, 256), deferred, (3, 1003), 0) else {
            return;
        };
        assert_eq!(bring(&ring, &made).1, (3, 1003));
    }

    #[test]
    fn unread_completions_are_not_written_over() {
        // The place of the last one in its lap, and how many are unread.
        for (tail, unread) in [
            (15, 20),
            (15, 15),
            (15, 16),
            (15, 64),
            (0, 20),
            (0, 64),
            (63, 64),
            (1, 2),
        ] {
            let completed = 640 + tail;
            let Some((ring, made)) = wanted((64, 64), 0, (completed, completed), unread) else {
                return;
            };
            let (memory, _) = bring(&ring, &made);
            memory.rings.write(0, &ring.rings);
            let free = 64 - unread;
            let cqes = ring.offsets[12];
            let place = |number: u32| cqes + (number % 64) * 16;
            for number in completed - unread..completed {
                memory.rings.set_word(place(number), 0xaaaa_0000 + number);
            }
            // Four more than there is room for.
            memory.fill(&Entry::default());
            memory.rings.set_word(ring.offsets[at::SQ_TAIL], completed);
            memory.add_to_tail((free + 4).min(64));
            uring::enter(&made, (free + 4).min(64), 0, 0).unwrap();
            for number in completed - unread..completed {
                let found = memory.rings.word(place(number));
                assert_eq!(found, 0xaaaa_0000 + number, "{number} of {tail}, {unread}");
            }
            assert_eq!(memory.completed(), completed + free, "{tail}, {unread}");
        }
    }
}
