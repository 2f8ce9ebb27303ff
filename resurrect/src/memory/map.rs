//! Making the mappings, writable as long as pages are still to come.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, Backing, FileRef, Vma};
use sys::Pid;
use sys::batch::{Arg, CallIndex};
use sys::tracee::Tracee;

const PROT_WRITE: u32 = 2;
const MAP_SHARED: u64 = 0x1;
const MAP_PRIVATE: u64 = 0x2;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const AT_FDCWD: i32 = -100;
const O_RDWR: i32 = 2;
const O_CLOEXEC: i32 = 0o2_000_000;
const O_LARGEFILE: i32 = 0o100_000;

/// A file that is open in the process while its mappings are made.
struct OpenFile<'a> {
    file: &'a FileRef,
    writable: bool,
    fd: CallIndex,
}

/// Makes every mapping of an address space.
pub(super) fn make(pid: Pid, leader: &mut Tracee, mm: &AddressSpace) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(pid, "making its mappings", leader);
    let mut open: Option<OpenFile<'_>> = None;
    for vma in &mm.vmas {
        let prot = u64::from(vma.prot | if has_pages(vma, mm) { PROT_WRITE } else { 0 });
        let place = [vma.start.into(), vma.len().into(), prot.into()];
        match &vma.backing {
            Backing::Vdso | Backing::Vvar => {}
            Backing::Anonymous { .. } => {
                let flags = MAP_PRIVATE | MAP_ANONYMOUS | extra_flags(vma);
                map(&mut calls, place, flags, (-1).into(), 0);
            }
            Backing::File {
                file,
                offset,
                shared,
            } => {
                let writable = *shared && vma.has(b"mw");
                let same = |o: &OpenFile<'_>| o.file == file && o.writable == writable;
                let fd = match open.take().filter(same) {
                    Some(o) => o.fd,
                    None => open_file(&mut calls, file, writable)?,
                };
                let kind = if *shared { MAP_SHARED } else { MAP_PRIVATE };
                map(
                    &mut calls,
                    place,
                    kind | extra_flags(vma),
                    fd.into(),
                    *offset,
                );
                open = Some(OpenFile { file, writable, fd });
            }
            Backing::Object { .. } | Backing::Zero { .. } => {
                return Err(ResurrectError::Impossible {
                    pid,
                    why: "shared memory without a file cannot be mapped yet".into(),
                });
            }
        }
        if calls.full() {
            open = None;
            close_all(&mut calls)?;
        }
    }
    close_all(&mut calls)
}

/// Whether saved pages lie in the mapping.
pub(super) fn has_pages(vma: &Vma, mm: &AddressSpace) -> bool {
    let from = mm
        .extents
        .partition_point(|e| e.va + e.pages * sys::PAGE_SIZE_U64 <= vma.start);
    mm.extents.get(from).is_some_and(|e| e.va < vma.end)
}

fn extra_flags(vma: &Vma) -> u64 {
    let flag = |name: &[u8; 2], bit| if vma.has(name) { bit } else { 0 };
    MAP_FIXED_NOREPLACE | flag(b"gd", MAP_GROWSDOWN) | flag(b"nr", MAP_NORESERVE)
}

fn map(calls: &mut Calls<'_>, place: [Arg; 3], flags: u64, fd: Arg, offset: u64) {
    let [start, len, prot] = place;
    let args = [start, len, prot, flags.into(), fd, offset.into()];
    calls.batch().call("mapping memory", nr::MMAP, args);
}

fn open_file(
    calls: &mut Calls<'_>,
    file: &FileRef,
    writable: bool,
) -> Result<CallIndex, ResurrectError> {
    crate::files::path::check_same(file)?;
    let mode = if writable { O_RDWR } else { 0 };
    let path = calls.batch().string(&file.path);
    let flags = mode | O_CLOEXEC | O_LARGEFILE;
    let args = [AT_FDCWD.into(), path.into(), flags.into()];
    Ok(calls
        .batch()
        .call("opening a mapped file", nr::OPENAT, args))
}

/// Makes what is collected, and closes the files opened for it: no other descriptor is there yet but the
/// highest, through which the others will come.
fn close_all(calls: &mut Calls<'_>) -> Result<(), ResurrectError> {
    const BELOW: i32 = 63;
    let args = [0.into(), BELOW.into(), 0.into()];
    calls
        .batch()
        .call("closing mapped files", nr::CLOSE_RANGE, args);
    calls.flush()
}
