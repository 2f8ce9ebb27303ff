//! On which nodes memory is to be (set_mempolicy(2), mbind(2)).

use crate::proc::Mapping;
use persist_mem::manifest::{AddressSpace, Backing, MemoryPolicy, PolicyRange};
use sys::PAGE_SIZE_U64;
use sys::batch::{Batch, Buffer, CallIndex, Output};
use sys::tracee::{Tracee, TraceeError};

const GET_MEMPOLICY: i64 = 239;
/// The policy of an address, not of the thread.
const MPOL_F_ADDR: u64 = 2;
const MPOL_DEFAULT: u32 = 0;
/// Bits of the node masks, `MAX_NUMNODES` at most.
const NODES: usize = 1024;
/// Mappings that are asked for in one batch, and of those that have a policy.
const AT_ONCE: usize = 128;

/// The question for one policy: the calling thread's, or that of an address.
pub(super) struct Asked {
    call: CallIndex,
    mode: Buffer,
    nodes: Buffer,
}

impl Asked {
    pub(super) fn add(batch: &mut Batch, address: Option<u64>) -> Asked {
        let (mode, nodes) = (batch.space(8), batch.space(NODES / 8));
        let flags = address.map_or(0, |_| MPOL_F_ADDR);
        let args = [
            mode.into(),
            nodes.into(),
            NODES.into(),
            address.unwrap_or(0).into(),
            flags.into(),
        ];
        let call = batch.try_call("asking for a memory policy", GET_MEMPOLICY, args);
        Asked { call, mode, nodes }
    }

    /// None for the usual one, and where the kernel knows none.
    pub(super) fn read(&self, out: &Output) -> Option<MemoryPolicy> {
        out.result(self.call).ok()?;
        let mode = out.u32(self.mode, 0);
        (mode != MPOL_DEFAULT).then(|| MemoryPolicy {
            mode,
            nodes: out.bytes(self.nodes).to_vec(),
        })
    }
}

/// Mappings that are to be asked for.
pub(super) struct Questions(Vec<(u64, u64)>);

/// What was asked of some of them, with their ranges.
pub(super) struct Modes(Vec<(u64, u64, CallIndex, Buffer)>);

impl Questions {
    /// All but those that are known to have none: private anonymous memory has its policy nowhere else
    /// (mm/mempolicy.c, __get_vma_policy).
    pub(super) fn of(maps: &[Mapping], mm: &AddressSpace) -> Questions {
        let none = maps.iter().filter(|map| map.policy == Some(false));
        let mut none = none.map(|map| map.start).peekable();
        let mut ranges = Vec::new();
        for vma in &mm.vmas {
            while none.next_if(|start| *start < vma.start).is_some() {}
            let known = none.peek() == Some(&vma.start);
            let asked = match vma.backing {
                Backing::Vdso | Backing::Vvar => false,
                Backing::Anonymous { .. } => !known || vma.page_size > PAGE_SIZE_U64,
                _ => true,
            };
            if asked {
                ranges.push((vma.start, vma.end));
            }
        }
        Questions(ranges)
    }

    /// Asks for some of them; the others are left.
    pub(super) fn ask(&mut self, batch: &mut Batch) -> Modes {
        let some = self.0.drain(..self.0.len().min(AT_ONCE));
        let ask = |(start, end): (u64, u64)| {
            let mode = batch.space(8);
            let args = [
                mode.into(),
                0.into(),
                0.into(),
                start.into(),
                MPOL_F_ADDR.into(),
            ];
            let call = batch.try_call("asking for a memory policy", GET_MEMPOLICY, args);
            (start, end, call, mode)
        };
        Modes(some.map(ask).collect())
    }

    /// Takes the answers, and asks for the rest.
    pub(super) fn finish(
        mut self,
        Modes(modes): &Modes,
        out: &Output,
        first: &mut Tracee,
        mm: &mut AddressSpace,
    ) -> Result<(), TraceeError> {
        read(modes, out, first, mm)?;
        while !self.0.is_empty() {
            let mut batch = Batch::new();
            let Modes(modes) = self.ask(&mut batch);
            let out = first.run(&batch)?;
            read(&modes, &out, first, mm)?;
        }
        Ok(())
    }
}

/// Asks for the policies of those that have one.
fn read(
    modes: &[(u64, u64, CallIndex, Buffer)],
    out: &Output,
    first: &mut Tracee,
    mm: &mut AddressSpace,
) -> Result<(), TraceeError> {
    let has = |call, mode| out.result(call).is_ok() && out.u32(mode, 0) != MPOL_DEFAULT;
    let with = modes.iter().filter(|(_, _, call, mode)| has(*call, *mode));
    let with: Vec<(u64, u64)> = with.map(|(start, end, _, _)| (*start, *end)).collect();
    if with.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    let asked: Vec<_> = with
        .iter()
        .map(|(start, _)| Asked::add(&mut batch, Some(*start)))
        .collect();
    let out = first.run(&batch)?;
    for ((start, end), asked) in with.into_iter().zip(asked) {
        let policy = asked.read(&out);
        mm.policies
            .extend(policy.map(|policy| PolicyRange { start, end, policy }));
    }
    Ok(())
}
