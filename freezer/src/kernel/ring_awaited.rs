//! Requests of io_uring that wait for a futex or for a child (`struct io_futex`, `struct io_waitid`), which Linux has
//! since 6.7.

use super::ring_requests::{Bytes, WRONG, Waiting};
use super::{Kernel, Unreadable};
use sys::uring::op;

// kernel/futex/futex.h
const SIZE_32: u64 = 2;
const SHARED: u64 = 0x10;
/// More than there may be (`FUTEX_WAITV_MAX`).
const MOST_FUTEXES: u64 = 128;
/// `FUTEX2_SIZE_U32`, `FUTEX2_PRIVATE`
const FUTEX2_SIZE: u32 = 2;
const FUTEX2_PRIVATE: u32 = 128;
/// `P_PIDFD`, `P_PID`
const BY_PIDFD: u32 = 3;
const BY_PID: u32 = 1;
/// `WSTOPPED | WCONTINUED`
const OF_JOBS: u32 = 2 | 8;

const OTHER_KIND: &str = "a wait for a futex of another kind";

/// Flags as programs give them, of those that the kernel has made of them. None for those that are not known.
fn of_program(flags: u64) -> Option<u32> {
    let private = match flags & SHARED {
        0 => FUTEX2_PRIVATE,
        _ => 0,
    };
    (flags & !SHARED == SIZE_32).then_some(FUTEX2_SIZE | private)
}

impl Kernel {
    /// Adds what such a request waits for; `data` is what the kernel has allocated for it, if it has.
    pub(super) fn add_awaited(
        &mut self,
        bytes: &[u8],
        data: u64,
        found: &mut Waiting,
    ) -> Result<(), Unreadable> {
        match found.entry.opcode {
            op::FUTEX_WAIT => self.one_futex(bytes, data, found),
            op::FUTEX_WAITV => self.one_of_futexes(bytes, data, found),
            _ => self.a_child(bytes, data, found),
        }
    }

    fn one_futex(
        &mut self,
        bytes: &[u8],
        data: u64,
        found: &mut Waiting,
    ) -> Result<(), Unreadable> {
        const OF: &str = "io_futex";
        let request = Bytes {
            kernel: self,
            bytes,
        };
        let flags = request.word(OF, "futex_flags")?;
        let entry = &mut found.entry;
        entry.address = request.word(OF, "uaddr")?;
        entry.offset = request.word(OF, "futex_val")?;
        entry.third = request.word(OF, "futex_mask")?;
        match of_program(flags) {
            Some(flags) => entry.fd = flags.cast_signed(),
            None => found.obstacle = Some(OTHER_KIND.into()),
        }
        if !found.later {
            let queued = self.btf.field("io_futex_data", "q.lock_ptr")?.offset;
            let queued = self.word(data.wrapping_add(queued), "a futex of a request")?;
            found.fired = queued == 0;
        }
        Ok(())
    }

    fn one_of_futexes(
        &mut self,
        bytes: &[u8],
        data: u64,
        found: &mut Waiting,
    ) -> Result<(), Unreadable> {
        const OF: &str = "io_futex";
        const ONE: &str = "futex_vector";
        let request = Bytes {
            kernel: self,
            bytes,
        };
        let count = request.word(OF, "futex_nr")?;
        if count > MOST_FUTEXES {
            return Err(WRONG);
        }
        let (first, owned) = match self.btf.field("io_futexv_data", "futexv") {
            Ok(vector) => {
                let owned = self.btf.field("io_futexv_data", "owned")?.offset;
                let owned = self.word(data.wrapping_add(owned), "futexes of a request")?;
                (data.wrapping_add(vector.offset), owned)
            }
            Err(_) => (data, request.word(OF, "futexv_owned")?),
        };
        let size = self.btf.size_of(ONE)?;
        let (at, flags) = (
            self.btf.field(ONE, "w.uaddr")?.offset,
            self.btf.field(ONE, "w.flags")?.offset,
        );
        for number in 0..count {
            let one = first.wrapping_add(number * size);
            let [Some(address), Some(flags)] =
                self.words(&[one.wrapping_add(at), one.wrapping_add(flags)])?[..]
            else {
                return Err(WRONG);
            };
            match of_program(u64::from(flags as u32)) {
                Some(flags) => found.futexes.push((address, flags)),
                None => found.obstacle = Some(OTHER_KIND.into()),
            }
        }
        found.entry.len = count as u32;
        found.entry.fd = 0;
        found.fired = !found.later && owned != 0;
        Ok(())
    }

    fn a_child(&mut self, bytes: &[u8], data: u64, found: &mut Waiting) -> Result<(), Unreadable> {
        const OF: &str = "io_waitid";
        let request = Bytes {
            kernel: self,
            bytes,
        };
        let busy = request
            .half(OF, "refs.counter")
            .or_else(|_| request.half(OF, "refs"))?;
        let entry = &mut found.entry;
        entry.len = request.half(OF, "which")?;
        entry.fd = request.half(OF, "upid")?.cast_signed();
        entry.file_index = request.half(OF, "options")?;
        entry.offset = request.word(OF, "infop")?;
        if entry.file_index & OF_JOBS != 0 {
            found.obstacle = Some("a wait for a child to stop or to go on".into());
        }
        if entry.len == BY_PIDFD && !found.later {
            // Its descriptor may have been closed since.
            let pid = self.btf.field("io_waitid_async", "wo.wo_pid")?.offset;
            let pid = self.word(data.wrapping_add(pid), "a child that a request waits for")?;
            found.entry.len = BY_PID;
            found.entry.fd = self.number_of(pid)?;
        }
        found.fired = !found.later && busy != 0;
        Ok(())
    }
}
