//! What is registered with a ring, and the requests that wait in it, with the open files they are for.

use super::{groups, workers};
use crate::files::{Open, Table, known};
use crate::kernel::{self, Kernel, RingState, Unreadable, Until, Waiting};
use crate::{FreezerError, proc};
use persist_mem::manifest::{
    DescriptionId, DescriptionKind, RequestEnd, Ring, RingMessage, RingRequest,
};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use sys::uring::{self, op};
use sys::{Pid, Tid};

/// More buffers are not registered again.
const MOST_BUFFERS: usize = 1024;
const OUT_OF_REACH: &str = "more of its provided buffers were used than requests have ended";
pub(super) const UNHELD: &str = "its ring has a file that no descriptor is open on";

/// What keeps what is registered, or what waits, from being carried.
pub(super) fn obstacle(state: &RingState) -> Option<String> {
    if let Some(what) = state.registered.special {
        return Some(format!("a ring with {what} is not carried"));
    }
    if state.registered.buffers.len() > MOST_BUFFERS {
        return Some(format!(
            "a ring with more than {MOST_BUFFERS} buffers is not carried"
        ));
    }
    let mut groups = state.groups.iter();
    if let Some(what) = groups.find_map(|group| group.obstacle) {
        return Some(format!("a ring with {what} is not carried"));
    }
    if !groups::are_in_reach(state) {
        return Some(OUT_OF_REACH.into());
    }
    if let Some(what) = groups::lacks(state) {
        return Some(format!("a ring with {what} is not carried"));
    }
    if state.waiting {
        return Some("requests in its ring wait for something, which are not carried".into());
    }
    let mut requests = state.requests.iter();
    requests.find_map(|request| {
        let why = match &request.obstacle {
            Some(why) => why,
            None if request.tid.0 == 0 => "a request of a thread that is not seen",
            None => return None,
        };
        Some(format!("{why} waits in its ring, which is not carried"))
    })
}

/// Files that its ring needs and that a process that may run has no descriptor of just now.
pub(super) fn unheld(open: &Open<'_>, state: &RingState) -> BTreeSet<u64> {
    let mut needed: BTreeSet<u64> = state.registered.files.iter().copied().collect();
    needed.extend(state.requests.iter().map(|request| request.file));
    needed.remove(&0);
    if needed.is_empty() {
        return needed;
    }
    let files = known::open_files(open.pid);
    for file in files.values() {
        needed.remove(&file.address);
    }
    // Perhaps it was closed just now, or its thread has a table of its own.
    let others = proc::threads(open.pid).unwrap_or_default();
    let held = kernel::look(|kernel| {
        let tasks = kernel.tasks(&others)?;
        let mut held = BTreeSet::new();
        for task in tasks.into_iter().flatten() {
            held.extend(kernel.files(task)?.into_iter().map(|(_, file)| file));
        }
        Ok(held)
    });
    let held = held.unwrap_or_default();
    needed.retain(|file| !held.contains(file));
    needed
}

/// Where the kernel has the descriptions that were met.
#[derive(Debug, Default)]
pub(super) struct Known {
    files: BTreeMap<u64, DescriptionId>,
    /// Those of eventfds, by what they count with.
    eventfds: BTreeMap<u64, DescriptionId>,
    /// Those that are ready for what is asked are not seen to be so from here.
    of_holder: BTreeSet<DescriptionId>,
    numbers: BTreeMap<DescriptionId, i32>,
    /// What to take from times of the kernel's CLOCK_MONOTONIC and CLOCK_BOOTTIME to have ours.
    offsets: [i64; 2],
}

impl Known {
    /// Which description a ring is, by where the kernel has its file.
    pub(super) fn id(&self, address: u64) -> Option<DescriptionId> {
        self.files.get(&address).copied()
    }

    pub(super) fn of(table: &Table) -> Known {
        let mut found = Known {
            offsets: kernel::look(|kernel| kernel.clock_offsets()).unwrap_or_default(),
            ..Known::default()
        };
        for description in &table.descriptions {
            let Some(copy) = table.copies.get(&description.id) else {
                continue;
            };
            let Some(address) = known::address(copy) else {
                continue;
            };
            found.files.insert(address, description.id);
            found.numbers.insert(description.id, copy.as_raw_fd());
            match description.kind {
                DescriptionKind::EventFd { .. } => {
                    let context = kernel::look(|kernel| kernel.private_data(address));
                    if let Ok(context) = context {
                        found.eventfds.insert(context, description.id);
                    }
                }
                DescriptionKind::SignalFd { .. } => {
                    found.of_holder.insert(description.id);
                }
                _ => {}
            }
        }
        found
    }

    fn file(&self, address: u64) -> Result<Option<DescriptionId>, String> {
        match address {
            0 => Ok(None),
            address => match self.files.get(&address) {
                Some(id) => Ok(Some(*id)),
                None => Err(UNHELD.into()),
            },
        }
    }

    fn request(&self, waiting: &Waiting) -> Result<RingRequest, String> {
        let file = self.file(waiting.file)?;
        let ready = |id: DescriptionId| {
            let number = self.numbers.get(&id).copied().unwrap_or(-1);
            let events = waiting.entry.flags_of_op as i16;
            let polled = sys::epoll::polled(number, events);
            !self.of_holder.contains(&id) && polled.is_ok_and(|events| events != 0)
        };
        let goes_on = waiting.repeats && waiting.entry.opcode == op::POLL_ADD;
        let [monotonic, boottime] = self.offsets;
        Ok(RingRequest {
            tid: waiting.tid,
            file,
            entry: waiting.entry,
            later: waiting.later,
            vectors: waiting.vectors.clone(),
            message: waiting.message.clone().map(|message| RingMessage {
                name_at: message.name_at,
                name_len: message.name_len,
                name: message.name,
                control: message.control,
            }),
            futexes: waiting.futexes.clone(),
            until: waiting.until.map(|until| match until {
                Until::Monotonic(at) => RequestEnd::Monotonic(at - monotonic),
                Until::Boottime(at) => RequestEnd::Boottime(at - boottime),
                Until::Realtime(at) => RequestEnd::Realtime(at),
                Until::After(time) => RequestEnd::After(time),
            }),
            told: goes_on && !waiting.fired && file.is_some_and(ready),
        })
    }
}

/// Threads of processes that stand still, as the kernel has them.
pub(super) fn tasks(kernel: &mut Kernel, pids: &[Pid]) -> Result<Vec<u64>, Unreadable> {
    let tids = pids.iter().flat_map(|pid| proc::threads(*pid));
    let tids: Vec<Tid> = tids.flatten().collect();
    Ok(kernel.tasks(&tids)?.into_iter().flatten().collect())
}

/// Time-outs that are over by now and that nobody has looked at, and what workers wait in, by their rings.
pub(super) fn over(inside: &[Pid]) -> BTreeMap<u64, Vec<Waiting>> {
    let mut found: BTreeMap<u64, Vec<Waiting>> = BTreeMap::new();
    let over = kernel::look(|kernel| {
        let tasks = tasks(kernel, inside)?;
        kernel.over(&tasks)
    });
    match over {
        Ok(over) => over.into_iter().for_each(|(ring, waiting)| {
            found.entry(ring).or_default().push(waiting);
        }),
        // Then there are more requests than are found (`are_all`).
        Err(why) => log::debug!("time-outs of io_uring that are over: {why}"),
    }
    for work in inside.iter().flat_map(|pid| workers::waiting(*pid)) {
        found.entry(work.ring).or_default().extend(work.requests);
    }
    found
}

/// Sees to it that all requests of these processes are among those that were found to wait.
///
/// # Errors
/// [`FreezerError::Refused`] when some are not.
pub(super) fn are_all(inside: &[Pid], waiting: u64) -> Result<(), FreezerError> {
    let users = kernel::look(|kernel| {
        let tasks = tasks(kernel, inside)?;
        kernel.ring_users(&tasks)
    });
    let requests = match users {
        Ok(users) => users.iter().map(|user| user.requests).sum(),
        Err(_) if waiting == 0 => return Ok(()),
        Err(why) => {
            let why = format!("how much is under way in rings cannot be read: {why}");
            return Err(FreezerError::refuse(Pid(0), "io_uring", why));
        }
    };
    match waiting == requests {
        true => Ok(()),
        false => {
            let why = format!("{requests} requests are under way in rings, {waiting} wait");
            let pid = inside.first().copied().unwrap_or(Pid(0));
            Err(FreezerError::refuse(pid, "io_uring", why))
        }
    }
}

/// Adds what is registered with a ring, which these tables have descriptors of, and what waits.
///
/// # Errors
/// Why it is not carried.
pub(super) fn add(
    ring: &mut Ring,
    state: &RingState,
    known: &Known,
    holders: &BTreeSet<Pid>,
) -> Result<(), String> {
    let registered = &state.registered;
    let files = registered.files.iter().map(|file| known.file(*file));
    ring.files = files.collect::<Result<_, _>>()?;
    ring.buffers.clone_from(&registered.buffers);
    [ring.file_tags, ring.buffer_tags] = registered.tags.clone();
    if !ring.buffers.is_empty() {
        let pids: BTreeSet<Pid> = holders
            .iter()
            .map(|holder| proc::tgid(*holder).unwrap_or(*holder))
            .collect();
        let [pid] = pids.into_iter().collect::<Vec<_>>()[..] else {
            return Err("a ring with buffers that several processes have is not carried".into());
        };
        ring.buffers_of = Some(pid);
    }
    if let Some((context, later)) = registered.eventfd {
        let id = known.eventfds.get(&context).ok_or(UNHELD)?;
        ring.eventfd = Some((*id, later));
    }
    // Behind all others are those that wait for them.
    let (last, first): (Vec<&Waiting>, Vec<&Waiting>) =
        state.requests.iter().partition(|it| it.drained);
    let requests = first.into_iter().chain(last).map(|it| known.request(it));
    ring.requests = requests.collect::<Result<_, _>>()?;
    ring.groups = groups::found(state, holders)?;
    let way = ring.taking(uring::takes_bundles(), ring.ended());
    match ring.groups.is_empty() || way.is_some() {
        true => Ok(()),
        false => Err(OUT_OF_REACH.into()),
    }
}
