//! Provided buffers. Of a ring of them the kernel has only the pages, which are looked for in the memory of those who
//! have the ring.

use crate::kernel::{self, GroupRing, RingState};
use crate::proc::{self, Pagemap};
use persist_mem::manifest::{BufferGroup, BufferRing, Ring};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use sys::uring::{self, Memory, Params, op, register};
use sys::{PAGE_SIZE_U64, Pid};

/// `IOU_PBUF_RING_MMAP`
const IS_KERNELS: u16 = 1;
const LOST: &str =
    "a ring of buffers that is not in the memory of those who have the ring is not carried";

/// The groups of a ring that these tables have descriptors of.
///
/// # Errors
/// Why one is not carried.
pub(super) fn found(
    state: &RingState,
    holders: &BTreeSet<Pid>,
) -> Result<Vec<BufferGroup>, String> {
    let pids: BTreeSet<Pid> = holders
        .iter()
        .map(|holder| proc::tgid(*holder).unwrap_or(*holder))
        .collect();
    let mut found = Vec::new();
    for group in &state.groups {
        if let Some(why) = group.obstacle {
            return Err(why.into());
        }
        let ring = group.ring.as_ref();
        let place = ring
            .filter(|ring| !ring.is_kernels)
            .map(|ring| place(ring, &pids).ok_or(LOST));
        let place = place.transpose()?;
        let holder = pids.first().copied().unwrap_or(Pid(0));
        found.push(BufferGroup {
            id: group.id,
            pid: place.map_or(holder, |(pid, _)| pid),
            ring: ring.map(|ring| BufferRing {
                address: place.map(|(_, address)| address),
                entries: ring.entries,
                head: ring.head,
                flags: ring.flags | if ring.is_kernels { IS_KERNELS } else { 0 },
                memory: Vec::new(),
            }),
            buffers: group.buffers.clone(),
        });
    }
    take_back(state, &mut found, &pids);
    Ok(found)
}

/// Whether rings of buffers can be brought to where they are.
pub(super) fn are_in_reach(state: &RingState) -> bool {
    let groups = state.groups.iter().map(|group| BufferGroup {
        id: group.id,
        pid: Pid(0),
        ring: group.ring.as_ref().map(|ring| BufferRing {
            address: None,
            entries: ring.entries,
            head: ring.head,
            flags: ring.flags,
            memory: Vec::new(),
        }),
        buffers: group.buffers.clone(),
    });
    let ring = Ring {
        completions: state.sizes.1,
        counts: state.counts,
        drains_no_more: state.drains_no_more,
        groups: groups.collect(),
        ..Ring::default()
    };
    let waiting = u32::try_from(state.requests.len()).unwrap_or(u32::MAX);
    let ended = (state.counts.0.saturating_sub(waiting), state.counts.1);
    ring.groups.is_empty() || ring.taking(uring::takes_bundles(), ended).is_some()
}

/// Requests that wait take the buffers again that they have taken.
fn take_back(state: &RingState, groups: &mut Vec<BufferGroup>, pids: &BTreeSet<Pid>) {
    for request in state.requests.iter().rev() {
        let Some(buffer) = request.chosen else {
            continue;
        };
        let id = request.entry.buffer;
        if !groups.iter().any(|group| group.id == id) {
            groups.push(BufferGroup {
                id,
                pid: pids.first().copied().unwrap_or(Pid(0)),
                ring: None,
                buffers: Vec::new(),
            });
        }
        let own = groups.iter_mut().find(|group| group.id == id);
        if let Some(own) = own {
            own.buffers.insert(0, buffer);
        }
    }
}

/// Why a request that waits would not find a buffer: it looks for one before it waits, but for receives.
pub(super) fn lacks(state: &RingState) -> Option<&'static str> {
    let waiting = |id: u16| {
        let requests = state.requests.iter();
        let mut requests = requests.filter(|it| !it.later && it.chosen.is_none());
        requests.any(|it| {
            it.entry.chooses()
                && it.entry.buffer == id
                && ![op::RECV, op::RECVMSG].contains(&it.entry.opcode)
        })
    };
    let has = |id: u16| {
        let mut groups = state.groups.iter().filter(|group| group.id == id);
        groups.any(|group| {
            let ring = group.ring.as_ref();
            ring.map_or(!group.buffers.is_empty(), |ring| ring.has_some)
        })
    };
    let mut ids = state.requests.iter().map(|it| it.entry.buffer);
    let lacks = ids.any(|id| waiting(id) && !has(id));
    lacks.then_some("a read that waits and that there is no buffer for")
}

/// Reads what is in those that the kernel has made.
pub(super) fn read(groups: &mut [BufferGroup], ring: impl AsFd) -> sys::Result<()> {
    for group in groups {
        let id = u64::from(group.id);
        if let Some(own) = &mut group.ring
            && own.address.is_none()
        {
            let len = own.entries as usize * 16;
            let offset = uring::OFFSET_BUFFERS + (id << uring::BUFFERS_SHIFT);
            own.memory = Memory::map(&ring, offset, len)?.read(len);
        }
    }
    Ok(())
}

/// In whose memory a ring of buffers is, and where.
fn place(ring: &GroupRing, pids: &BTreeSet<Pid>) -> Option<(Pid, u64)> {
    let (first, size) = first_page()?;
    let number = ring.page.checked_sub(first)? / size;
    pids.iter()
        .find_map(|pid| Some((*pid, address(*pid, number)?)))
}

/// Where a process has the page with this number.
fn address(pid: Pid, number: u64) -> Option<u64> {
    /// Pages that are looked at at once.
    const PART: u64 = 1 << 16;
    let pages = Pagemap::open(pid).ok()?;
    let text = proc::read(pid, "maps").ok()?;
    let lines = String::from_utf8_lossy(&text).into_owned();
    for (mut start, last) in lines.lines().filter_map(written) {
        while start < last {
            let end = last.min(start + PART * PAGE_SIZE_U64);
            let states = pages.states(start, end).unwrap_or_default();
            let mut places = (start..).step_by(sys::PAGE_SIZE).zip(states);
            let found = places.find(|(_, state)| state.present() && state.pfn() == number);
            if let Some((address, _)) = found {
                return Some(address);
            }
            start = end;
        }
    }
    None
}

/// A line of `/proc/PID/maps` about memory that the program may write to: where.
fn written(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw")
        .then_some((number(start)?, number(end)?))
}

/// Where the kernel has its `struct page` of page 0, and the size of one: from a page of our own.
fn first_page() -> Option<(u64, u64)> {
    static FOUND: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let own = uring::setup(1, &mut Params::new(0, 0)).ok()?;
        let mut memory = memmap2::MmapMut::map_anon(sys::PAGE_SIZE).ok()?;
        memory[0] = 0;
        let address = memory.as_ptr() as u64;
        let wanted = [address, 1, 0, 0, 0];
        uring::register_words(&own, register::PBUF_RING, &wanted, 1).ok()?;
        let found = kernel::look(|kernel| {
            let file = kernel.own_file(own.as_fd())?;
            let page = kernel.ring(file)?.groups.pop().and_then(|group| group.ring);
            Ok((page.map(|ring| ring.page), kernel.btf().size_of("page")?))
        });
        let (page, size) = found.ok()?;
        let pages = Pagemap::open(Pid(std::process::id().cast_signed())).ok()?;
        let states = pages.states(address, address + PAGE_SIZE_U64).ok()?;
        let number = states.first().filter(|state| state.present())?.pfn();
        let first = page?.checked_sub(number.checked_mul(size)?)?;
        (number != 0).then_some((first, size))
    })
}
