//! Memory objects that have no path: found by the mappings and descriptors that lead to them, each
//! saved once.

use crate::files::outsiders::lives_outside;
use crate::{FreezerError, PageRun, PageSink, PageSource, Refusal, kernel};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek64};
use persist_mem::manifest::{Extent, FileTime, SharedKind, SharedObject, SystemVShm};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use sys::ipc::ShmStat;
use sys::{Errno, PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// What tells objects apart. The inode number of a System V segment is its id, which may be the
/// inode number of another object as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    system_v: bool,
    device: u64,
    inode: u64,
}

#[derive(Debug)]
struct Found {
    object: SharedObject,
    /// Open for reading, by a description of ours where it could be opened again.
    file: File,
    /// The description is one of the tree's: where that stands is not to change.
    is_theirs: bool,
    /// Who it was found at, for messages.
    holder: Pid,
    /// Times it was found.
    uses: u64,
}

/// The memory objects that a tree has, open for reading.
#[derive(Debug, Default)]
pub struct Objects {
    found: Vec<Found>,
    ids: BTreeMap<Key, u32>,
}

/// Bytes of a block (`st_blocks`).
const BLOCK: u64 = 512;

/// Pages of one read.
const AT_ONCE: usize = 256;

impl Objects {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// The object behind `link`, a magic link such as `/proc/PID/map_files/..` or
    /// `/proc/self/fd/N`. `kind` is asked when it is a new one.
    pub(crate) fn find(
        &mut self,
        holder: Pid,
        link: &str,
        kind: impl FnOnce(&File) -> Result<SharedKind, String>,
    ) -> Result<u32, ObjectError> {
        self.find_open(holder, open(link)?, kind)
    }

    /// The object that a copy of a descriptor is open on. It is opened again, unless that would break a lease.
    pub(crate) fn find_behind(
        &mut self,
        holder: Pid,
        copy: &OwnedFd,
        kind: impl FnOnce(&File) -> Result<SharedKind, String>,
    ) -> Result<u32, ObjectError> {
        if !has_write_lease(copy) {
            let link = format!("/proc/self/fd/{}", copy.as_raw_fd());
            return self.find(holder, &link, kind);
        }
        let flags = fcntl(copy, FcntlArg::F_GETFL).map_err(io::Error::from)?;
        let flags = OFlag::from_bits_retain(flags);
        if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY || flags.contains(OFlag::O_DIRECT) {
            let why =
                "to read it would break its lease: it is open for writing only, or with O_DIRECT";
            return Err(ObjectError::Refused(why.into()));
        }
        let file = File::from(copy.try_clone()?);
        let meta = file.metadata()?;
        if meta.blocks() * BLOCK < meta.len() {
            let why = "to look for its holes would break its lease";
            return Err(ObjectError::Refused(why.into()));
        }
        let id = self.find_open(holder, file, kind)?;
        if let Some(found) = self.found.get_mut(id as usize) {
            found.is_theirs = true;
        }
        Ok(id)
    }

    /// An object that is known, by device and inode; it is not one of System V.
    pub(crate) fn known(&mut self, device: u64, inode: u64) -> Option<u32> {
        let key = Key {
            system_v: false,
            device,
            inode,
        };
        let id = *self.ids.get(&key)?;
        self.found.get_mut(id as usize)?.uses += 1;
        Some(id)
    }

    /// Whether an object is secret memory.
    pub(crate) fn is_secret(&self, id: u32) -> bool {
        let found = self.found.get(id as usize);
        found.is_some_and(|found| matches!(found.object.kind, SharedKind::Secret { .. }))
    }

    /// The object that is open.
    pub(crate) fn find_open(
        &mut self,
        holder: Pid,
        file: File,
        kind: impl FnOnce(&File) -> Result<SharedKind, String>,
    ) -> Result<u32, ObjectError> {
        let meta = file.metadata()?;
        let kind = kind(&file).map_err(ObjectError::Refused)?;
        let key = Key {
            system_v: matches!(kind, SharedKind::SystemV(_)),
            device: meta.dev(),
            inode: meta.ino(),
        };
        if let Some(id) = self.ids.get(&key) {
            if let Some(known) = self.found.get_mut(*id as usize) {
                known.uses += 1;
            }
            return Ok(*id);
        }
        let id = u32::try_from(self.found.len()).unwrap_or(u32::MAX);
        let object = SharedObject {
            id,
            kind,
            size: meta.len(),
            page_size: page_size(&file)?,
            extents: Vec::new(),
        };
        self.found.push(Found {
            object,
            file,
            is_theirs: false,
            holder,
            uses: 1,
        });
        self.ids.insert(key, id);
        Ok(id)
    }

    /// Those that a process outside of the tree has as well: it would keep the old one. System V
    /// segments are left out, since they have a name to be found by.
    pub(crate) fn shared_outside(&self, inside: &[Pid]) -> Vec<Refusal> {
        let ours: BTreeMap<(u64, u64), &Found> = self
            .ids
            .iter()
            .filter(|(key, _)| !key.system_v)
            .filter_map(|(key, id)| Some(((key.device, key.inode), self.found.get(*id as usize)?)))
            .collect();
        let entries = if ours.is_empty() {
            None
        } else {
            std::fs::read_dir("/proc").ok()
        };
        let me = Pid(nix::unistd::getpid().as_raw());
        let others = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
            .filter(|pid| !inside.contains(pid) && *pid != me);
        let mut refused = Vec::new();
        for other in others {
            let mut theirs = mapped_shared(other);
            theirs.extend(open_files(other));
            theirs.sort_unstable();
            theirs.dedup();
            let shared = theirs
                .iter()
                .filter_map(|key| Some(ours.get(key)?.shared_with(other)));
            let shared: Vec<Refusal> = shared.collect();
            // One that was born since the tree was listed is no stranger.
            if !shared.is_empty() && lives_outside(other, inside) {
                refused.extend(shared);
            }
        }
        refused
    }

    /// A segment that nobody has attached: it is attached here for as long as it takes to open it. `before` tells who
    /// had it before that.
    pub(crate) fn add_segment(&mut self, id: i32, before: &ShmStat) -> Result<(), ObjectError> {
        let me = Pid(nix::unistd::getpid().as_raw());
        let attached = sys::ipc::Attached::new(id, true).map_err(io::Error::from)?;
        let text =
            crate::proc::read(me, "maps").map_err(|e| ObjectError::Refused(e.to_string()))?;
        let maps = crate::proc::parse_smaps(&text).unwrap_or_default();
        let map = maps.iter().find(|map| map.start == attached.address());
        let map = map.ok_or_else(|| ObjectError::Refused("it is not mapped".into()))?;
        let link = format!("/proc/self/{}", map.map_file());
        let describe = || {
            let kind = system_v(map.inode, &map.name)?;
            Ok(match kind {
                SharedKind::SystemV(shm) => SharedKind::SystemV(Box::new(SystemVShm {
                    last: before.last(),
                    unused: !before.used(),
                    ..*shm
                })),
                other => other,
            })
        };
        self.find(me, &link, |_| describe()).map(drop)
    }

    #[cfg(test)]
    pub(crate) fn segments(&self) -> Vec<i32> {
        let kinds = self.found.iter().map(|found| &found.object.kind);
        kinds
            .filter_map(|kind| match kind {
                SharedKind::SystemV(shm) => Some(shm.perm.id),
                _ => None,
            })
            .collect()
    }

    /// Saves the contents of all of them.
    pub(crate) fn save(&self, sink: &mut dyn PageSink) -> Result<Vec<SharedObject>, FreezerError> {
        let mut objects = Vec::new();
        for found in &self.found {
            let mut object = found.object.clone();
            let pid = found.holder;
            let outside = match &mut object.kind {
                SharedKind::SystemV(shm) => {
                    let now = sys::ipc::shm_stat(shm.perm.id);
                    let now = now.map_err(FreezerError::call(pid, "looking at a segment"))?;
                    // Every mapping of it is an attachment.
                    shm.kept_outside = now.attached() > found.uses;
                    shm.kept_outside
                }
                _ => false,
            };
            if !outside {
                let saved = match object.kind {
                    SharedKind::Secret { .. } => save_secret(&found.file, &object, sink),
                    _ => save(&found.file, found.is_theirs, &object, sink),
                };
                object.extents =
                    saved.map_err(|cause| FreezerError::Pages { pid, va: 0, cause })?;
            }
            objects.push(object);
        }
        Ok(objects)
    }
}

impl Found {
    fn shared_with(&self, other: Pid) -> Refusal {
        let resource = match &self.object.kind {
            SharedKind::Memfd { name, .. } => format!("memfd {}", String::from_utf8_lossy(name)),
            SharedKind::Deleted { path, .. } => {
                format!("removed file {}", String::from_utf8_lossy(path))
            }
            SharedKind::Secret { .. } => "secret memory".into(),
            SharedKind::Anonymous | SharedKind::SystemV(_) => "shared anonymous memory".into(),
        };
        let comm = crate::proc::comm(other);
        Refusal {
            pid: self.holder,
            comm: crate::proc::comm(self.holder),
            resource,
            reason: format!("process {other} ({comm}), which is not part of the tree, has it too"),
        }
    }
}

/// Device and inode of what a process has mapped shared; nothing when it has ended.
fn mapped_shared(pid: Pid) -> Vec<(u64, u64)> {
    let text = crate::proc::read(pid, "maps").unwrap_or_default();
    let maps = crate::proc::parse_smaps(&text).unwrap_or_default();
    let shared = maps.iter().filter(|map| map.shared());
    shared.map(|map| (map.device, map.inode)).collect()
}

/// Device and inode of what a process has open.
fn open_files(pid: Pid) -> Vec<(u64, u64)> {
    let files_of = |table: Pid| {
        let fds = crate::proc::numbers(table, "fd").unwrap_or_default();
        fds.into_iter()
            .filter_map(move |fd| crate::proc::metadata(table, &format!("fd/{fd}")).ok())
    };
    let tables = crate::files::apart::tables_of(pid).into_iter();
    let files = tables.flat_map(files_of);
    files.map(|meta| (meta.dev(), meta.ino())).collect()
}

/// Why an object is not to be had.
pub(crate) enum ObjectError {
    Refused(String),
    Io(io::Error),
}

impl From<io::Error> for ObjectError {
    fn from(cause: io::Error) -> ObjectError {
        ObjectError::Io(cause)
    }
}

impl ObjectError {
    pub(crate) fn reason(self) -> String {
        match self {
            ObjectError::Refused(reason) => reason,
            ObjectError::Io(cause) if cause.raw_os_error() == Some(Errno::ENXIO as i32) => {
                "it maps something that is no file: a socket, say (TCP_ZEROCOPY_RECEIVE)".into()
            }
            ObjectError::Io(cause) => format!("it cannot be opened: {cause}"),
        }
    }
}

/// Whether a lease for writing is held by this description: whoever opens the file breaks it.
fn has_write_lease(copy: &OwnedFd) -> bool {
    const F_WRLCK: i32 = 1;
    sys::files::lease_of(copy) == Ok(F_WRLCK)
}

fn open(link: &str) -> io::Result<File> {
    let with = |flags| {
        File::options()
            .read(true)
            .custom_flags(flags | libc_nonblock())
            .open(link)
    };
    // Some file systems know no O_NOATIME.
    with(nix::fcntl::OFlag::O_NOATIME.bits()).or_else(|_| with(0))
}

fn libc_nonblock() -> i32 {
    nix::fcntl::OFlag::O_NONBLOCK.bits()
}

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Whether a file lies on hugetlbfs.
pub(crate) fn on_hugetlbfs(file: impl AsFd) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|fs| fs.filesystem_type().0 == HUGETLBFS_MAGIC)
}

/// 4096, or the size of the file's huge pages (the block size of hugetlbfs).
fn page_size(file: &File) -> io::Result<u64> {
    if !on_hugetlbfs(file) {
        return Ok(PAGE_SIZE_U64);
    }
    Ok(file.metadata()?.blksize())
}

/// What a memfd is beside its contents.
pub(crate) fn memfd(file: &File, link: &[u8]) -> Result<SharedKind, String> {
    let name = link
        .strip_prefix(b"/memfd:")
        .and_then(|name| name.strip_suffix(b" (deleted)"))
        .ok_or("its name is not that of a memfd")?;
    let seals = fcntl(file, FcntlArg::F_GET_SEALS)
        .map_err(|errno| format!("its seals cannot be read: {errno}"))?;
    let meta = file.metadata().map_err(|e| format!("fstat: {e}"))?;
    Ok(SharedKind::Memfd {
        name: name.to_vec(),
        seals: seals.cast_unsigned(),
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        times: times(&meta),
        attributes: sys::xattr::all_of(file).map_err(|e| format!("its attributes: {e}"))?,
        allocated: meta.blocks() * 512,
    })
}

/// What secret memory is beside its contents.
pub(crate) fn secret(file: &File) -> Result<SharedKind, String> {
    let meta = file.metadata().map_err(|e| format!("fstat: {e}"))?;
    Ok(SharedKind::Secret {
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        times: times(&meta),
    })
}

/// Access and modification.
fn times(meta: &Metadata) -> (FileTime, FileTime) {
    let time = |seconds, nanoseconds| FileTime {
        seconds,
        nanoseconds,
    };
    (
        time(meta.atime(), meta.atime_nsec()),
        time(meta.mtime(), meta.mtime_nsec()),
    )
}

/// What a removed file is beside its contents.
pub(crate) fn deleted(file: &File, link: &[u8]) -> Result<SharedKind, String> {
    let path = link
        .strip_suffix(b" (deleted)")
        .ok_or("its path is not that of a removed file")?;
    let meta = file.metadata().map_err(|e| format!("fstat: {e}"))?;
    if !meta.is_file() {
        return Err("it is no regular file".into());
    }
    if on_hugetlbfs(file) {
        return Err("removed files of hugetlbfs are not carried".into());
    }
    Ok(SharedKind::Deleted {
        path: path.to_vec(),
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        times: times(&meta),
        allocated: meta.blocks() * 512,
        attributes: sys::xattr::all_of(file).map_err(|e| format!("its attributes: {e}"))?,
        inode_flags: sys::files::inode_flags(file).unwrap_or(0),
        nameable: nameable(file, Path::new(OsStr::from_bytes(path)), meta.ino()),
    })
}

/// Whether a file without a name can be given one. Where the kernel's memory cannot be read every one can that
/// never had a name.
fn nameable(file: &File, path: &Path, inode: u64) -> bool {
    // What `O_TMPFILE` makes is called by its number (fs/dcache.c, d_mark_tmpfile).
    let of_its_own = format!("#{inode}");
    if path.file_name() != Some(OsStr::new(&of_its_own)) {
        return false;
    }
    kernel::look(|kernel| kernel.can_be_named(file.as_fd())).unwrap_or(true)
}

/// What a segment of System V shared memory is beside its contents. The inode number of its
/// mappings is its id.
pub(crate) fn system_v(id: u64, link: &[u8]) -> Result<SharedKind, String> {
    const SHM_DEST: u32 = 0o1000;
    const SHM_LOCKED: u32 = 0o2000;
    let id = i32::try_from(id).map_err(|_| "its id is out of range")?;
    let key = link
        .strip_prefix(b"/SYSV")
        .and_then(|rest| std::str::from_utf8(rest.get(..8)?).ok())
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or("its name is not that of a segment")?;
    let stat =
        sys::ipc::shm_stat(id).map_err(|errno| format!("shmctl of segment {id}: {errno}"))?;
    let owners = stat.owners();
    let perm = crate::ipc::perm(id, owners);
    Ok(SharedKind::SystemV(Box::new(SystemVShm {
        perm,
        bytes: stat.size(),
        creator: stat.creator(),
        last: stat.last(),
        unused: !stat.used(),
        first_key: key.cast_signed(),
        removed: owners.mode & SHM_DEST != 0,
        locked: owners.mode & SHM_LOCKED != 0,
        kept_outside: false,
    })))
}

/// Saves an object's pages. Holes stay holes.
fn save(
    file: &File,
    is_theirs: bool,
    object: &SharedObject,
    sink: &mut dyn PageSink,
) -> io::Result<Vec<Extent>> {
    let mut kept = Vec::new();
    let runs = if is_theirs {
        // It has no holes; to look for them would move where it stands.
        vec![(0, object.size.next_multiple_of(PAGE_SIZE_U64))]
    } else if object.page_size == PAGE_SIZE_U64 {
        data_runs(file, object.size)?
    } else {
        // hugetlbfs knows no holes; its pages that hold nothing are taken for some.
        huge_runs(file, object.size, object.page_size)?
    };
    for (start, end) in runs.into_iter().flat_map(pieces) {
        let pages = (end - start) / PAGE_SIZE_U64;
        let pfns = if sink.wants_frames() {
            frames(file, start, end)?
        } else {
            Vec::new()
        };
        let run = PageRun {
            from: PageSource::Object(file),
            va: start,
            pages,
            pfns: &pfns,
            shared: false,
        };
        kept.extend(sink.save(&run)?);
    }
    Ok(kept)
}

/// Saves the pages of secret memory, by a copy that everybody can read. Where pages stay in place, the copy does.
fn save_secret(
    file: &File,
    object: &SharedObject,
    sink: &mut dyn PageSink,
) -> io::Result<Vec<Extent>> {
    let copy = sys::vm::memfd(c"kupgrade", 1)?;
    let size = object.size.next_multiple_of(PAGE_SIZE_U64);
    nix::unistd::ftruncate(&copy, size.cast_signed())?;
    sys::secret::copy_out(file.as_fd(), object.size, &copy)?;
    let copy = File::from(copy);
    let copied = SharedObject {
        size,
        ..object.clone()
    };
    let saved = save(&copy, false, &copied, sink)?;
    if sink.wants_frames() && size > 0 {
        let len = usize::try_from(size).unwrap_or(0);
        let mapped = memmap2::MmapOptions::new().len(len).map_raw(&copy)?;
        mapped.lock()?;
        core::mem::forget((mapped, copy));
    }
    Ok(saved)
}

/// A run in pieces of a size that can be read at once.
fn pieces((start, end): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    const PIECE: u64 = 16 << 20;
    let starts = (start..end).step_by(PIECE as usize);
    starts.map(move |at| (at, end.min(at + PIECE)))
}

/// The parts of a file that are no holes (lseek(2) `SEEK_DATA`), in whole pages.
fn data_runs(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let seek =
            |at: u64, whence| lseek64(file, at.cast_signed(), whence).map(i64::cast_unsigned);
        let data = match seek(at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = seek(data, Whence::SeekHole)?;
        let start = data / PAGE_SIZE_U64 * PAGE_SIZE_U64;
        let end = hole.next_multiple_of(PAGE_SIZE_U64);
        match runs.last_mut() {
            Some(last) if last.1 >= start => last.1 = end,
            _ => runs.push((start, end)),
        }
        at = hole;
    }
    Ok(runs)
}

fn huge_runs(file: &File, size: u64, page_size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut runs = Vec::new();
    for start in (0..size).step_by(usize::try_from(page_size).unwrap_or(PAGE_SIZE)) {
        let run = PageRun {
            from: PageSource::Object(file),
            va: start,
            pages: page_size / PAGE_SIZE_U64,
            pfns: &[],
            shared: false,
        };
        if !is_zero(&run)? {
            runs.push((start, start + page_size));
        }
    }
    Ok(runs)
}

/// Whether every byte of a run is zero.
fn is_zero(run: &PageRun<'_>) -> io::Result<bool> {
    let mut buffer = vec![0; PAGE_SIZE * AT_ONCE.min(usize::try_from(run.pages).unwrap_or(1))];
    // Most pages that hold something do so at their start.
    run.read_at(0, &mut buffer[..PAGE_SIZE])?;
    if buffer[..PAGE_SIZE].iter().any(|byte| *byte != 0) {
        return Ok(false);
    }
    let mut zero = true;
    run.copy(AT_ONCE, |bytes| {
        zero &= bytes.as_chunks::<16>().0.iter().all(|c| *c == [0; 16]);
        Ok(())
    })?;
    Ok(zero)
}

/// The page frames of a part of an object, through a mapping of ours that holds no longer than it
/// takes.
fn frames(file: &File, start: u64, end: u64) -> io::Result<Vec<u64>> {
    let len = usize::try_from(end - start).unwrap_or(0);
    let map = memmap2::MmapOptions::new()
        .offset(start)
        .len(len)
        .map_raw_read_only(file)?;
    let address = map.as_ptr() as u64;
    let me = Pid(nix::unistd::getpid().as_raw());
    let mut pfns = Vec::new();
    for _ in 0..crate::proc::pagemap::TRIES {
        sys::vm::populate_read(address, len)?;
        let states = crate::proc::Pagemap::open(me)
            .and_then(|pagemap| pagemap.states(address, address + len as u64))
            .map_err(|e| io::Error::other(e.to_string()))?;
        pfns = states.iter().map(|state| state.pfn()).collect();
        if !pfns.contains(&0) {
            break;
        }
    }
    Ok(pfns)
}
