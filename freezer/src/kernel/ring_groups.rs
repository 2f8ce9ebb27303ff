//! Buffers that requests of io_uring choose among (`struct io_buffer_list`): rings that tell of them, and lists. The
//! kernel keeps the pages of such a ring, and not where the program has them.

use super::uring::RING;
use super::{Kernel, Unreadable, half, word};

const GROUP: &str = "io_buffer_list";
const WRONG: Unreadable = Unreadable::Inconsistent("buffers of a ring of io_uring");
/// Of a list (`MAX_BIDS_PER_BGID`).
const MOST_BUFFERS: usize = 1 << 16;
/// Groups that Linux 6.1 has in an array (io_uring/kbuf.c, `BGID_ARRAY`).
const IN_ARRAY: u64 = 64;
/// Marks a pointer to a node of a tree (include/linux/xarray.h, `xa_is_internal`).
const NODE: u64 = 2;
const LEVELS: usize = 8;
/// `IOU_PBUF_RING_INC`
const INCREMENTAL: u16 = 2;

/// Provided buffers of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: u16,
    pub(crate) ring: Option<GroupRing>,
    /// Addresses, lengths and numbers.
    pub(crate) buffers: Vec<(u64, u32, u16)>,
    /// Why it cannot be made again.
    pub(crate) obstacle: Option<&'static str>,
}

/// A ring of buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRing {
    pub(crate) entries: u32,
    pub(crate) head: u16,
    /// `IOU_PBUF_RING_INC`
    pub(crate) flags: u16,
    /// The `struct page` of its first page.
    pub(crate) page: u64,
    /// There are buffers in it.
    pub(crate) has_some: bool,
    /// The kernel has made its memory (`IOU_PBUF_RING_MMAP`).
    pub(crate) is_kernels: bool,
}

impl Kernel {
    pub(super) fn groups(&mut self, ring: u64) -> Result<Vec<Group>, Unreadable> {
        let tree = self.btf.field(RING, "io_bl_xa.xa_head")?.offset;
        let root = self.word(ring.wrapping_add(tree), "groups of buffers")?;
        let mut places = self.leaves(root)?;
        if let Ok(array) = self.btf.field(RING, "io_bl") {
            let first = self.word(ring.wrapping_add(array.offset), "groups of buffers")?;
            let size = self.btf.size_of(GROUP)?;
            let all = 0..if first == 0 { 0 } else { IN_ARRAY };
            places.extend(all.map(|index| first.wrapping_add(index * size)));
        }
        let mut found = Vec::new();
        for place in places {
            found.extend(self.group(place)?);
        }
        Ok(found)
    }

    /// What a tree holds.
    fn leaves(&mut self, root: u64) -> Result<Vec<u64>, Unreadable> {
        let slots = self.btf.field("xa_node", "slots")?;
        let (mut found, mut level) = (Vec::new(), vec![root]);
        for _ in 0..LEVELS {
            let mut next = Vec::new();
            for entry in level.into_iter().filter(|entry| *entry != 0) {
                match entry & 3 {
                    0 => found.push(entry),
                    NODE => {
                        let first = (entry - NODE).wrapping_add(slots.offset);
                        let places: Vec<u64> = (0..slots.elements)
                            .map(|slot| first.wrapping_add(slot * 8))
                            .collect();
                        let words: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
                        next.extend(words.ok_or(WRONG)?);
                    }
                    _ => return Err(WRONG),
                }
            }
            if next.is_empty() {
                return Ok(found);
            }
            level = next;
        }
        Err(WRONG)
    }

    /// A group; None for one that has neither a ring nor buffers.
    fn group(&mut self, at: u64) -> Result<Option<Group>, Unreadable> {
        let size = self.btf.size_of(GROUP)? as usize;
        let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
        let field = |path| Ok(self.btf.field(GROUP, path)?.offset);
        let short = |path| Ok::<_, Unreadable>(half(&bytes, field(path)?).ok_or(WRONG)? as u16);
        let long = |path| word(&bytes, field(path)?).ok_or(WRONG);
        let flags = match field("flags") {
            Ok(_) => Some(short("flags")?),
            Err(_) => None,
        };
        let is_ring = match flags {
            Some(flags) => flags & self.btf.constant("IOBL_BUF_RING")? as u16 != 0,
            None => short("buf_nr_pages")? != 0,
        };
        let mut found = Group {
            id: short("bgid")?,
            ring: None,
            buffers: Vec::new(),
            obstacle: None,
        };
        if !is_ring {
            let head = at.wrapping_add(field("buf_list")?);
            let first = long("buf_list")?;
            if first != 0 {
                found.buffers = self.buffers(head, first)?;
            }
            return Ok((!found.buffers.is_empty()).then_some(found));
        }
        let has = |name| {
            let bit = self.btf.constant(name).unwrap_or(0) as u16;
            flags.unwrap_or(0) & bit != 0
        };
        let incremental = has("IOBL_INC");
        if incremental && field("min_left_sub_one").is_ok() {
            let least = half(&bytes, field("min_left_sub_one")?).ok_or(WRONG)?;
            let is_set = least != 0 && least != u32::MAX;
            found.obstacle = is_set.then_some("buffers of which some is to be left");
        }
        let (pages, is_kernels) = match field("region.pages") {
            Ok(pages) => {
                let flags = half(&bytes, field("region.flags")?).ok_or(WRONG)?;
                let theirs = self.btf.constant("IO_REGION_F_USER_PROVIDED")?;
                (word(&bytes, pages).ok_or(WRONG)?, flags & theirs == 0)
            }
            Err(_) => (long("buf_pages")?, has("IOBL_MMAP")),
        };
        let mask = u32::from(short("mask")?);
        let head = short("head")?;
        let tail = self.btf.field("io_uring_buf_ring", "tail")?.offset;
        let tail = long("buf_ring")?.wrapping_add(tail);
        let tail = self.read(&[(tail, 2)])?.pop().flatten().ok_or(WRONG)?;
        found.ring = Some(GroupRing {
            entries: mask + 1,
            head,
            has_some: tail != head.to_le_bytes(),
            flags: if incremental { INCREMENTAL } else { 0 },
            page: match is_kernels {
                true => 0,
                false => self.word(pages, "pages of buffers")?,
            },
            is_kernels,
        });
        Ok(Some(found))
    }

    /// The buffer that a request has taken from a list, and the number of its group.
    pub(super) fn chosen(&mut self, at: u64) -> Result<(u16, (u64, u32, u16)), Unreadable> {
        let field = |path| Ok(self.btf.field("io_buffer", path)?.offset);
        let places = [field("addr")?, field("len")?, field("bid")?, field("bgid")?];
        let found = self.words(&places.map(|place| at.wrapping_add(place)))?;
        match found[..] {
            [Some(address), Some(len), Some(number), Some(group)] => {
                Ok((group as u16, (address, len as u32, number as u16)))
            }
            _ => Err(WRONG),
        }
    }

    fn buffers(&mut self, head: u64, first: u64) -> Result<Vec<(u64, u32, u16)>, Unreadable> {
        const OF: &str = "io_buffer";
        let field = |path| Ok(self.btf.field(OF, path)?.offset);
        let (list, size) = (field("list")?, self.btf.size_of(OF)? as usize);
        let places = [field("addr")?, field("len")?, field("bid")?];
        let (mut found, mut next) = (Vec::new(), first);
        while next != head {
            if found.len() == MOST_BUFFERS {
                return Err(WRONG);
            }
            let at = next.wrapping_sub(list);
            let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
            let address = word(&bytes, places[0]).ok_or(WRONG)?;
            let [len, number] = [1, 2].map(|at| half(&bytes, places[at]));
            found.push((address, len.ok_or(WRONG)?, number.ok_or(WRONG)? as u16));
            next = word(&bytes, list).ok_or(WRONG)?;
        }
        Ok(found)
    }
}
