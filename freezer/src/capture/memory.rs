//! An address space's mappings and layout.

use super::attributes::number;
use crate::proc::{self, Mapping, Stat, parse_smaps};
use crate::{FreezerError, Refusal, files};
use persist_mem::manifest::{AddressSpace, Backing, FileRef, Layout, Vma};
use sys::Pid;
use sys::vm::ProcMem;

pub(super) fn mappings(pid: Pid) -> Result<Vec<Mapping>, FreezerError> {
    let text = proc::read(pid, "smaps")?;
    parse_smaps(&text).ok_or_else(|| FreezerError::Format {
        pid,
        what: "smaps".into(),
        text: "a line has an unknown form".into(),
    })
}

pub(super) fn capture(
    pid: Pid,
    stat: &Stat,
    maps: &[Mapping],
) -> Result<AddressSpace, FreezerError> {
    let mut vmas = Vec::new();
    let mut vdso = Vec::new();
    for map in maps.iter().filter(|map| map.name != b"[vsyscall]") {
        let vma = vma(map).map_err(|reason| FreezerError::refuse(pid, place(map), reason))?;
        if vma.backing == Backing::Vdso {
            let len = usize::try_from(vma.len()).unwrap_or(0);
            let mem = ProcMem::open(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
            vdso = mem
                .read_vec(vma.start, len)
                .map_err(FreezerError::call(pid, "reading its vdso"))?;
        }
        vmas.push(vma);
    }
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
        exe: files::reference(pid, "exe")?,
        vmas,
        extents: Vec::new(),
        vdso,
        coredump_filter: number(pid, "coredump_filter", 16)?.cast_unsigned(),
        thp_disabled: false,
    })
}

fn place(map: &Mapping) -> String {
    format!(
        "vma {:x}-{:x} {}",
        map.start,
        map.end,
        String::from_utf8_lossy(&map.name)
    )
}

fn vma(map: &Mapping) -> Result<Vma, String> {
    Ok(Vma {
        start: map.start,
        end: map.end,
        prot: map.prot(),
        flags: map.flags.clone(),
        backing: backing(map)?,
    })
}

/// Flags whose mappings are not carried, and what they mean.
const REFUSED_FLAGS: [(&[u8; 2], &str); 9] = [
    (b"ht", "huge pages of hugetlbfs are not carried"),
    (b"io", "device memory is not carried"),
    (b"pf", "device memory is not carried"),
    (b"um", "userfaultfd ranges are not carried"),
    (b"uw", "userfaultfd ranges are not carried"),
    (b"ui", "userfaultfd ranges are not carried"),
    (b"dp", "droppable mappings are not carried"),
    (b"sl", "sealed mappings are not carried"),
    (b"ss", "shadow stacks are not carried"),
];

fn backing(map: &Mapping) -> Result<Backing, String> {
    match map.name.as_slice() {
        b"[vdso]" => return Ok(Backing::Vdso),
        name if name.starts_with(b"[vvar") => return Ok(Backing::Vvar),
        _ => {}
    }
    if let Some((_, why)) = REFUSED_FLAGS
        .iter()
        .find(|(flag, _)| map.flags.contains(flag))
    {
        return Err((*why).into());
    }
    let shared = map.perms[3] == b's';
    if map.inode == 0 && !shared {
        let name = map
            .name
            .strip_prefix(b"[anon:")
            .and_then(|name| name.strip_suffix(b"]"));
        return Ok(Backing::Anonymous {
            name: name.unwrap_or(b"").to_vec(),
        });
    }
    let path = map.name.as_slice();
    if path.ends_with(b" (deleted)") || !path.starts_with(b"/") {
        return Err(if shared {
            "shared memory without a file on disk is not carried".into()
        } else {
            "the mapped file has been removed or replaced on disk".into()
        });
    }
    let file = file(map)?;
    Ok(Backing::File {
        file,
        offset: map.offset,
        shared,
    })
}

fn file(map: &Mapping) -> Result<FileRef, String> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&map.name));
    let found = std::fs::metadata(path).map_err(|e| format!("the mapped file: {e}"))?;
    if found.ino() != map.inode {
        return Err("another file has taken the mapped file's place on disk".into());
    }
    if !found.is_file() {
        return Err("device memory is not carried".into());
    }
    Ok(FileRef {
        path: map.name.clone(),
        inode: map.inode,
        size: found.size(),
    })
}

/// What of a process's memory is not carried, found without stopping it.
pub(crate) fn refusals(pid: Pid) -> Result<Vec<Refusal>, FreezerError> {
    let comm = proc::comm(pid);
    let refused = mappings(pid)?
        .into_iter()
        .filter(|map| map.name != b"[vsyscall]");
    Ok(refused
        .filter_map(|map| {
            let reason = vma(&map).err()?;
            Some(Refusal {
                pid,
                comm: comm.clone(),
                resource: place(&map),
                reason,
            })
        })
        .collect())
}
