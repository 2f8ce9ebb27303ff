//! System V segments: attached by the process itself, so that the kernel counts it.

use super::Builder;
use super::empty::MREMAP_MOVE_TO;
use super::map::PROT_WRITE;
use crate::ResurrectError;
use crate::calls::{nr, run};
use persist_mem::manifest::{AddressSpace, Backing, Vma};
use sys::batch::Batch;
use sys::tracee::Tracee;

const PROT_READ: u32 = 1;
const PROT_EXEC: u32 = 4;
const SHM_RDONLY: i32 = 0o10_000;
const SHM_EXEC: i32 = 0o100_000;

/// The mappings of one attachment, side by side.
struct Attachment<'a> {
    id: i32,
    /// Where the segment's first byte is, or would be.
    base: u64,
    vmas: Vec<&'a Vma>,
}

impl Attachment<'_> {
    fn flags(&self) -> i32 {
        let first = self.vmas.first();
        let exec = self.vmas.iter().any(|vma| vma.prot & PROT_EXEC != 0);
        let read_only = first.is_some_and(|vma| !vma.has(b"mw"));
        let flag = |set, bit| if set { bit } else { 0 };
        flag(exec, SHM_EXEC) | flag(read_only, SHM_RDONLY)
    }
}

/// The protection that shmat(2) gives a mapping.
pub(super) fn attached_with(vma: &Vma) -> u32 {
    let write = if vma.has(b"mw") { PROT_WRITE } else { 0 };
    PROT_READ | write | (vma.prot & PROT_EXEC)
}

/// Attaches every segment that the address space maps.
pub(super) fn attach(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let doing = "attaching shared memory";
    for attachment in attachments(builder, mm) {
        let mut batch = Batch::new();
        let first = attachment.vmas.first().map_or(0, |vma| vma.start);
        let len = builder.segment_len(attachment.id);
        let mapped: u64 = attachment.vmas.iter().map(|vma| vma.len()).sum();
        // Neither its ends nor a part between them have been unmapped.
        let whole = first == attachment.base && mapped == len;
        let flags = attachment.flags().into();
        if whole {
            let args = [attachment.id.into(), attachment.base.into(), flags];
            batch.call(doing, nr::SHMAT, args);
            run(builder.pid, doing, leader, &batch)?;
            continue;
        }
        // Parts of it have been unmapped: attached elsewhere, the other parts moved into place.
        let call = batch.call(doing, nr::SHMAT, [attachment.id.into(), 0.into(), flags]);
        let output = run(builder.pid, doing, leader, &batch)?;
        let from = output
            .result(call)
            .map_err(ResurrectError::call(builder.pid, doing))?;
        let mut batch = Batch::new();
        let mut left = from;
        for vma in &attachment.vmas {
            let at = from + (vma.start - attachment.base);
            let len = vma.len().into();
            if at > left {
                batch.call(doing, nr::MUNMAP, [left.into(), (at - left).into()]);
            }
            let args = [at.into(), len, len, MREMAP_MOVE_TO.into(), vma.start.into()];
            batch.call(doing, nr::MREMAP, args);
            left = at + vma.len();
        }
        if from + len > left {
            let rest = from + len - left;
            batch.call(doing, nr::MUNMAP, [left.into(), rest.into()]);
        }
        run(builder.pid, doing, leader, &batch)?;
    }
    Ok(())
}

fn attachments<'a>(builder: &Builder<'_>, mm: &'a AddressSpace) -> Vec<Attachment<'a>> {
    let mut found: Vec<Attachment<'a>> = Vec::new();
    for vma in &mm.vmas {
        let Backing::Object { object, offset, .. } = &vma.backing else {
            continue;
        };
        let Some(id) = builder.objects.segment(*object) else {
            continue;
        };
        let base = vma.start.wrapping_sub(*offset);
        match found.last_mut() {
            Some(last)
                if last.id == id
                    && last.base == base
                    && attached_with(last.vmas[0]) & PROT_WRITE
                        == attached_with(vma) & PROT_WRITE =>
            {
                last.vmas.push(vma);
            }
            _ => found.push(Attachment {
                id,
                base,
                vmas: vec![vma],
            }),
        }
    }
    found
}
