//! Requests of io_uring that others wait for (`IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`), and those that wait for all that
//! were submitted before them (`IOSQE_IO_DRAIN`).

use super::ring_requests::{MOST, REQUEST, WRONG, Waiting};
use super::uring::RING;
use super::{Kernel, Unreadable};
use sys::uring::op;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its file.
    Waits,
    /// Its time has begun.
    Times,
    /// It has not begun.
    Later,
}

impl Kernel {
    /// A request, and those that wait for it.
    pub(super) fn linked(&mut self, at: u64, first: Stage) -> Result<Vec<Waiting>, Unreadable> {
        let (head, mut next) = self.request(at, first)?;
        let begun = first != Stage::Later;
        let mut found = vec![head];
        while next != 0 {
            if found.len() == MOST {
                return Err(WRONG);
            }
            let stage = match found.len() == 1 && begun && self.is_timing(next)? {
                true => Stage::Times,
                false => Stage::Later,
            };
            let (request, after) = self.request(next, stage)?;
            found.push(request);
            next = after;
        }
        Ok(found)
    }

    /// Whether a request is a time-out of the one before it, whose time runs.
    fn is_timing(&mut self, at: u64) -> Result<bool, Unreadable> {
        let opcode = self.btf.field(REQUEST, "opcode")?.offset;
        let opcode = self.word(at.wrapping_add(opcode), "a linked request")? as u8;
        if opcode != op::LINK_TIMEOUT {
            return Ok(false);
        }
        let list = at.wrapping_add(self.btf.field("io_timeout", "list")?.offset);
        Ok(self.word(list, "a linked time-out")? != list)
    }

    /// Those that wait for all before them, in order, with those that wait for these.
    pub(super) fn drained(&mut self, ring: u64) -> Result<Vec<Waiting>, Unreadable> {
        let head = ring.wrapping_add(self.btf.field(RING, "defer_list")?.offset);
        let field = |path| Ok(self.btf.field("io_defer_entry", path)?.offset);
        let (list, request) = (field("list")?, field("req")?);
        let (mut next, mut found) = (self.word(head, "a list of requests")?, Vec::new());
        while next != head {
            if found.len() >= MOST {
                return Err(WRONG);
            }
            let entry = next.wrapping_sub(list);
            let at = self.word(entry.wrapping_add(request), "a list of requests")?;
            let mut chain = self.linked(at, Stage::Later)?;
            for waiting in &mut chain {
                waiting.drained = true;
            }
            found.extend(chain);
            next = self.word(next, "a list of requests")?;
        }
        Ok(found)
    }
}
