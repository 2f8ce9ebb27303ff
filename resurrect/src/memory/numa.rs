//! On which nodes memory is to be: policies of mappings. A kernel, or a machine, that cannot follow one
//! leaves it aside: it says where pages lie, not what is in them.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, MemoryPolicy};
use sys::batch::{Arg, Batch, Buffer};

/// Tells the policies of the mappings.
pub(super) fn tell(calls: &mut Calls<'_>, mm: &AddressSpace) -> Result<(), ResurrectError> {
    for range in &mm.policies {
        let batch = calls.batch();
        let [mode, nodes, bits] = arguments(batch, &range.policy);
        let len = range.end - range.start;
        let args = [range.start.into(), len.into(), mode, nodes, bits, 0.into()];
        batch.try_call("setting the policy of a mapping", nr::MBIND, args);
        calls.breathe()?;
    }
    Ok(())
}

/// Mode, nodes and number of bits as set_mempolicy(2) wants them.
pub(crate) fn arguments(batch: &mut Batch, policy: &MemoryPolicy) -> [Arg; 3] {
    let any = policy.nodes.iter().any(|byte| *byte != 0);
    let nodes: Option<Buffer> = any.then(|| batch.data(&policy.nodes));
    let bits = nodes.map_or(0, |_| policy.nodes.len() * 8);
    let nodes = nodes.map_or(0.into(), Arg::from);
    [u64::from(policy.mode).into(), nodes, bits.into()]
}
