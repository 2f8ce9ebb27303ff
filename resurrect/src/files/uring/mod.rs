//! Rings of io_uring(7).
//!
//! A new ring counts from 0. It is brought to where the old one was (`counts.rs`), then its memory is written, and what
//! is in there and was not taken yet is taken by whoever takes it next.
//!
//! What is registered with it comes before (`registered.rs`), requests that wait are submitted last (`requests.rs`).
//!
//! Where one thread alone may submit, the ring is enabled by that thread, and so becomes its.

mod counts;
mod groups;
pub(crate) mod layout;
mod made;
mod mapped;
mod messages;
mod names;
mod registered;
mod requests;
mod settings;
mod user;

use super::Opening;
use crate::ResurrectError;
use crate::error::Subject;
use crate::restore::Restore;
use mapped::Mapped;
use persist_mem::manifest::{Description, DescriptionKind, Ring};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::tracee::Tracee;
use sys::uring::{self, Params, flags};
use sys::{Errno, Pid, Tid};
use user::User;

/// Indices into [`Params::offsets`].
mod at {
    pub(super) const SQ_HEAD: usize = 0;
    pub(super) const SQ_TAIL: usize = 1;
    pub(super) const SQ_FLAGS: usize = 4;
    pub(super) const ARRAY: usize = 6;
    pub(super) const CQ_HEAD: usize = 7;
    pub(super) const CQ_TAIL: usize = 8;
    pub(super) const CQES: usize = 12;
    pub(super) const CQ_FLAGS: usize = 13;
}

/// Makes an empty ring whose maker has ended.
pub(super) fn open(opening: &Opening<'_, '_>, ring: &Ring) -> Result<OwnedFd, ResurrectError> {
    let made = make(ring.entries, ring.completions, wanted(ring));
    let (params, made) = made.map_err(opening.failed("making it"))?;
    if params.sizes() != (ring.entries, ring.completions) || params.offsets() != ring.offsets {
        return Err(opening.failed("laying it out as it was")(Errno::EINVAL));
    }
    Ok(made)
}

/// The flags that a ring is made with.
fn wanted(ring: &Ring) -> u32 {
    let wanted = ring.flags & !flags::ATTACH_WQ;
    // Restrictions are for rings that are enabled later.
    match ring.submitter.is_some() || ring.settings.restrictions.is_some() {
        true => wanted | flags::R_DISABLED,
        false => wanted,
    }
}

pub(crate) use made::open as open_made;

fn make(entries: u32, completions: u32, wanted: u32) -> sys::Result<(Params, OwnedFd)> {
    let mut params = Params::new(completions, wanted);
    let ring = uring::setup(entries, &mut params)?;
    Ok((params, ring))
}

/// Brings every ring in which nothing waits to where it was.
pub(crate) fn fill(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    fill_those(restore, |ring| !waits(ring))
}

/// Brings every ring in which something waits to where it was, when all that it may wait for is there.
pub(crate) fn fill_waiting(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    fill_those(restore, waits)
}

/// Whether something waits in it, or is taken as soon as it is there.
fn waits(ring: &Ring) -> bool {
    !ring.requests.is_empty() || ring.poller.is_some()
}

fn fill_those(
    restore: &mut Restore<'_>,
    wanted: impl Fn(&Ring) -> bool,
) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        let DescriptionKind::Ring(ring) = &description.kind else {
            continue;
        };
        if wanted(ring)
            && let Some(opened) = restore.files.opened.get(&description.id)
        {
            let opened = opened.try_clone().map_err(|_| Errno::EMFILE);
            let opened = opened.map_err(super::failed(description, "filling its ring"))?;
            let about = Subject::Description(description.id);
            fill_one(restore, description, ring, &opened).map_err(|error| error.about(about))?;
        }
    }
    Ok(())
}

fn fill_one(
    restore: &mut Restore<'_>,
    description: &Description,
    ring: &Ring,
    opened: &OwnedFd,
) -> Result<(), ResurrectError> {
    let memory = Mapped::of(ring, opened);
    let memory = memory.map_err(super::failed(description, "mapping its ring"))?;
    registered::set(restore, description, ring, opened, &memory)?;
    names::register(restore, ring, opened)?;
    settings::set(ring, opened).map_err(super::failed(description, "setting its ring"))?;
    let without = requests::without(ring);
    let pidfd = restore.self_pidfd.as_raw_fd();
    if let Some(tid) = ring.submitter {
        let (pid, thread) = thread(restore, tid)?;
        User::thread(pid, thread, pidfd, opened.as_raw_fd())?.finish()?;
    }
    groups::make(restore, &without, opened, &memory)?;
    let mut user = match ring.submitter {
        None if ring.poller.is_some() => User::Poller(opened.as_fd(), &memory),
        None => User::This(opened.as_fd()),
        Some(tid) => {
            let (pid, thread) = thread(restore, tid)?;
            User::again(pid, thread, pidfd, opened.as_raw_fd())?
        }
    };
    counts::advance(&without, &memory, &mut user, opened.as_fd())?;
    user.finish()?;
    let (waiting, told) = requests::count(ring);
    if told > 0 {
        tell_again(restore, ring, opened, &memory)?;
    }
    memory.write_all(ring);
    if waiting <= told {
        memory.write_entries(ring);
    }
    if waiting > told {
        let taken = ring.counts.0.wrapping_sub(waiting - told);
        memory.rings.set_word(ring.offsets[at::SQ_HEAD], taken);
        requests::submit(restore, ring, opened, &memory, false)?;
        memory.write_entries(ring);
    }
    Ok(())
}

/// Submits the requests that tell at once what they have told, and has them told.
fn tell_again(
    restore: &mut Restore<'_>,
    ring: &Ring,
    opened: &OwnedFd,
    memory: &Mapped,
) -> Result<(), ResurrectError> {
    requests::submit(restore, ring, opened, memory, true)?;
    let pidfd = restore.self_pidfd.as_raw_fd();
    let mut user = match ring.submitter {
        None if ring.poller.is_some() => User::Poller(opened.as_fd(), memory),
        None => User::This(opened.as_fd()),
        Some(tid) => {
            let (pid, thread) = thread(restore, tid)?;
            User::again(pid, thread, pidfd, opened.as_raw_fd())?
        }
    };
    user.complete(requests::count(ring).1)?;
    let (_, completed) = ring.counts;
    let missing = completed.wrapping_sub(memory.completed());
    if missing > ring.completions {
        let doing = "counting what requests of io_uring tell again";
        return Err(ResurrectError::own(doing)(Errno::EOVERFLOW));
    }
    counts::add(ring, memory, &mut user, opened.as_fd(), missing)?;
    user.finish()
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
    if acts {
        return Ok((pid, &mut task.first));
    }
    Err(missing())
}
