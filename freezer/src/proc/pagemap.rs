//! `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).

use crate::FreezerError;
use std::fs::File;
use std::os::unix::fs::FileExt;
use sys::{PAGE_SIZE_U64, Pid};

/// What the page table holds for one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u64);

impl PageState {
    /// In memory.
    #[must_use]
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }
    /// In swap.
    #[must_use]
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 == 1
    }
    /// A page of a file, or shared memory.
    #[must_use]
    pub fn file_or_shared(self) -> bool {
        self.0 >> 61 & 1 == 1
    }
    /// Page frame number; 0 without CAP_SYS_ADMIN or when not present.
    #[must_use]
    pub fn pfn(self) -> u64 {
        if self.present() {
            self.0 & ((1 << 55) - 1)
        } else {
            0
        }
    }
    /// Whether the process has a page of its own here that only memory or swap holds.
    #[must_use]
    pub fn private_data(self) -> bool {
        (self.present() || self.swapped()) && !self.file_or_shared()
    }
}

/// An open pagemap.
#[derive(Debug)]
pub struct Pagemap {
    pid: Pid,
    file: File,
}

const AT_ONCE: usize = 8192;

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn open(pid: Pid) -> Result<Pagemap, FreezerError> {
        File::open(format!("/proc/{pid}/pagemap"))
            .map(|file| Pagemap { pid, file })
            .map_err(|cause| FreezerError::Proc {
                pid,
                what: "pagemap".into(),
                cause,
            })
    }

    /// Calls `visit` with address and state of every page of a range that is not empty.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn scan(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, PageState),
    ) -> Result<(), FreezerError> {
        let mut buffer = vec![0u8; AT_ONCE * 8];
        let mut va = start;
        while va < end {
            let pages = ((end - va) / PAGE_SIZE_U64).min(AT_ONCE as u64) as usize;
            let want = &mut buffer[..pages * 8];
            self.file
                .read_exact_at(want, va / PAGE_SIZE_U64 * 8)
                .map_err(|cause| FreezerError::Proc {
                    pid: self.pid,
                    what: "pagemap".into(),
                    cause,
                })?;
            for word in want.as_chunks::<8>().0 {
                let state = PageState(u64::from_le_bytes(*word));
                if state.present() || state.swapped() {
                    visit(va, state);
                }
                va += PAGE_SIZE_U64;
            }
        }
        Ok(())
    }
}
