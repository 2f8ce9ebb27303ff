//! Memory objects that have no path, each kind in a module of its own.
//!
//! This process makes them with their contents; processes map them through copies of its descriptors.
//! What would stand in the way of mapping (seals, a segment's removal) comes at the end.

mod anonymous;
mod deleted;
mod memfd;
mod secret;
mod system_v;

pub(crate) use system_v::as_user;

use crate::ResurrectError;
use crate::error::Subject;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use persist_mem::manifest::{
    Backing, DescriptionKind, Extent, FileTime, Manifest, SharedKind, SharedObject,
};
use persist_mem::store::PageStore;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::vm::{Source, write_file, write_process};
use sys::{Errno, PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// The bit of `O_TMPFILE` beside `O_DIRECTORY`. F_GETFL shows it.
pub(crate) const TMPFILE: u32 = 0o20_000_000;

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_NOFOLLOW: u32 = 0o400_000;
const O_PATH: u32 = 0o10_000_000;

/// Whether a description with these flags (F_GETFL) is to be the one that makes its file again: it can be
/// opened with them in no other way.
pub(crate) fn made_it(flags: u32) -> bool {
    flags & (TMPFILE | O_NOFOLLOW) != 0 && matches!(flags & (O_ACCMODE | O_PATH), O_WRONLY | O_RDWR)
}

/// Whether a description with these flags can be the one of memfd_create(2).
pub(crate) fn made_memfd(flags: u32) -> bool {
    // What fcntl(2) changes, `O_LARGEFILE`, and `O_CLOEXEC`.
    const CHANGED: u32 =
        0o2000 | 0o4000 | 0o20_000 | 0o40_000 | 0o1_000_000 | 0o100_000 | 0o2_000_000;
    flags & !CHANGED == O_RDWR
}

/// An object that is there.
#[derive(Debug)]
enum Made {
    /// Open for reading, and for writing as long as mappings are to be made that need it. A program that
    /// somebody has open for writing cannot be run.
    File {
        read: OwnedFd,
        write: Option<OwnedFd>,
        /// The description that made it ([`made_it`], [`made_memfd`]), for the one that made it before.
        first: Option<OwnedFd>,
        /// Of a memfd that is to be sealed: what memfd_create(2) has opened. To open it for writing would
        /// break leases.
        sealer: Option<OwnedFd>,
    },
    /// A System V segment, attached by its id, and our own attachment if it was removed: without any it goes.
    Segment {
        id: i32,
        hold: Option<sys::ipc::Attached>,
    },
}

/// The objects of the manifest, by id.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    made: BTreeMap<u32, Made>,
}

impl Objects {
    /// The descriptor to map an object through. None for a System V segment.
    pub(crate) fn descriptor(&self, object: u32, writable: bool) -> Option<i32> {
        match self.made.get(&object)? {
            Made::File { read, write, .. } => {
                let fd = if writable { write.as_ref()? } else { read };
                Some(fd.as_raw_fd())
            }
            Made::Segment { .. } => None,
        }
    }

    /// The id of a System V segment. None for another object.
    pub(crate) fn segment(&self, object: u32) -> Option<i32> {
        match self.made.get(&object)? {
            Made::Segment { id, .. } => Some(*id),
            Made::File { .. } => None,
        }
    }

    /// The description that a file was made by ([`made_it`], [`made_memfd`]), once.
    pub(crate) fn take_first(&mut self, object: u32) -> Option<OwnedFd> {
        match self.made.get_mut(&object)? {
            Made::File { first, .. } => first.take(),
            Made::Segment { .. } => None,
        }
    }

    /// A new description of an object.
    pub(crate) fn open(&self, object: u32, flags: OFlag) -> sys::Result<OwnedFd> {
        match self.made.get(&object) {
            Some(Made::File { read, .. }) => sys::fds::reopen(read, flags),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// Why an object could not be made.
pub(crate) fn failed(
    object: &SharedObject,
    doing: &'static str,
) -> impl Fn(Errno) -> ResurrectError {
    let what = describe(object);
    let subject = Some(Subject::Object(object.id));
    move |errno| ResurrectError::Description {
        subject,
        what: what.clone(),
        doing,
        errno,
    }
}

fn describe(object: &SharedObject) -> String {
    match &object.kind {
        SharedKind::Anonymous => format!("shared anonymous memory of {} bytes", object.size),
        SharedKind::Memfd { name, .. } => format!("memfd {}", String::from_utf8_lossy(name)),
        SharedKind::Secret { .. } => format!("secret memory of {} bytes", object.size),
        SharedKind::SystemV(shm) => format!("shared memory segment {}", shm.perm.id),
        SharedKind::Deleted { path, .. } => format!("{} (deleted)", String::from_utf8_lossy(path)),
    }
}

/// Makes every segment, by the processes that had made them. Those that were removed come first and give up
/// their key at once: a later one may have it.
pub(crate) fn make_segments(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for removed in [true, false] {
        for object in &restore.manifest.shared_objects {
            if let SharedKind::SystemV(shm) = &object.kind
                && shm.removed == removed
            {
                let (id, hold) = system_v::make(restore, object, shm)?;
                let made = Made::Segment { id, hold };
                restore.objects.made.insert(object.id, made);
            }
        }
    }
    Ok(())
}

/// Makes every object that is a file, before there is a process.
pub(crate) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let (manifest, store) = (restore.manifest, restore.store);
    let programs = programs(restore);
    for object in &manifest.shared_objects {
        let made = match &object.kind {
            SharedKind::Anonymous => file(object, store, anonymous::make(object)?)?,
            SharedKind::Memfd { seals, .. } if programs.contains(&object.id) => {
                program(object, store, *seals)?
            }
            SharedKind::Memfd { .. } => memory_file(manifest, object, store)?,
            SharedKind::Secret { .. } => secret::make(object, store)?,
            SharedKind::Deleted { .. } => deleted_file(manifest, object, store)?,
            SharedKind::SystemV(_) => continue,
        };
        restore.objects.made.insert(object.id, made);
    }
    let lives = restore.lives();
    let writable: Vec<u32> =
        lives
            .flat_map(|(_, live)| &live.mm.vmas)
            .fold(Vec::new(), |mut found, vma| {
                if let Backing::Object {
                    object,
                    shared: true,
                    ..
                } = &vma.backing
                    && vma.has(b"mw")
                {
                    found.push(*object);
                }
                found
            });
    for object in &manifest.shared_objects {
        if let Some(Made::File { write, .. }) = restore.objects.made.get_mut(&object.id)
            && !writable.contains(&object.id)
        {
            *write = None;
        }
    }
    Ok(())
}

/// The objects that somebody executes.
fn programs(restore: &Restore<'_>) -> Vec<u32> {
    let lives = restore.lives();
    lives.filter_map(|(_, live)| live.mm.exe_object).collect()
}

/// A memfd that is executed (fexecve(3)). Nobody can open it for writing then, so it is sealed here, and who
/// has it open for writing has the description of memfd_create(2), which does not count
/// (mm/memfd.c, `deny_write_access`).
fn program(
    object: &SharedObject,
    store: &dyn PageStore,
    seals: u32,
) -> Result<Made, ResurrectError> {
    let mut made = file(object, store, memfd::make(object)?)?;
    if let Made::File { write, first, .. } = &mut made {
        *first = write.take();
        memfd::seal(object, first.as_ref(), seals)?;
    }
    Ok(made)
}

/// Another memfd. It is not open for writing as far as the kernel counts, as long as only the description of
/// memfd_create(2) is: so that one is kept for who had it.
fn memory_file(
    manifest: &Manifest,
    object: &SharedObject,
    store: &dyn PageStore,
) -> Result<Made, ResurrectError> {
    let fd = memfd::make(object)?;
    let mut of_it = manifest.descriptions.iter();
    let had = of_it.any(|d| {
        matches!(d.kind, DescriptionKind::Memfd { object: id } if id == object.id)
            && made_memfd(d.flags)
    });
    let sealed = matches!(object.kind, SharedKind::Memfd { seals: 1.., .. });
    let keep = |wanted: bool| {
        let kept = wanted.then(|| sys::fds::duplicate(&fd, 3)).transpose();
        kept.map_err(failed(object, "duplicating it"))
    };
    let (had, for_seals) = (keep(had)?, keep(sealed)?);
    let mut made = file(object, store, fd)?;
    if let Made::File { first, sealer, .. } = &mut made {
        (*first, *sealer) = (had, for_seals);
    }
    Ok(made)
}

/// Takes over a new file that is open for reading and writing, with its contents.
fn file(
    object: &SharedObject,
    store: &dyn PageStore,
    write: OwnedFd,
) -> Result<Made, ResurrectError> {
    let pieces = pieces(object, store, object.size)?;
    if object.page_size > PAGE_SIZE_U64 && !pieces.is_empty() {
        fill_mapped(object, &write, &pieces)?;
    } else {
        write_file(&write, &pieces).map_err(failed(object, "writing its contents"))?;
        fill_tail(object, store, &write)?;
        allocate(object, &write)?;
    }
    let read = sys::fds::reopen(&write, OFlag::O_RDONLY)
        .map_err(failed(object, "opening it for reading"))?;
    Ok(Made::File {
        read,
        write: Some(write),
        first: None,
        sealer: None,
    })
}

/// What lies behind the end of a file in its last page: memory for who has mapped that.
fn fill_tail(
    object: &SharedObject,
    store: &dyn PageStore,
    file: &OwnedFd,
) -> Result<(), ResurrectError> {
    let inside = object.size % PAGE_SIZE_U64;
    let page = object.size - inside;
    let holds = |one: &&Extent| (one.va..one.va + one.pages * PAGE_SIZE_U64).contains(&page);
    let Some(extent) = object.extents.iter().find(holds).filter(|_| inside > 0) else {
        return Ok(());
    };
    let frame = extent.frame + (page - extent.va) / PAGE_SIZE_U64;
    let source = store
        .source(frame, 1)
        .ok_or_else(|| failed(object, "looking for its last page")(Errno::ENODATA))?;
    let mapped = memmap2::MmapOptions::new()
        .offset(page)
        .len(PAGE_SIZE)
        .map_raw(file)
        .map_err(|e| failed(object, "mapping its last page")(errno_of(&e)))?;
    let tail = source.behind(usize::try_from(inside).unwrap_or(PAGE_SIZE));
    fill_here(object, mapped.as_ptr() as u64, &[(tail, inside)])
}

/// Blocks that hold nothing.
fn allocate(object: &SharedObject, file: &OwnedFd) -> Result<(), ResurrectError> {
    let (SharedKind::Memfd { allocated, .. } | SharedKind::Deleted { allocated, .. }) = object.kind
    else {
        return Ok(());
    };
    let there = nix::sys::stat::fstat(file).map_err(failed(object, "looking at it"))?;
    let there = u64::try_from(there.st_blocks).unwrap_or(0) * 512;
    let extents = object.extents.iter();
    let filled = extents.map(|one| (one.va, one.pages * PAGE_SIZE_U64));
    sys::holes::allocate(file, filled, allocated.saturating_sub(there))
        .map_err(failed(object, "allocating its blocks"))
}

/// Sets access and modification times.
fn set_times(
    object: &SharedObject,
    fd: &OwnedFd,
    (access, change): (FileTime, FileTime),
) -> Result<(), ResurrectError> {
    let time = |of: FileTime| TimeSpec::new(of.seconds, of.nanoseconds);
    let set = futimens(fd, &time(access), &time(change));
    set.map_err(failed(object, "setting its times"))
}

/// A removed file, or one that never had a name and may still get one.
fn deleted_file(
    manifest: &Manifest,
    object: &SharedObject,
    store: &dyn PageStore,
) -> Result<Made, ResurrectError> {
    let of_it = manifest
        .descriptions
        .iter()
        .filter(|d| matches!(d.kind, DescriptionKind::Deleted { object: id } if id == object.id));
    let maker = of_it.map(|d| d.flags).filter(|flags| made_it(*flags)).max();
    let fd = deleted::make(object, maker.unwrap_or(0))?;
    let kept = if maker.is_some() {
        let kept = sys::fds::duplicate(&fd, 3);
        Some(kept.map_err(failed(object, "duplicating it"))?)
    } else {
        None
    };
    // Mappings are to be made through it, which takes reading.
    let fd = match maker.map(|flags| flags & O_ACCMODE) {
        Some(O_WRONLY) => sys::fds::reopen(&fd, OFlag::O_RDWR)
            .map_err(failed(object, "opening it for writing"))?,
        _ => fd,
    };
    let mut made = file(object, store, fd)?;
    if let Made::File { read, first, .. } = &mut made {
        deleted::set_times(object, read)?;
        *first = kept;
    }
    Ok(made)
}

/// hugetlbfs has no write(2): through a mapping.
fn fill_mapped(
    object: &SharedObject,
    file: &OwnedFd,
    pieces: &[(Source, u64)],
) -> Result<(), ResurrectError> {
    let mapped = memmap2::MmapOptions::new()
        .len(usize::try_from(object.size).unwrap_or(0))
        .map_raw(file)
        .map_err(|e| failed(object, "mapping it")(errno_of(&e)))?;
    let start = mapped.as_ptr() as u64;
    fill_here(object, start, pieces)
}

/// Copies pieces to an address of this process.
fn fill_here(
    object: &SharedObject,
    start: u64,
    pieces: &[(Source, u64)],
) -> Result<(), ResurrectError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let placed: Vec<(Source, u64)> = pieces
        .iter()
        .map(|(source, offset)| (*source, start + offset))
        .collect();
    for piece in &placed {
        write_process(me, core::slice::from_ref(piece))
            .map_err(failed(object, "writing its contents"))?;
    }
    Ok(())
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Where the contents of an object are, with their offsets; nothing from offset `size` on.
fn pieces(
    object: &SharedObject,
    store: &dyn PageStore,
    size: u64,
) -> Result<Vec<(Source, u64)>, ResurrectError> {
    /// A call moves less than 2 GiB.
    const PIECE: u64 = 8192;
    let mut found = Vec::new();
    for extent in &object.extents {
        let mut done = 0;
        while done < extent.pages {
            let pages = PIECE.min(extent.pages - done);
            let frame = extent.frame + done;
            let offset = extent.va + done * PAGE_SIZE_U64;
            let missing = failed(object, "looking for its pages");
            let source = store
                .source(frame, pages)
                .ok_or_else(|| missing(Errno::ENODATA))?;
            let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            found.push((source.first(inside), offset));
            done += pages;
        }
    }
    Ok(found)
}

/// What only now may be: seals, and the removal of segments. Nothing is open for writing any more.
pub(crate) fn finish(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for made in restore.objects.made.values_mut() {
        if let Made::File { write, .. } = made {
            *write = None;
        }
    }
    let programs = programs(restore);
    let manifest = restore.manifest;
    for object in &manifest.shared_objects {
        if let Some(Made::File { read, .. }) = restore.objects.made.get(&object.id) {
            memfd::finish(object, read)?;
            secret::finish(object, read)?;
        }
        match (&object.kind, restore.objects.made.get_mut(&object.id)) {
            (SharedKind::Memfd { seals, .. }, Some(Made::File { sealer, .. }))
                if !programs.contains(&object.id) =>
            {
                memfd::seal(object, sealer.as_ref(), *seals)?;
            }
            (SharedKind::SystemV(shm), Some(Made::Segment { id, hold })) => {
                let (id, hold) = (*id, hold.take());
                system_v::finish(restore, object, shm, id, hold)?;
            }
            _ => {}
        }
    }
    // Whoever watches files is to see nothing of this process.
    restore.objects.made.clear();
    Ok(())
}
