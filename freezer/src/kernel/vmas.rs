//! The mappings of an address space, with flags.
//!
//! They are the entries of a tree (`mm_struct.mm_mt`, since Linux 6.1; lib/maple_tree.c): nodes of 256 bytes with
//! up to 16 places, the lowest of which hold the mappings. A pointer to a node has its type in its lower bits.

use super::{Kernel, Unreadable, word};

const WHAT: Unreadable = Unreadable::Inconsistent("the tree of mappings");
const NODE: usize = 256;
/// Types of nodes (`enum maple_type`): the lowest, and two kinds of those above.
const LEAF: u64 = 1;
const RANGE: u64 = 2;
const ALLOCATION_RANGE: u64 = 3;
/// No tree is higher, nor has as many nodes.
const LEVELS: usize = 16;
const NODES: usize = 1 << 20;

/// A mapping (`struct vm_area_struct`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vma {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `VM_*` of this kernel (include/linux/mm.h).
    pub(crate) flags: u64,
    /// Whether it has a memory policy of its own (mbind(2)); None where the kernel has no field for it.
    pub(crate) policy: Option<bool>,
    /// Who is told of its page faults (userfaultfd(2)), 0 for nobody.
    pub(crate) faults: u64,
}

/// Where things are in a kind of node.
#[derive(Clone, Copy)]
struct Shape {
    pivots: u64,
    /// Upper ends, one for each place but the last.
    pivot_count: u64,
    slots: u64,
    slot_count: u64,
    /// Number of the last place in use (`maple_metadata.end`).
    end: u64,
}

impl Shape {
    fn of(kernel: &Kernel, structure: &str) -> Result<Shape, Unreadable> {
        let field = |path| kernel.btf.field(structure, path);
        let (pivots, slots) = (field("pivot")?, field("slot")?);
        let shape = Shape {
            pivots: pivots.offset,
            pivot_count: pivots.elements,
            slots: slots.offset,
            slot_count: slots.elements,
            end: field("meta.end")?.offset,
        };
        let size = kernel.btf.size_of(structure)?;
        match shape.slot_count == shape.pivot_count + 1 && size <= NODE as u64 {
            true => Ok(shape),
            false => Err(WHAT),
        }
    }

    /// The entries of a node that ends at `max`, with their upper ends (`ma_data_end`).
    fn entries(&self, bytes: &[u8], kind: u64, max: u64) -> Option<Vec<(u64, u64)>> {
        let pivot = |n: u64| word(bytes, self.pivots + n * 8);
        let told = || bytes.get(usize::try_from(self.end).ok()?).copied();
        let last = self.pivot_count - 1;
        let end = match pivot(last)? {
            _ if kind == ALLOCATION_RANGE => told()?.into(),
            0 => told()?.into(),
            at if at == max => last,
            _ => self.pivot_count,
        };
        if end >= self.slot_count {
            return None;
        }
        let upper = |n| if n == end { Some(max) } else { pivot(n) };
        (0..=end)
            .map(|n| Some((word(bytes, self.slots + n * 8)?, upper(n)?)))
            .collect()
    }
}

impl Kernel {
    /// The mappings of a stopped thread's process, in ascending order.
    pub(crate) fn vmas(&mut self, task: u64) -> Result<Vec<Vma>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let mm = field("task_struct", "mm")?;
        let (root, count) = (
            field("mm_struct", "mm_mt.ma_root")?,
            field("mm_struct", "map_count")?,
        );
        let vma = |path| field("vm_area_struct", path);
        let fields = [vma("vm_start")?, vma("vm_end")?, vma("vm_flags")?];
        let owner = vma("vm_mm")?;
        let policy = vma("vm_policy").ok();
        // A kernel without userfaultfd(2) has none.
        let faults = vma("vm_userfaultfd_ctx.ctx").ok();
        let mm = self.word(task.wrapping_add(mm), "the memory of a thread")?;
        let root = self.word(mm.wrapping_add(root), "the memory of a thread")?;
        let count = self.word(mm.wrapping_add(count), "the memory of a thread")? as u32;
        let places = self.entries(root)?;
        let all = || fields.into_iter().chain(policy).chain(faults);
        let first = all().fold(owner, u64::min);
        let len = all().fold(owner, u64::max) + 8 - first;
        let requests: Vec<_> = places
            .iter()
            .map(|place| (place.wrapping_add(first), len as usize))
            .collect();
        let mut found = Vec::with_capacity(requests.len());
        for bytes in self.read(&requests)? {
            let bytes = bytes.ok_or(WHAT)?;
            let word = |at: u64| word(&bytes, at - first).ok_or(WHAT);
            if word(owner)? != mm {
                return Err(WHAT);
            }
            let [start, end, flags] = fields;
            found.push(Vma {
                start: word(start)?,
                end: word(end)?,
                flags: word(flags)?,
                policy: policy.map(word).transpose()?.map(|policy| policy != 0),
                faults: faults.map_or(Ok(0), word)?,
            });
        }
        found.sort_unstable();
        let apart = found.windows(2).all(|pair| pair[0].end <= pair[1].start);
        match apart && found.len() as u64 == u64::from(count) {
            true => Ok(found),
            false => Err(WHAT),
        }
    }

    /// What the lowest nodes of a tree hold.
    fn entries(&mut self, root: u64) -> Result<Vec<u64>, Unreadable> {
        let range = Shape::of(self, "maple_range_64")?;
        let allocation = Shape::of(self, "maple_arange_64")?;
        // A single entry may stand in place of the tree.
        if root & 3 != 2 {
            return Err(WHAT);
        }
        let mut nodes = vec![(root, u64::MAX)];
        for _ in 0..LEVELS {
            let requests: Vec<_> = nodes.iter().map(|(node, _)| (node & !0xff, NODE)).collect();
            let mut below = Vec::new();
            let mut found = Vec::new();
            for ((node, max), bytes) in nodes.iter().zip(self.read(&requests)?) {
                let bytes = bytes.ok_or(WHAT)?;
                let kind = node >> 3 & 0xf;
                let shape = match kind {
                    LEAF | RANGE => range,
                    ALLOCATION_RANGE => allocation,
                    _ => return Err(WHAT),
                };
                let entries = shape.entries(&bytes, kind, *max).ok_or(WHAT)?;
                match kind {
                    LEAF => found.extend(entries.iter().map(|(entry, _)| *entry)),
                    _ => below.extend(entries),
                }
            }
            found.retain(|entry| *entry != 0);
            match (below.is_empty(), found.is_empty()) {
                (true, false) => return Ok(found),
                // All lowest nodes are on one level.
                (false, true) if below.len() < NODES => nodes = below,
                _ => return Err(WHAT),
            }
        }
        Err(WHAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_node_is_told_or_seen() {
        let shape = Shape {
            pivots: 8,
            pivot_count: 3,
            slots: 32,
            slot_count: 4,
            end: 56,
        };
        let node = |words: [u64; 8]| words.map(u64::to_le_bytes).concat();
        // Pivots 5, 9, nothing; the last place holds the number of the last entry.
        let told = node([0, 5, 9, 0, 100, 101, 102, 2]);
        let expected = vec![(100, 5), (101, 9), (102, 20)];
        assert_eq!(shape.entries(&told, LEAF, 20), Some(expected.clone()));
        let seen = node([0, 5, 9, 20, 100, 101, 102, 7]);
        assert_eq!(shape.entries(&seen, LEAF, 20), Some(expected));
        let full = node([0, 5, 9, 12, 100, 101, 102, 103]);
        let all = vec![(100, 5), (101, 9), (102, 12), (103, 20)];
        assert_eq!(shape.entries(&full, LEAF, 20), Some(all));
        let wrong = node([0, 5, 9, 0, 100, 101, 102, 4]);
        assert_eq!(shape.entries(&wrong, LEAF, 20), None);
    }
}
