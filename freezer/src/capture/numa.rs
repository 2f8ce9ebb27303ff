//! On which nodes memory is to be (set_mempolicy(2), mbind(2)).

use persist_mem::manifest::{AddressSpace, Backing, MemoryPolicy, PolicyRange};
use sys::batch::{Batch, Buffer, CallIndex, Output};
use sys::tracee::{Tracee, TraceeError};

const GET_MEMPOLICY: i64 = 239;
/// The policy of an address, not of the thread.
const MPOL_F_ADDR: u64 = 2;
const MPOL_DEFAULT: u32 = 0;
/// Bits of the node masks, `MAX_NUMNODES` at most.
const NODES: usize = 1024;
/// Mappings that are asked for in one batch, and of those that have a policy.
const AT_ONCE: usize = 256;

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

/// Asks for the policies of all mappings.
pub(super) fn capture(first: &mut Tracee, mm: &mut AddressSpace) -> Result<(), TraceeError> {
    let own = |backing: &Backing| !matches!(backing, Backing::Vdso | Backing::Vvar);
    let ranges: Vec<(u64, u64)> = mm
        .vmas
        .iter()
        .filter(|vma| own(&vma.backing))
        .map(|vma| (vma.start, vma.end))
        .collect();
    for some in ranges.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        let mut modes = Vec::new();
        for (start, _) in some {
            let mode = batch.space(8);
            let args = [
                mode.into(),
                0.into(),
                0.into(),
                (*start).into(),
                MPOL_F_ADDR.into(),
            ];
            let call = batch.try_call("asking for a memory policy", GET_MEMPOLICY, args);
            modes.push((call, mode));
        }
        let out = first.run(&batch)?;
        let has = |(call, mode): &(CallIndex, Buffer)| {
            out.result(*call).is_ok() && out.u32(*mode, 0) != MPOL_DEFAULT
        };
        let with = some.iter().zip(&modes).filter(|(_, asked)| has(asked));
        let with: Vec<(u64, u64)> = with.map(|(range, _)| *range).collect();
        if with.is_empty() {
            continue;
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
    }
    Ok(())
}
