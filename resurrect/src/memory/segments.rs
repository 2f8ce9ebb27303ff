//! System V segments: attached by the process itself, so that the kernel counts it.

use super::Builder;
use super::empty::MREMAP_MOVE_TO;
use super::map::PROT_WRITE;
use crate::ResurrectError;
use crate::calls::{Calls, nr, run};
use persist_mem::manifest::{AddressSpace, Backing, Vma};
use sys::Errno;
use sys::batch::Batch;
use sys::tracee::Tracee;

const DOING: &str = "attaching shared memory";
const MADV_DONTFORK: i32 = 10;
const MADV_DOFORK: i32 = 11;
const PROT_READ: u32 = 1;
const SHM_RDONLY: i32 = 0o10_000;

/// The mappings of one attachment, side by side.
struct Attachment<'a> {
    id: i32,
    /// Where the segment's first byte is, or would be.
    base: u64,
    vmas: Vec<&'a Vma>,
}

impl Attachment<'_> {
    /// Where the last of its mappings ends.
    fn end(&self) -> u64 {
        self.vmas.last().map_or(self.base, |vma| vma.end)
    }

    fn flags(&self) -> i32 {
        let read_only = self.vmas.first().is_some_and(|vma| !vma.has(b"mw"));
        if read_only { SHM_RDONLY } else { 0 }
    }
}

/// The protection that shmat(2) gives a mapping.
pub(super) fn attached_with(vma: &Vma) -> u32 {
    let write = if vma.has(b"mw") { PROT_WRITE } else { 0 };
    PROT_READ | write
}

/// Attaches every segment that the address space maps.
pub(super) fn attach(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    for attachment in attachments(builder, mm) {
        let first = attachment.vmas.first().map_or(0, |vma| vma.start);
        let len = builder.segment_len(attachment.id);
        let mapped: u64 = attachment.vmas.iter().map(|vma| vma.len()).sum();
        let needed = attachment.end() - attachment.base;
        // Neither its ends nor a part between them have been unmapped.
        let whole = first == attachment.base && mapped == len && needed == len;
        if whole {
            attach_at(builder, leader, &attachment, attachment.base)?;
        } else {
            // Attached elsewhere, its parts moved into place.
            let most = len.max(needed);
            let from = super::apart::free(builder, mm, most)
                .ok_or(Errno::ENOMEM)
                .map_err(ResurrectError::call(builder.pid, DOING))?;
            attach_at(builder, leader, &attachment, from)?;
            if needed > len {
                make_longer(builder, leader, (from, len), needed)?;
            }
            move_parts(builder, leader, &attachment, (from, most))?;
        }
        split(builder, leader, &attachment)?;
    }
    Ok(())
}

fn attach_at(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    attachment: &Attachment<'_>,
    at: u64,
) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    let flags = attachment.flags().into();
    let args = [attachment.id.into(), at.into(), flags];
    batch.call(DOING, nr::SHMAT, args);
    run(builder.pid, DOING, leader, &batch).map(drop)
}

/// Moves the parts that are still there from an attachment elsewhere, and takes the rest away.
fn move_parts(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    attachment: &Attachment<'_>,
    (from, len): (u64, u64),
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, DOING, leader);
    let mut left = from;
    for vma in &attachment.vmas {
        let at = from + (vma.start - attachment.base);
        let len = vma.len().into();
        if at > left {
            let args = [left.into(), (at - left).into()];
            calls.batch().call(DOING, nr::MUNMAP, args);
        }
        let args = [at.into(), len, len, MREMAP_MOVE_TO.into(), vma.start.into()];
        calls.batch().call(DOING, nr::MREMAP, args);
        calls.breathe()?;
        left = at + vma.len();
    }
    if from + len > left {
        let rest = from + len - left;
        let args = [left.into(), rest.into()];
        calls.batch().call(DOING, nr::MUNMAP, args);
    }
    calls.flush()
}

/// Once split, mappings of a segment stay apart when they are alike again (mm/vma.c, is_mergeable_vma).
fn split(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    attachment: &Attachment<'_>,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, DOING, leader);
    let pairs = attachment.vmas.iter().zip(attachment.vmas.iter().skip(1));
    for (_, vma) in pairs.filter(|(one, two)| one.end == two.start) {
        for advice in [MADV_DONTFORK, MADV_DOFORK] {
            let args = [vma.start.into(), vma.len().into(), advice.into()];
            calls.batch().call(DOING, nr::MADVISE, args);
        }
        calls.breathe()?;
    }
    calls.flush()
}

/// Makes an attachment longer than its segment, as mremap(2) does.
fn make_longer(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    (from, len): (u64, u64),
    needed: u64,
) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    let args = [from.into(), len.into(), needed.into(), 0.into()];
    batch.call(DOING, nr::MREMAP, args);
    run(builder.pid, DOING, leader, &batch).map(drop)
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
