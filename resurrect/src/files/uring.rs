//! Rings of io_uring(7).
//!
//! A new ring counts from 0. It is brought to where the old one was by requests that do nothing: some that make a
//! completion, some that make none, and, where completions were more than requests, by messages from a ring of our
//! own. Then its memory is written, and what is in there and was not taken yet is taken by whoever takes it next.
//!
//! Where one thread alone may submit, the ring is enabled by that thread, and so becomes its.

use super::Opening;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionKind, Ring};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::uring::{
    self, ENTER_GETEVENTS, Memory, OFFSET_ENTRIES, OFFSET_RINGS, Params, REGISTER_ENABLE_RINGS,
    flags,
};
use sys::{Errno, Pid, Tid};

const NOP: u8 = 0;
const MSG_RING: u8 = 40;
/// `IOSQE_CQE_SKIP_SUCCESS`
const NO_COMPLETION: u8 = 1 << 6;
/// Entries of the ring that sends messages.
const SENT_AT_ONCE: u32 = 512;
/// Calls that one batch makes.
const AT_ONCE: u32 = 256;

/// Indices into [`Params::offsets`].
mod at {
    pub(super) const SQ_TAIL: usize = 1;
    pub(super) const ARRAY: usize = 6;
    pub(super) const CQ_HEAD: usize = 7;
    pub(super) const CQ_TAIL: usize = 8;
}

/// Makes an empty ring.
pub(super) fn open(opening: &Opening<'_, '_>, ring: &Ring) -> Result<OwnedFd, ResurrectError> {
    let mut wanted = ring.flags & !flags::ATTACH_WQ;
    if ring.submitter.is_some() {
        wanted |= flags::R_DISABLED;
    }
    let made = make(ring.entries, ring.completions, wanted);
    let (params, made) = made.map_err(opening.failed("making it"))?;
    if params.sizes() != (ring.entries, ring.completions) || params.offsets() != ring.offsets {
        return Err(opening.failed("laying it out as it was")(Errno::EINVAL));
    }
    Ok(made)
}

fn make(entries: u32, completions: u32, wanted: u32) -> sys::Result<(Params, OwnedFd)> {
    let mut params = Params::new(completions, wanted);
    let ring = uring::setup(entries, &mut params)?;
    Ok((params, ring))
}

/// Brings every ring to where it was.
pub(crate) fn fill(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        let DescriptionKind::Ring(ring) = &description.kind else {
            continue;
        };
        let Some(opened) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let opened = opened.try_clone().map_err(|_| Errno::EMFILE);
        let failed = || super::failed(description, "filling its ring");
        let opened = opened.map_err(failed())?;
        let memory = Mapped::of(ring, &opened).map_err(failed())?;
        let pidfd = restore.self_pidfd.as_raw_fd();
        let mut user = match ring.submitter {
            None => User::This(opened.as_fd()),
            Some(tid) => {
                let (pid, thread) = thread(restore, tid)?;
                User::thread(pid, thread, pidfd, opened.as_raw_fd())?
            }
        };
        advance(ring, &memory, &mut user, opened.as_fd())?;
        user.finish()?;
        memory.rings.write(0, &ring.rings);
        memory.sqes.write(0, &ring.sqes);
    }
    Ok(())
}

/// The thread that submits to a ring.
fn thread<'a>(
    restore: &'a mut Restore<'_>,
    tid: Tid,
) -> Result<(Pid, &'a mut Tracee), ResurrectError> {
    let mut lives = restore.lives();
    let found = lives.find(|(_, live)| live.threads.iter().any(|thread| thread.tid == tid));
    let missing = || ResurrectError::Impossible {
        pid: Pid(tid.0),
        why: format!("thread {tid}, which submits to a ring of io_uring, is not there"),
    };
    let (pid, live) = found.ok_or_else(missing)?;
    let acts = live.threads.first().is_some_and(|first| first.tid == tid);
    let task = restore.task(pid)?;
    if let Some(thread) = task.threads.get_mut(&tid) {
        return Ok((pid, thread));
    }
    if acts && task.in_vfork.is_none() {
        return Ok((pid, &mut task.first));
    }
    Err(missing())
}

/// Memory of a new ring.
struct Mapped {
    rings: Memory,
    sqes: Memory,
    offsets: [u32; 14],
    entries: u32,
    /// Bytes of an entry.
    size: u32,
}

impl Mapped {
    fn of(ring: &Ring, opened: &OwnedFd) -> sys::Result<Mapped> {
        Ok(Mapped {
            rings: Memory::map(opened, OFFSET_RINGS, ring.rings.len())?,
            sqes: Memory::map(opened, OFFSET_ENTRIES, ring.sqes.len())?,
            offsets: ring.offsets,
            entries: ring.entries,
            size: 64 << u32::from(ring.flags & flags::SQE128 != 0),
        })
    }

    /// Writes the same request into every entry.
    fn fill(&self, entry: &Entry) {
        for index in 0..self.entries {
            self.sqes.write(index * self.size, &entry.bytes());
            if self.offsets[at::ARRAY] != 0 {
                self.rings
                    .set_word(self.offsets[at::ARRAY] + index * 4, index);
            }
        }
    }

    fn add_to_tail(&self, count: u32) {
        let tail = self.offsets[at::SQ_TAIL];
        self.rings
            .set_word(tail, self.rings.word(tail).wrapping_add(count));
    }

    /// Takes all completions.
    fn take(&self) {
        let tail = self.rings.word(self.offsets[at::CQ_TAIL]);
        self.rings.set_word(self.offsets[at::CQ_HEAD], tail);
    }

    fn completed(&self) -> u32 {
        self.rings.word(self.offsets[at::CQ_TAIL])
    }
}

/// `struct io_uring_sqe`.
#[derive(Clone, Copy, Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    fd: i32,
}

impl Entry {
    fn bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        (bytes[0], bytes[1]) = (self.opcode, self.flags);
        bytes[4..8].copy_from_slice(&self.fd.to_le_bytes());
        bytes
    }
}

/// Who submits to a ring.
enum User<'a> {
    This(BorrowedFd<'a>),
    /// A thread that has it under this number.
    Thread(Pid, &'a mut Tracee, i32),
}

impl<'a> User<'a> {
    /// Enables the ring from within its thread.
    fn thread(
        pid: Pid,
        tracee: &'a mut Tracee,
        pidfd: i32,
        ours: i32,
    ) -> Result<User<'a>, ResurrectError> {
        let doing = "enabling its ring of io_uring";
        let mut batch = Batch::new();
        let args = [pidfd.into(), ours.into(), 0.into()];
        let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
        let args = [fd.into(), REGISTER_ENABLE_RINGS.into(), 0.into(), 0.into()];
        batch.call(doing, nr::IO_URING_REGISTER, args);
        let output = run(pid, doing, tracee, &batch)?;
        let fd = output.result(fd).map_or(-1, |fd| fd as i32);
        Ok(User::Thread(pid, tracee, fd))
    }

    /// Submits `count` entries, `each` at a time.
    fn submit(&mut self, count: u32, each: u32, events: u32) -> Result<(), ResurrectError> {
        let doing = "counting requests of io_uring";
        let parts = || {
            (0..count)
                .step_by(each.max(1) as usize)
                .map(|at| each.min(count - at))
        };
        match self {
            User::This(ring) => {
                let mut parts: Vec<u32> = parts().collect();
                if count == 0 {
                    parts.push(0);
                }
                for part in parts {
                    let taken =
                        uring::enter(*ring, part, 0, events).map_err(ResurrectError::own(doing))?;
                    if taken != part {
                        return Err(ResurrectError::own(doing)(Errno::EAGAIN));
                    }
                }
                Ok(())
            }
            User::Thread(pid, tracee, fd) => {
                let mut batch = Batch::new();
                let mut made = Vec::new();
                let mut parts: Vec<u32> = parts().collect();
                if count == 0 {
                    parts.push(0);
                }
                for part in parts {
                    let args = [(*fd).into(), part.into(), 0.into(), events.into()];
                    made.push((batch.call(doing, nr::IO_URING_ENTER, args), part));
                }
                let output = run(*pid, doing, tracee, &batch)?;
                let all = made
                    .iter()
                    .all(|(call, part)| output.result(*call) == Ok((*part).into()));
                match all {
                    true => Ok(()),
                    false => Err(ResurrectError::call(*pid, doing)(Errno::EAGAIN)),
                }
            }
        }
    }

    fn finish(self) -> Result<(), ResurrectError> {
        let User::Thread(pid, tracee, fd) = self else {
            return Ok(());
        };
        let mut batch = Batch::new();
        batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
        run(pid, "closing a copy of its ring", tracee, &batch).map(drop)
    }
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

fn advance(
    ring: &Ring,
    memory: &Mapped,
    user: &mut User<'_>,
    target: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    let Some([plain, silent, messages]) = plan(ring) else {
        return Err(ResurrectError::own("counting requests of io_uring")(
            Errno::EINVAL,
        ));
    };
    memory.fill(&Entry::default());
    let mut left = plain;
    while left > 0 {
        // The completions of one round must fit.
        let now = left.min(ring.completions);
        memory.add_to_tail(now);
        user.submit(now, ring.entries, 0)?;
        memory.take();
        left -= now;
    }
    memory.fill(&Entry {
        opcode: NOP,
        flags: NO_COMPLETION,
        fd: 0,
    });
    let mut left = silent;
    while left > 0 {
        let now = left.min(ring.entries.saturating_mul(AT_ONCE));
        memory.add_to_tail(now);
        user.submit(now, ring.entries, 0)?;
        left -= now;
    }
    send(messages, memory, user, (ring, target))
}

/// Sends a ring messages, which are completions without requests.
fn send(
    messages: u32,
    memory: &Mapped,
    user: &mut User<'_>,
    (ring, target): (&Ring, BorrowedFd<'_>),
) -> Result<(), ResurrectError> {
    const DOING: &str = "counting completions of io_uring";
    let failed = || ResurrectError::own(DOING);
    if messages == 0 {
        return Ok(());
    }
    let at_once = SENT_AT_ONCE.min(ring.completions);
    let (params, sender) = make(SENT_AT_ONCE, 2 * SENT_AT_ONCE, flags::CQSIZE).map_err(failed())?;
    let rings = params.offsets()[at::ARRAY] + SENT_AT_ONCE * 4;
    let sending = Mapped {
        rings: Memory::map(&sender, OFFSET_RINGS, rings as usize).map_err(failed())?,
        sqes: Memory::map(&sender, OFFSET_ENTRIES, SENT_AT_ONCE as usize * 64).map_err(failed())?,
        offsets: params.offsets(),
        entries: SENT_AT_ONCE,
        size: 64,
    };
    sending.fill(&Entry {
        opcode: MSG_RING,
        flags: 0,
        fd: target.as_raw_fd(),
    });
    let mut left = messages;
    while left > 0 {
        let (now, before) = (left.min(at_once), memory.completed());
        sending.add_to_tail(now);
        uring::enter(&sender, now, 0, 0).map_err(failed())?;
        if ring.flags & flags::DEFER_TASKRUN != 0 {
            user.submit(0, 1, ENTER_GETEVENTS)?;
        }
        uring::enter(&sender, 0, now, ENTER_GETEVENTS).map_err(failed())?;
        if memory.completed().wrapping_sub(before) != now {
            return Err(failed()(Errno::EAGAIN));
        }
        sending.take();
        memory.take();
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_ring_is_brought_to_where_it_was() {
        let (params, made) = match make(8, 64, flags::CQSIZE) {
            Ok(made) => made,
            Err(Errno::ENOSYS | Errno::EPERM) => return,
            Err(other) => panic!("{other}"),
        };
        let ring = Ring {
            entries: 8,
            completions: 64,
            offsets: params.offsets(),
            counts: (1003, 5007),
            drains_no_more: true,
            rings: vec![0; params.offsets()[at::ARRAY] as usize + 32],
            sqes: vec![0; 8 * 64],
            ..Ring::default()
        };
        let memory = Mapped::of(&ring, &made).unwrap();
        let mut user = User::This(made.as_fd());
        advance(&ring, &memory, &mut user, made.as_fd()).unwrap();
        let head = memory.rings.word(params.offsets()[0]);
        assert_eq!((head, memory.completed()), (1003, 5007));
    }
}
