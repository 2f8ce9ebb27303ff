//! Address spaces and where their pages are.

use super::{FileRef, RingMapping};
use serde::{Deserialize, Serialize};
use sys::Pid;

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
    /// The object that has the executable's contents, when its file has been removed or replaced.
    pub exe_object: Option<u32>,
    /// Mappings in ascending order.
    pub vmas: Vec<Vma>,
    /// Saved pages in ascending order of address. Pages that are not named are read from the mapped
    /// file or zero.
    pub extents: Vec<Extent>,
    /// Ranges of guard pages inside of mappings (`MADV_GUARD_INSTALL`), ascending.
    pub guards: Vec<PageRange>,
    /// Ranges backed by transparent huge pages, ascending.
    pub huge: Vec<PageRange>,
    /// Contexts of asynchronous I/O.
    pub aio: Vec<AioRing>,
    /// Mappings of rings of io_uring, in ascending order.
    pub rings: Vec<RingMapping>,
    /// Mappings of rings of packet sockets, in ascending order.
    pub packet_rings: Vec<RingMapping>,
    /// The vdso's code, byte for byte, empty when the process has none.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
    /// coredump_filter (proc(5)).
    pub coredump_filter: u64,
    /// What PR_GET_THP_DISABLE says: 0, or 1 with flags (`PR_THP_DISABLE_*`).
    pub thp_disabled: u32,
    /// What `PR_FUTEX_HASH_GET_SLOTS` says, None where the kernel has no such tables.
    pub futex_slots: Option<u32>,
    /// PR_SET_MEMORY_MERGE.
    pub merge_any: bool,
    /// PR_SET_MDWE bits.
    pub deny_write_exec: u32,
    /// Commands of membarrier(2) by which it is registered, as bits.
    pub membarrier: u32,
    /// `mlockall(MCL_FUTURE)`.
    pub lock_future: LockFuture,
    /// Protection keys that are allocated (pkeys(7)), bit n for key n; key 0 always is.
    pub protection_keys: u16,
    /// Policies of mappings (mbind(2)), ascending.
    pub policies: Vec<PolicyRange>,
    /// The local descriptor table (modify_ldt(2)), 8 bytes for each segment; empty when there is none.
    #[serde(with = "serde_bytes")]
    pub ldt: Vec<u8>,
}

/// On which nodes memory is to be (set_mempolicy(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` number with its flags.
    pub mode: u32,
    /// Bit n for node n.
    #[serde(with = "serde_bytes")]
    pub nodes: Vec<u8>,
}

/// A mapping with a policy of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it is.
    pub policy: MemoryPolicy,
}

/// What mlockall(2) has said of mappings to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LockFuture {
    /// They are not locked.
    #[default]
    No,
    /// `MCL_FUTURE`.
    Now,
    /// `MCL_FUTURE | MCL_ONFAULT`.
    OnFault,
}

/// A run of pages of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// Address of the first page.
    pub va: u64,
    /// Number of pages of 4096 bytes.
    pub pages: u64,
}

/// A context of asynchronous I/O (io_setup(2)), known by the address of its ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioRing {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Events that it has room for.
    pub size: u32,
    /// Events not read yet, `struct io_event` each.
    #[serde(with = "serde_bytes")]
    pub unread: Vec<u8>,
    /// Requests that wait for descriptors, in the order they were made.
    pub polls: Vec<AioPoll>,
    /// All of its bytes, for a ring that came by fork(2): its context is the parent's, and io_getevents(2)
    /// gives `EINVAL`.
    pub inherited: Option<Vec<u8>>,
}

/// A request that waits for a descriptor to become ready (`IOCB_CMD_POLL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioPoll {
    /// The descriptor.
    pub fd: i32,
    /// `POLL*`.
    pub events: u16,
    /// What comes back with the event.
    pub data: u64,
    /// Address of the request (`struct iocb`), which it is known by.
    pub request: u64,
    /// The eventfd that is told.
    pub eventfd: Option<i32>,
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
    /// Its protection key (pkeys(7)), 0 for none.
    pub protection_key: u8,
    /// Bytes of one of its pages: 4096, or that of its hugetlb pages.
    pub page_size: u64,
    /// `MLOCK_ONFAULT`, of a locked mapping (flag `lo`).
    pub lock_on_fault: bool,
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
    /// Private anonymous memory, heap and stacks included, with its `PR_SET_VMA_ANON_NAME` name. Of
    /// huge pages when [`Vma::page_size`] says so, droppable with the flag `dp`.
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
        /// The name it was mapped by, where the file has lost that and `file` is another one.
        gone: Option<Vec<u8>>,
    },
    /// A memory object that has no path on disk.
    Object {
        /// Which: [`SharedObject::id`].
        object: u32,
        /// Offset of the mapping's start in bytes.
        offset: u64,
        /// `MAP_SHARED`.
        shared: bool,
        /// Its `PR_SET_VMA_ANON_NAME` name, or empty.
        name: Vec<u8>,
    },
    /// `/dev/zero`, mapped private.
    Zero {
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

/// A time of a file. Memory's file systems keep every second that an `i64` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTime {
    /// Since 1970.
    pub seconds: i64,
    /// Of that second.
    pub nanoseconds: i64,
}

/// A memory object that has no path: shared anonymous memory, a memfd, System V shared memory, a
/// file that has been removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// Its id in [`Backing::Object`] and in descriptions.
    pub id: u32,
    /// What it is.
    pub kind: SharedKind,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of one of its pages: 4096, or that of its hugetlb pages.
    pub page_size: u64,
    /// Its pages; `va` is the offset in the object. What is not named is a hole.
    pub extents: Vec<Extent>,
}

/// Kinds of memory objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedKind {
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS)`, or `/dev/zero` mapped shared.
    Anonymous,
    /// memfd_create(2).
    Memfd {
        /// Its name, without `memfd:`.
        name: Vec<u8>,
        /// `F_SEAL_*`.
        seals: u32,
        /// Permission bits.
        mode: u32,
        /// User and group.
        owner: (u32, u32),
        /// Access and modification times.
        times: (FileTime, FileTime),
        /// Names and values of its extended attributes (xattr(7)).
        attributes: Vec<(Vec<u8>, Vec<u8>)>,
        /// Bytes that are allocated, with those of fallocate(2) that hold nothing.
        allocated: u64,
    },
    /// memfd_secret(2).
    Secret {
        /// Permission bits.
        mode: u32,
        /// User and group.
        owner: (u32, u32),
        /// Access and modification times.
        times: (FileTime, FileTime),
    },
    /// shmget(2).
    SystemV(Box<SystemVShm>),
    /// A regular file that has been removed or replaced on disk.
    Deleted {
        /// The path it had, without ` (deleted)`.
        path: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// User and group.
        owner: (u32, u32),
        /// Access and modification times.
        times: (FileTime, FileTime),
        /// Names and values of its extended attributes (xattr(7)).
        attributes: Vec<(Vec<u8>, Vec<u8>)>,
        /// Bytes that are allocated, with those of fallocate(2) that hold nothing.
        allocated: u64,
        /// Flags of its inode (chattr(1)), 0 on file systems without any.
        inode_flags: u32,
        /// It can be given a name (linkat(2)): it was made by `O_TMPFILE` without `O_EXCL`, and has had none.
        nameable: bool,
    },
}

/// A segment of System V shared memory (`struct shmid_ds`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemVShm {
    /// Its id and owners.
    pub perm: IpcPerm,
    /// The key its name in `/proc/PID/maps` shows; [`IpcPerm::key`] is 0 once it has been removed.
    pub first_key: i32,
    /// Its size as it was asked for, in bytes; [`SharedObject::size`] is in whole pages.
    pub bytes: u64,
    /// The process that made it.
    pub creator: Pid,
    /// The process that attached or detached it last; 0 for nobody.
    pub last: Pid,
    /// Nobody has attached it yet: it holds nothing.
    pub unused: bool,
    /// It goes when the last process detaches it (`SHM_DEST`).
    pub removed: bool,
    /// `SHM_LOCK`.
    pub locked: bool,
    /// Processes that are not saved have it attached too: its contents are theirs and stay.
    pub kept_outside: bool,
}

/// `struct ipc64_perm` with the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IpcPerm {
    /// The id.
    pub id: i32,
    /// The key, 0 for `IPC_PRIVATE`.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permission bits.
    pub mode: u32,
}
