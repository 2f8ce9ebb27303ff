//! Inherited mappings that have grown since the fork.
//!
//! What is mapped beside memory that a child has from its parent stays a mapping of its own: the child's `anon_vma`
//! is not the only one that its pages are found by (mm/vma.c, is_mergeable_anon_vma). So a stack that has grown
//! downwards is made to grow again, and what mremap(2) has made longer becomes longer.

use super::Builder;
use super::inherit::moved;
use crate::ResurrectError;
use crate::calls::{nr, run};
use persist_mem::manifest::{Backing, Vma};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::{PAGE_SIZE_U64, Pid};

const MADV_DONTNEED: i32 = 4;
const RLIMIT_STACK: u32 = 3;

/// A mapping that has grown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grown {
    /// What the child has of it from its parent.
    pub(super) from: (u64, u64),
    /// What it is now.
    pub(super) to: Vma,
}

impl Grown {
    /// The one that `vma` is, if it can come about so; of `theirs` the part `from` is inherited.
    pub(super) fn of(vma: &Vma, theirs: &Vma, from: (u64, u64)) -> Option<Grown> {
        let private = !vma.has(b"sh");
        let anonymous = matches!(vma.backing, Backing::Anonymous { .. });
        let stack = anonymous && vma.has(b"gd") && theirs.start == from.0;
        let below = vma.start >= from.0 || stack;
        let above = vma.end <= from.1 || theirs.end == from.1;
        let grows = private && vma.page_size == PAGE_SIZE_U64 && below && above;
        grows.then(|| Grown {
            from,
            to: vma.clone(),
        })
    }

    /// Makes it so. Returns what did not become a part of it and is to be mapped.
    pub(super) fn make(
        &self,
        builder: &Builder<'_>,
        leader: &mut Tracee,
    ) -> Result<Vec<Vma>, ResurrectError> {
        let mut rest = Vec::new();
        if self.to.start < self.from.0 && !self.down(builder.pid, leader)? {
            rest.push(self.part(self.to.start, self.from.0));
        }
        if self.to.end > self.from.1 && !self.up(builder.pid, leader)? {
            rest.push(self.part(self.from.1, self.to.end));
        }
        Ok(rest)
    }

    fn part(&self, start: u64, end: u64) -> Vma {
        Vma {
            start,
            end,
            backing: moved(&self.to.backing, start - self.to.start),
            ..self.to.clone()
        }
    }

    /// As a stack does when it is touched below its start. The page that was touched is given back.
    fn down(&self, pid: Pid, leader: &mut Tracee) -> Result<bool, ResurrectError> {
        let _raised = StackLimit::raised(self.to.len());
        if leader.mem().write(self.to.start, &[0]).is_err() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let args = [
            self.to.start.into(),
            PAGE_SIZE_U64.into(),
            MADV_DONTNEED.into(),
        ];
        batch.call("giving a page back", nr::MADVISE, args);
        run(pid, "growing a stack", leader, &batch)?;
        Ok(true)
    }

    fn up(&self, pid: Pid, leader: &mut Tracee) -> Result<bool, ResurrectError> {
        let (start, end) = self.from;
        let mut batch = Batch::new();
        let lens = [end - start, self.to.end - start];
        let args = [start.into(), lens[0].into(), lens[1].into(), 0.into()];
        let call = batch.try_call("growing a mapping", nr::MREMAP, args);
        let output = run(pid, "growing a mapping", leader, &batch)?;
        Ok(output.result(call).is_ok())
    }
}

/// The kernel asks for the limit of who makes a stack grow: this process.
struct StackLimit(Option<(u64, u64)>);

impl StackLimit {
    fn raised(bytes: u64) -> StackLimit {
        let own = sys::process::prlimit(Pid(0), RLIMIT_STACK, None);
        let low = own.ok().filter(|(soft, _)| *soft < bytes);
        StackLimit(low.filter(|(_, hard)| {
            let enough = (bytes, (*hard).max(bytes));
            sys::process::prlimit(Pid(0), RLIMIT_STACK, Some(enough)).is_ok()
        }))
    }
}

impl Drop for StackLimit {
    fn drop(&mut self) {
        if let Some(before) = self.0
            && let Err(errno) = sys::process::prlimit(Pid(0), RLIMIT_STACK, Some(before))
        {
            log::warn!("the limit of stacks cannot be put back: {errno}");
        }
    }
}
