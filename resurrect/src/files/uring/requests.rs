//! Requests that wait are submitted again by those who had submitted them.
//!
//! A poll that goes on (`IORING_POLL_ADD_MULTI`) tells at once what it had told before. Such a completion takes the
//! place of one that the ring had counted, before its memory is written.

use super::mapped::Mapped;
use super::messages::{self, Places};
use super::{at, thread};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{RequestEnd, Ring, RingRequest};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::uring::{ENTER_WAKEUP, Entry};
use sys::{Errno, Pid, Tid};

const PROT_READ_WRITE: i32 = 3;
const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;

/// How many requests wait, and how many of them tell at once what they have told.
pub(super) fn count(ring: &Ring) -> (u32, u32) {
    let told = ring.requests.iter().filter(|request| request.told).count();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    (count(ring.requests.len()), count(told))
}

/// A ring that has not counted what comes of its requests.
pub(super) fn without(ring: &Ring) -> Ring {
    let (waiting, told) = count(ring);
    let (submitted, completed) = ring.counts;
    let counts = (
        submitted.saturating_sub(waiting),
        completed.saturating_sub(told),
    );
    let mut without = Ring {
        counts,
        ..ring.clone()
    };
    let head = usize::try_from(ring.offsets[at::CQ_HEAD]).unwrap_or(usize::MAX);
    if let Some(place) = without
        .rings
        .get_mut(head..)
        .and_then(<[u8]>::first_chunk_mut)
    {
        *place = u32::from_le_bytes(*place).min(counts.1).to_le_bytes();
    }
    without
}

/// Submits those requests that tell at once what they have told, or the others.
pub(super) fn submit(
    restore: &mut Restore<'_>,
    ring: &Ring,
    opened: &OwnedFd,
    memory: &Mapped,
    told: bool,
) -> Result<(), ResurrectError> {
    let most = ring.entries.clamp(1, 64) as usize;
    let mut chains = chains(&ring.requests);
    chains.retain(|chain| chain[0].told == told);
    // What waits for all others is behind them.
    chains.sort_by_key(|chain| match chain[0].later {
        false => (false, chain[0].tid),
        true => (true, Tid(0)),
    });
    let mut part: Vec<&RingRequest> = Vec::new();
    for chain in chains {
        let ends = part.len() + chain.len() > most
            || part.first().is_some_and(|first| first.tid != chain[0].tid)
            || chain.iter().chain(&part).any(|it| it.message.is_some());
        if ends && !part.is_empty() {
            submit_some(restore, ring, &part, opened, memory)?;
            part.clear();
        }
        part.extend(chain);
    }
    match part.is_empty() {
        true => Ok(()),
        false => submit_some(restore, ring, &part, opened, memory),
    }
}

/// The requests, each with those that wait for it.
fn chains(requests: &[RingRequest]) -> Vec<Vec<&RingRequest>> {
    let mut found: Vec<Vec<&RingRequest>> = Vec::new();
    let mut goes_on = false;
    for request in requests {
        match found.last_mut().filter(|_| goes_on) {
            Some(chain) => chain.push(request),
            None => found.push(vec![request]),
        }
        goes_on = request.entry.is_linked();
    }
    found
}

fn submit_some(
    restore: &mut Restore<'_>,
    ring: &Ring,
    requests: &[&RingRequest],
    opened: &OwnedFd,
    memory: &Mapped,
) -> Result<(), ResurrectError> {
    let doing = "submitting requests of io_uring that wait";
    let tid = requests.first().map_or(Tid(0), |request| request.tid);
    let mut files = Vec::new();
    for request in requests {
        let own = request.file.map(|id| {
            let own = restore.files.opened(id);
            own.ok_or_else(|| ResurrectError::own(doing)(Errno::EBADF))
        });
        files.push(own.transpose()?);
    }
    let mut places = Places::default();
    for request in requests {
        places.add(request, left(restore, request));
    }
    let pidfd = restore.self_pidfd.as_raw_fd();
    let (pid, tracee) = match ring.poller {
        Some(poller) if poller.tid == tid => (poller.pid, &mut restore.task(poller.pid)?.first),
        _ => thread(restore, tid)?,
    };
    let failed = || ResurrectError::call(pid, doing);
    let taken = take(pid, tracee, pidfd, opened.as_raw_fd(), &files, places.len())?;
    let (mut entries, mut bytes) = places.at(taken.place, requests);
    places.compare_with(tracee, requests, &mut entries, &mut bytes);
    tracee.mem().write(taken.place, &bytes).map_err(failed())?;
    let mut numbers = taken.files.iter();
    let entries = entries.into_iter().zip(requests.iter().zip(&files));
    let entries = entries.map(|(entry, (request, file))| Entry {
        fd: match file {
            Some(_) => numbers.next().copied().unwrap_or(-1),
            None if request.later || entry.has_no_descriptor() => entry.fd,
            None => -1,
        },
        ..entry
    });
    let entries: Vec<Entry> = entries.collect();
    log::trace!("submitting {entries:?}");
    memory.add(&entries);
    let mut own = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        own.extend(messages::lend(
            tracee,
            request,
            places.header(number, &bytes),
        ));
    }
    let mut batch = Batch::new();
    let count = requests.len() as u64;
    let flags = match ring.poller {
        Some(_) => ENTER_WAKEUP,
        None => 0,
    };
    let args = [taken.ring.into(), count.into(), 0.into(), flags.into()];
    let entered = batch.call(doing, nr::IO_URING_ENTER, args);
    let output = run(pid, doing, tracee, &batch)?;
    if ring.poller.is_some() {
        memory.wait_until_taken().map_err(failed())?;
    }
    taken.give_back(pid, tracee, places.len())?;
    for (address, bytes) in own {
        tracee.mem().write(address, &bytes).map_err(failed())?;
    }
    match output.result(entered) == Ok(count) {
        true => Ok(()),
        false => Err(failed()(Errno::EAGAIN)),
    }
}

/// What a thread needs to submit requests, under numbers of its own.
struct Taken {
    ring: i32,
    files: Vec<i32>,
    /// Some pages.
    place: u64,
}

impl Taken {
    /// Takes it from the thread again; its pages have `len` bytes.
    fn give_back(&self, pid: Pid, tracee: &mut Tracee, len: u64) -> Result<(), ResurrectError> {
        let mut batch = Batch::new();
        for fd in self.files.iter().chain([&self.ring]) {
            batch.call("closing a copy", nr::CLOSE, [(*fd).into()]);
        }
        let args = [self.place.into(), len.into()];
        batch.call("taking a page away", nr::MUNMAP, args);
        run(
            pid,
            "giving back what requests of io_uring took",
            tracee,
            &batch,
        )
        .map(drop)
    }
}

fn take(
    pid: Pid,
    tracee: &mut Tracee,
    pidfd: i32,
    ring: i32,
    files: &[Option<i32>],
    len: u64,
) -> Result<Taken, ResurrectError> {
    let doing = "taking the files of requests of io_uring";
    let mut batch = Batch::new();
    let wanted = [Some(ring)].into_iter().chain(files.iter().copied());
    let calls: Vec<_> = wanted
        .flatten()
        .map(|fd| batch.call(doing, nr::PIDFD_GETFD, [pidfd.into(), fd.into(), 0.into()]))
        .collect();
    let args = [
        0.into(),
        len.into(),
        PROT_READ_WRITE.into(),
        MAP_PRIVATE_ANONYMOUS.into(),
        (-1_i32).into(),
        0.into(),
    ];
    let page = batch.call(doing, nr::MMAP, args);
    let output = run(pid, doing, tracee, &batch)?;
    let number = |call| output.result(call).map_or(-1, |fd| fd as i32);
    let mut numbers = calls.into_iter().map(number);
    Ok(Taken {
        ring: numbers.next().unwrap_or(-1),
        files: numbers.collect(),
        place: output.result(page).unwrap_or(0),
    })
}

/// What a time-out is set to, in nanoseconds.
fn left(restore: &Restore<'_>, request: &RingRequest) -> i64 {
    let clocks = &restore.manifest.host.clocks;
    let passed = i64::try_from(restore.elapsed().as_nanos()).unwrap_or(i64::MAX);
    match request.until {
        None => 0,
        Some(RequestEnd::Monotonic(at)) => (at - clocks.monotonic).saturating_sub(passed).max(0),
        Some(RequestEnd::Boottime(at)) => (at - clocks.boottime).saturating_sub(passed).max(0),
        Some(RequestEnd::Realtime(at) | RequestEnd::After(at)) => at,
    }
}
