//! An address space's mappings and layout.

use super::{aio, attributes::number, mappings, packet_rings, uring};
use crate::objects::{self, ObjectError, Objects};
use crate::proc::{self, Mapping, Stat};
use crate::{FreezerError, Refusal, files};
use persist_mem::manifest::{AddressSpace, Backing, FileRef, Layout, SharedKind, Vma};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use sys::Pid;
use sys::limits::MAX_MAP_COUNT;
use sys::vm::ProcMem;

pub(super) fn capture(
    stat: &Stat,
    (pid, mem): (Pid, &ProcMem),
    maps: &[Mapping],
    objects: &mut Objects,
) -> Result<AddressSpace, FreezerError> {
    let mut vmas: Vec<Vma> = Vec::new();
    let mut vdso = Vec::new();
    let (mut aio, mut rings, mut packets) = (Vec::new(), Vec::new(), Vec::new());
    for map in maps {
        if uring::is_one(map) {
            let ring = uring::mapping(pid, map);
            rings.push(ring.map_err(|why| FreezerError::refuse(pid, place(map), why))?);
            continue;
        }
        if packet_rings::is_one(map) {
            let ring = packet_rings::mapping(pid, map);
            packets.push(ring.map_err(|why| FreezerError::refuse(pid, place(map), why))?);
            continue;
        }
        if aio::is_ring(map) {
            let ring = aio::ring(pid, map);
            aio.push(ring.map_err(|why| FreezerError::refuse(pid, place(map), why))?);
            continue;
        }
        let vma = vma(pid, map, vmas.last(), objects)
            .map_err(|e| FreezerError::refuse(pid, place(map), e.reason()))?;
        if vma.backing == Backing::Vdso {
            let len = usize::try_from(vma.len()).unwrap_or(0);
            vdso = mem
                .read_vec(vma.start, len)
                .map_err(FreezerError::call(pid, "reading its vdso"))?;
        }
        vmas.push(vma);
    }
    let (exe, exe_object) = executable(pid, objects)?;
    Ok(AddressSpace {
        layout: Layout {
            start_code: stat.address(26),
            end_code: stat.address(27),
            start_data: stat.address(45),
            end_data: stat.address(46),
            start_brk: stat.address(47),
            brk: 0,
            start_stack: stat.address(28),
            arg_start: stat.address(48),
            arg_end: stat.address(49),
            env_start: stat.address(50),
            env_end: stat.address(51),
        },
        auxv: proc::read(pid, "auxv")?,
        exe,
        exe_object,
        vmas,
        aio,
        rings,
        packet_rings: packets,
        vdso,
        coredump_filter: number(pid, "coredump_filter", 16)?.cast_unsigned(),
        ..AddressSpace::default()
    })
}

/// The executable: by its path, or as an object when that no longer leads to it.
fn executable(pid: Pid, objects: &mut Objects) -> Result<(FileRef, Option<u32>), FreezerError> {
    let path = proc::link(pid, "exe")?;
    if !path.ends_with(DELETED) {
        return Ok((files::reference_by(pid, "exe", path)?, None));
    }
    let link = proc::path(pid, "exe");
    let object = objects
        .find(pid, &link, |file| objects::deleted(file, &path))
        .map_err(|e| FreezerError::refuse(pid, "exe", e.reason()))?;
    let file = FileRef {
        path: path[..path.len() - DELETED.len()].to_vec(),
        ..FileRef::default()
    };
    Ok((file, Some(object)))
}

fn place(map: &Mapping) -> String {
    format!(
        "vma {:x}-{:x} {}",
        map.start,
        map.end,
        String::from_utf8_lossy(&map.name)
    )
}

const DELETED: &[u8] = b" (deleted)";

/// A mapping; the one before it is often of the same file.
fn vma(
    pid: Pid,
    map: &Mapping,
    before: Option<&Vma>,
    objects: &mut Objects,
) -> Result<Vma, ObjectError> {
    let backing = backing(pid, map, before, objects)?;
    told_obstacle(map, &backing).map_or(Ok(()), |why| Err(ObjectError::Refused(why.into())))?;
    let mut flags = map.flags.clone();
    // What tells them has it told again.
    flags.retain(|flag| !files::userfault::is_flag(flag));
    let secret = matches!(backing, Backing::Object { object, .. } if objects.is_secret(object));
    if secret {
        // It always is locked, and mlock(2) fails.
        flags.retain(|flag| flag != b"lo");
    }
    Ok(Vma {
        start: map.start,
        end: map.end,
        prot: map.prot(),
        flags,
        protection_key: map.protection_key.unwrap_or(0),
        page_size: map.page_size,
        lock_on_fault: !secret && locked_on_fault(map),
        backing,
    })
}

/// Why memory whose faults are told (userfaultfd(2)) is not carried.
fn told_obstacle(map: &Mapping, backing: &Backing) -> Option<&'static str> {
    let (missing, writes) = (map.has(b"um"), map.has(b"uw"));
    if !missing && !writes {
        None
    } else if map.page_size > sys::PAGE_SIZE_U64 {
        Some("huge pages (hugetlbfs) whose faults are told (userfaultfd) are not carried")
    } else if map.has(b"lo") {
        Some("locked memory whose faults are told (userfaultfd) is not carried")
    } else if writes && !matches!(backing, Backing::Anonymous { .. }) {
        Some("shared memory whose writes are told (userfaultfd) is not carried")
    } else {
        None
    }
}

/// `MLOCK_ONFAULT`, which smaps calls `lf`. Older kernels have no name for that flag, but for all others.
fn locked_on_fault(map: &Mapping) -> bool {
    map.has(b"lo") && (map.has(b"lf") || map.has(b"??"))
}

/// Flags whose mappings are not carried, and what they mean.
const REFUSED_FLAGS: [(&[u8; 2], &str); 4] = [
    (b"io", "device memory is not carried"),
    (b"pf", "device memory is not carried"),
    (
        b"ui",
        "memory whose minor faults are told (userfaultfd) is not carried",
    ),
    (b"ss", "shadow stacks are not carried"),
];

fn backing(
    pid: Pid,
    map: &Mapping,
    before: Option<&Vma>,
    objects: &mut Objects,
) -> Result<Backing, ObjectError> {
    match map.name.as_slice() {
        b"[vdso]" => return Ok(Backing::Vdso),
        name if name.starts_with(b"[vvar") => return Ok(Backing::Vvar),
        _ => {}
    }
    if let Some((_, why)) = REFUSED_FLAGS.iter().find(|(flag, _)| map.has(flag)) {
        return Err(ObjectError::Refused((*why).into()));
    }
    let name = map.name.as_slice();
    let private_huge = name == b"/anon_hugepage (deleted)" && !map.shared();
    if private_huge || (map.inode == 0 && !map.shared()) {
        return Ok(Backing::Anonymous {
            name: given_name(name, b"[anon:"),
        });
    }
    let same = before.and_then(|before| same_file(map, before));
    if let Some(file) = same.map_or_else(|| file(pid, map), |file| Ok(Some(OnDisk::File(file))))? {
        return Ok(match file {
            OnDisk::File(file) => Backing::File {
                file,
                offset: map.offset,
                shared: map.shared(),
                gone: None,
            },
            OnDisk::Zero => Backing::Zero { offset: map.offset },
        });
    }
    if let Some((file, gone)) = renamed(pid, map) {
        return Ok(Backing::File {
            file,
            offset: map.offset,
            shared: map.shared(),
            gone: Some(gone),
        });
    }
    if let Some(object) = files::secret::mapped(pid, map, objects)? {
        return Ok(Backing::Object {
            object,
            offset: map.offset,
            shared: true,
            name: Vec::new(),
        });
    }
    let kind = |file: &File| kind(map, file);
    let link = proc::path(pid, &map.map_file());
    let object = objects.find(pid, &link, kind)?;
    Ok(Backing::Object {
        object,
        offset: map.offset,
        shared: map.shared(),
        name: given_name(name, b"[anon_shmem:"),
    })
}

/// The name that `PR_SET_VMA_ANON_NAME` gave, or nothing.
fn given_name(name: &[u8], prefix: &[u8]) -> Vec<u8> {
    name.strip_prefix(prefix)
        .and_then(|name| name.strip_suffix(b"]"))
        .unwrap_or(b"")
        .to_vec()
}

/// What kind of object a mapping without a path shows.
fn kind(map: &Mapping, file: &File) -> Result<SharedKind, String> {
    let name = map.name.as_slice();
    let anonymous = name == b"/dev/zero (deleted)"
        || name == b"/anon_hugepage (deleted)"
        || name.starts_with(b"[anon_shmem:");
    if anonymous {
        return Ok(SharedKind::Anonymous);
    }
    if name.starts_with(b"/SYSV") && name.ends_with(DELETED) {
        return objects::system_v(map.inode, name);
    }
    if name.starts_with(b"/memfd:") {
        return objects::memfd(file, name);
    }
    if !name.starts_with(b"/") {
        return Err("this kind of memory is not carried".into());
    }
    if name.starts_with(b"/[aio]") {
        return Err("contexts of asynchronous I/O (io_setup) are not carried".into());
    }
    if !name.ends_with(DELETED) {
        return Err("its path leads to another file, or to none".into());
    }
    let linked = file.metadata().is_ok_and(|meta| meta.nlink() > 0);
    if linked && map.shared() {
        return Err(
            "the file has lost this name, is mapped shared, and none of its others is found".into(),
        );
    }
    objects::deleted(file, name)
}

/// The file of a mapping that has lost the name it was mapped by and has another one, as the semaphores of
/// sem_open(3) do; and the name that it has lost.
fn renamed(pid: Pid, map: &Mapping) -> Option<(FileRef, Vec<u8>)> {
    let gone = map.name.strip_suffix(DELETED)?;
    if !gone.starts_with(b"/") || map.page_size > sys::PAGE_SIZE_U64 {
        return None;
    }
    let meta = proc::metadata(pid, &map.map_file()).ok()?;
    if meta.nlink() == 0 || !meta.is_file() {
        return None;
    }
    let (dev, inode) = (meta.dev(), meta.ino());
    let path = files::other_name(files::Identity { dev, inode }, gone)?;
    let file = FileRef {
        path: path.into_os_string().into_vec(),
        inode,
        size: meta.size(),
    };
    Some((file, gone.to_vec()))
}

enum OnDisk {
    File(FileRef),
    Zero,
}

/// The file of the mapping before, when it is that of this one, too.
fn same_file(map: &Mapping, before: &Vma) -> Option<FileRef> {
    let Backing::File {
        file, gone: None, ..
    } = &before.backing
    else {
        return None;
    };
    let same = file.inode == map.inode && file.path == map.name;
    (same && map.page_size <= sys::PAGE_SIZE_U64).then(|| file.clone())
}

/// The file of a mapping, when its path still leads to it.
fn file(pid: Pid, map: &Mapping) -> Result<Option<OnDisk>, ObjectError> {
    if !map.name.starts_with(b"/") {
        return Ok(None);
    }
    let path = std::path::Path::new(OsStr::from_bytes(&map.name));
    let Ok(found) = std::fs::metadata(path) else {
        return Ok(None);
    };
    if found.ino() != map.inode || !on_device_of(pid, map, &found) {
        return Ok(None);
    }
    let refused = |why: &str| Err(ObjectError::Refused(why.into()));
    let zero = nix::sys::stat::makedev(1, 5);
    if found.file_type().is_char_device() && found.rdev() == zero && !map.shared() {
        return Ok(Some(OnDisk::Zero));
    }
    if !found.is_file() {
        return refused("device memory is not carried");
    }
    if map.page_size > sys::PAGE_SIZE_U64 {
        return refused("files of hugetlbfs are not carried");
    }
    Ok(Some(OnDisk::File(FileRef {
        path: map.name.clone(),
        inode: map.inode,
        size: found.size(),
    })))
}

/// Whether a file is on the device of a mapping's: another mount at its path may have a file of the same number. Some
/// file systems (btrfs, overlays) tell stat(2) another device than `/proc/PID/maps`.
fn on_device_of(pid: Pid, map: &Mapping, found: &std::fs::Metadata) -> bool {
    found.dev() == map.device
        || proc::metadata(pid, &map.map_file())
            .is_ok_and(|held| (held.dev(), held.ino()) == (found.dev(), found.ino()))
}

/// Why so many mappings cannot be made again: there must be some more for a moment, for which a restore raises the
/// limit.
fn too_many(count: usize) -> Option<String> {
    const MORE: usize = 256;
    let limit: usize = std::fs::read_to_string(MAX_MAP_COUNT)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    if count + MORE <= limit {
        return None;
    }
    let why = std::fs::OpenOptions::new()
        .write(true)
        .open(MAX_MAP_COUNT)
        .err()?;
    Some(format!(
        "{count} mappings leave no room below {MAX_MAP_COUNT}, which cannot be raised: {why}"
    ))
}

/// What of a process's memory is not carried, found without stopping it.
pub(crate) fn refusals(pid: Pid, objects: &mut Objects) -> Result<Vec<Refusal>, FreezerError> {
    let comm = proc::comm(pid);
    let refuse = |resource: String, error: ObjectError| match error {
        // It runs: what was there a moment ago may be gone.
        ObjectError::Io(cause) if cause.kind() == std::io::ErrorKind::NotFound => None,
        error => Some(Refusal {
            pid,
            comm: comm.clone(),
            resource,
            reason: error.reason(),
        }),
    };
    let maps = mappings::of(pid)?;
    let mut found: Vec<Refusal> = maps
        .iter()
        .filter_map(|map| {
            let error = if uring::is_one(map) {
                ObjectError::Refused(uring::mapping(pid, map).err()?)
            } else if packet_rings::is_one(map) {
                ObjectError::Refused(packet_rings::mapping(pid, map).err()?)
            } else if aio::is_ring(map) {
                ObjectError::Refused(aio::refusal(pid, map)?)
            } else {
                vma(pid, map, None, objects).err()?
            };
            refuse(place(map), error)
        })
        .collect();
    if let Some(reason) = too_many(maps.len()) {
        found.extend(refuse("mappings".into(), ObjectError::Refused(reason)));
    }
    if let Some(reason) = uring::refusal(pid) {
        let error = ObjectError::Refused(reason);
        found.extend(refuse("io_uring".into(), error));
    }
    match executable(pid, objects) {
        Err(FreezerError::Refused(more)) => found.extend(more),
        other => drop(other?),
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_on_another_device_is_another_one() {
        let own = Pid(nix::unistd::getpid().as_raw());
        let exe = std::env::current_exe().unwrap();
        let maps = mappings::of(own).unwrap();
        let name = exe.as_os_str().as_bytes();
        let map = maps.iter().find(|map| map.name == name).unwrap();
        let on = |path: &str| on_device_of(own, map, &std::fs::metadata(path).unwrap());
        assert!(on(exe.to_str().unwrap()));
        assert!(!on("/proc/version"));
    }
}
