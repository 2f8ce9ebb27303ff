//! Address spaces and where their pages are.

use super::FileRef;
use serde::{Deserialize, Serialize};

/// One address space.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct AddressSpace {
    /// The numbers behind `/proc/PID/{cmdline,environ,stat}` (`struct prctl_mm_map`).
    pub layout: Layout,
    /// The auxiliary vector, byte for byte (`/proc/PID/auxv`).
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// The executable.
    pub exe: FileRef,
    /// Mappings in ascending order.
    pub vmas: Vec<Vma>,
    /// Saved pages in ascending order of address. Pages that are not named are read from the mapped
    /// file or zero.
    pub extents: Vec<Extent>,
    /// The vdso's code, byte for byte, empty when the process has none.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
    /// coredump_filter (proc(5)).
    pub coredump_filter: u64,
    /// PR_SET_THP_DISABLE.
    pub thp_disabled: bool,
}

/// `PR_SET_MM_MAP` fields, addresses in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "named as in struct prctl_mm_map, which prctl(2) explains"
)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `PROT_*` bits.
    pub prot: u32,
    /// Two-letter `VmFlags` of `/proc/PID/smaps`, as the kernel printed them.
    pub flags: Vec<[u8; 2]>,
    /// What is mapped.
    pub backing: Backing,
}

impl Vma {
    /// Whether `/proc/PID/smaps` showed the flag.
    #[must_use]
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    /// Whether it maps nothing, which no vma does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory, heap and stacks included, with its `PR_SET_VMA_ANON_NAME` name.
    Anonymous {
        /// The name, or empty.
        name: Vec<u8>,
    },
    /// A file, mapped private (`MAP_PRIVATE`) or shared.
    File {
        /// The file.
        file: FileRef,
        /// Offset of the mapping's start in bytes.
        offset: u64,
        /// `MAP_SHARED`.
        shared: bool,
    },
    /// Shared memory that has no file on disk.
    Shared {
        /// Which object.
        object: u32,
        /// Offset of the mapping's start in bytes.
        offset: u64,
    },
    /// The kernel's `[vdso]`.
    Vdso,
    /// The kernel's `[vvar]` or `[vvar_vclock]`.
    Vvar,
}

/// A run of saved pages: `pages` pages from address `va` are pages `frame..` of the store (for
/// physical memory: page frame numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Address of the first page.
    pub va: u64,
    /// Number of pages.
    pub pages: u64,
    /// Number of the first page in the store.
    pub frame: u64,
}

/// A shared memory object without a file on disk: shared anonymous memory, memfd, System V shm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// Its id in [`Backing::Shared`].
    pub id: u32,
    /// What it is.
    pub kind: SharedKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its pages; `va` is the offset in the object.
    pub extents: Vec<Extent>,
}

/// Kinds of shared memory objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedKind {
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS)`.
    Anonymous,
}
