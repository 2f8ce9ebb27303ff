//! Requests that workers of the kernel are at (`struct io_wq_work`). So are those whose last one has `IOSQE_IO_LINK`, and
//! nothing behind it: no event starts them again (io_uring/io_uring.c, `io_queue_sqe_fallback`), a worker waits.

use super::ring_links::Stage;
use super::ring_requests::REQUEST;
use super::{Kernel, Unreadable, Waiting};
use sys::uring::op;

/// `MSG_WAITALL`: what has come by now is not seen.
const ALL: u32 = 0x100;
const S_IFMT: u64 = 0o170_000;
const S_IFREG: u64 = 0o100_000;
const S_IFBLK: u64 = 0o060_000;

/// A request that a worker is at.
#[derive(Clone, Debug)]
pub(crate) struct AtWork {
    /// Where the kernel has its `struct io_wq_work`.
    pub(crate) work: u64,
    /// Where it has the ring.
    pub(crate) ring: u64,
    /// The request, and those that wait for it.
    pub(crate) requests: Vec<Waiting>,
}

impl Kernel {
    /// What these workers are at, where it can only wait or be done as a whole, and can be submitted again.
    pub(crate) fn at_work(&mut self, workers: &[u64]) -> Result<Vec<AtWork>, Unreadable> {
        const WHAT: &str = "a request that a worker is at";
        let field = |path| Ok(self.btf.field(REQUEST, path)?.offset);
        let (inside, context) = (field("work")?, field("ctx")?);
        let mut found = Vec::new();
        for work in self.ring_works(workers)? {
            if work == 0 {
                continue;
            }
            let at = work.wrapping_sub(inside);
            let ring = self.word(at.wrapping_add(context), WHAT)?;
            let mut requests = self.linked(at, Stage::Waits)?;
            // What tells of polls is not set where there is none.
            requests[0].fired = false;
            let fine = requests.iter().all(|it| it.obstacle.is_none());
            if fine && self.is_whole(&requests[0])? {
                found.push(AtWork {
                    work,
                    ring,
                    requests,
                });
            }
        }
        Ok(found)
    }

    fn is_whole(&mut self, request: &Waiting) -> Result<bool, Unreadable> {
        let entry = &request.entry;
        let kind = match entry.opcode {
            op::READ | op::READ_FIXED => true,
            op::RECV => entry.flags_of_op & ALL == 0,
            op::ACCEPT => !request.repeats,
            _ => false,
        };
        if !kind || entry.chooses() || request.file == 0 {
            return Ok(false);
        }
        // Files of disks end by themselves.
        let inode = self.word_in(request.file, "file", "f_inode")?;
        let kind = self.word_in(inode, "inode", "i_mode")? & S_IFMT;
        Ok(kind != S_IFREG && kind != S_IFBLK)
    }

    fn word_in(&mut self, at: u64, structure: &str, path: &str) -> Result<u64, Unreadable> {
        let field = self.btf.field(structure, path)?.offset;
        self.word(at.wrapping_add(field), "the file of a request")
    }
}
