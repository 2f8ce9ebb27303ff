//! Making the mappings, writable as long as pages are still to come.

use super::inherit::is_segment;
use super::{Builder, apart, removed_name, segments};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::error::Subject;
use nix::fcntl::OFlag;
use persist_mem::manifest::{AddressSpace, Backing, FileRef, Lock, LockHolder, Manifest, Vma};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::{Arg, CallIndex};
use sys::{PAGE_SIZE_U64, Pid};

const PROT_READ: u32 = 1;
pub(super) const PROT_WRITE: u32 = 2;
const MAP_SHARED: u64 = 0x1;
const MAP_PRIVATE: u64 = 0x2;
/// Since 6.11; instead of `MAP_PRIVATE`.
const MAP_DROPPABLE: u64 = 0x8;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_HUGE_SHIFT: u32 = 26;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const LOCK_SH_NB: i32 = 1 | 4;
const LOCK_EX_NB: i32 = 2 | 4;
const AT_FDCWD: i32 = -100;
const O_RDWR: i32 = 2;
const O_CLOEXEC: i32 = 0o2_000_000;
const O_LARGEFILE: i32 = 0o100_000;

/// What a mapping is made from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source<'a> {
    File(&'a FileRef),
    /// By the name that it has lost.
    Removed(&'a FileRef, &'a [u8]),
    Object(u32),
    Zero,
}

/// A file that is open in the process while its mappings are made.
struct OpenFile<'a> {
    source: Source<'a>,
    writable: bool,
    fd: CallIndex,
}

/// Anonymous mappings that touch and are made alike: one until protections and advice part them again.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    prot: u32,
    flags: u64,
}

struct Mapper<'a, 'b> {
    calls: Calls<'a>,
    builder: &'a Builder<'b>,
    open: Option<OpenFile<'a>>,
    /// Anonymous memory that waits for what follows it.
    run: Option<Run>,
    /// The next mapping is one of its own beside the one before it.
    apart: bool,
    /// Further descriptions of objects, and of files without their names, until the calls are made that take them.
    further: Vec<OwnedFd>,
}

/// The locks that a process's mappings hold.
pub(super) fn locks(manifest: &Manifest, pid: Pid) -> BTreeMap<u64, bool> {
    let lock = |lock: &Lock| match lock.holder {
        LockHolder::Mapping { pid: of, start } if of == pid => Some((start, lock.write)),
        _ => None,
    };
    manifest.locks.iter().filter_map(lock).collect()
}

/// Makes mappings of an address space, all but those of System V segments ([`segments`]).
pub(super) fn make(
    builder: &Builder<'_>,
    leader: &mut sys::tracee::Tracee,
    vmas: &[Vma],
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let plan = apart::plan(vmas, mm, |len| apart::free(builder, mm, len));
    for (group, aside) in plan.aside.iter().enumerate() {
        let aside: Vec<&Vma> = aside.iter().map(|(vma, _)| *vma).collect();
        make_some(builder, leader, &aside, mm)?;
        plan.move_aside(group, builder, leader)?;
    }
    make_some(builder, leader, &plan.rest, mm)?;
    plan.move_back(builder, leader)
}

fn make_some(
    builder: &Builder<'_>,
    leader: &mut sys::tracee::Tracee,
    vmas: &[&Vma],
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut mapper = Mapper {
        calls: Calls::new(builder.pid, "making its mappings", leader),
        builder,
        open: None,
        run: None,
        apart: false,
        further: Vec::new(),
    };
    let mut before: Option<&Vma> = None;
    for vma in vmas {
        mapper.apart = before.is_some_and(|before| apart::would_merge(before, vma, mm));
        mapper.map(vma, mm)?;
        before = Some(vma);
        if mapper.calls.full() {
            mapper.flush()?;
        }
    }
    mapper.flush()
}

impl<'a> Mapper<'a, '_> {
    fn map(&mut self, vma: &'a Vma, mm: &AddressSpace) -> Result<(), ResurrectError> {
        match &vma.backing {
            Backing::Vdso | Backing::Vvar => Ok(()),
            Backing::Anonymous { .. } => {
                let kind = if vma.has(b"dp") {
                    MAP_DROPPABLE
                } else {
                    MAP_PRIVATE
                };
                let flags = kind | MAP_ANONYMOUS | huge_flags(vma);
                self.anonymous(vma, mm, flags);
                Ok(())
            }
            Backing::File {
                file,
                offset,
                shared,
                gone,
            } => {
                let source = match gone {
                    Some(gone) => Source::Removed(file, gone),
                    None => Source::File(file),
                };
                self.map_file(vma, mm, source, *shared, *offset)
            }
            Backing::Object {
                object,
                offset,
                shared,
                ..
            } => {
                if is_segment(vma, self.builder.saved_objects) {
                    return Ok(());
                }
                self.map_file(vma, mm, Source::Object(*object), *shared, *offset)
            }
            Backing::Zero { offset } => self.map_file(vma, mm, Source::Zero, false, *offset),
        }
    }

    fn map_file(
        &mut self,
        vma: &Vma,
        mm: &AddressSpace,
        source: Source<'a>,
        shared: bool,
        offset: u64,
    ) -> Result<(), ResurrectError> {
        let writable = shared && vma.has(b"mw");
        let same = |o: &OpenFile<'_>| o.source == source && o.writable == writable;
        let lock = self.builder.locks.get(&vma.start);
        let fd = match &self.open {
            Some(open) if same(open) && !self.apart && lock.is_none() => open.fd,
            _ => self.open(source, writable)?,
        };
        if let Some(write) = lock {
            let how = if *write { LOCK_EX_NB } else { LOCK_SH_NB };
            let batch = self.calls.batch();
            batch.call("locking a mapped file", nr::FLOCK, [fd.into(), how.into()]);
        }
        let kind = if shared { MAP_SHARED } else { MAP_PRIVATE };
        self.call(vma, mm, kind, fd.into(), offset);
        Ok(())
    }

    fn call(&mut self, vma: &Vma, mm: &AddressSpace, kind: u64, fd: Arg, offset: u64) {
        self.make_run();
        let run = self.one(vma, mm, kind);
        self.call_for(run, fd, offset);
    }

    /// Adds to the run before it where the kernel would make one mapping of both.
    fn anonymous(&mut self, vma: &Vma, mm: &AddressSpace, kind: u64) {
        /// Of these each call makes a mapping of its own.
        const ALONE: u64 = MAP_GROWSDOWN | MAP_HUGETLB | MAP_DROPPABLE;
        /// What the kernel may refuse in one piece (overcommit) is not made one.
        const MOST: u64 = 64 << 20;
        let one = self.one(vma, mm, kind);
        match &mut self.run {
            Some(run)
                if run.end == one.start
                    && one.end - run.start <= MOST
                    && (run.prot, run.flags) == (one.prot, one.flags)
                    && one.flags & ALONE == 0 =>
            {
                run.end = one.end;
            }
            _ => {
                self.make_run();
                self.run = Some(one);
            }
        }
    }

    fn one(&self, vma: &Vma, mm: &AddressSpace, kind: u64) -> Run {
        Run {
            start: vma.start,
            end: vma.end,
            prot: made_with(vma, mm, self.builder),
            flags: kind | extra_flags(vma),
        }
    }

    fn make_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.call_for(run, (-1).into(), 0);
        }
    }

    fn call_for(&mut self, run: Run, fd: Arg, offset: u64) {
        let args = [
            run.start.into(),
            (run.end - run.start).into(),
            u64::from(run.prot).into(),
            run.flags.into(),
            fd,
            offset.into(),
        ];
        self.calls.batch().call("mapping memory", nr::MMAP, args);
    }

    fn open(&mut self, source: Source<'a>, writable: bool) -> Result<CallIndex, ResurrectError> {
        self.close();
        let mode = if writable { O_RDWR } else { 0 };
        let flags = mode | O_CLOEXEC | O_LARGEFILE;
        let path = match source {
            Source::Object(_) | Source::Zero => b"/dev/zero",
            Source::File(file) | Source::Removed(file, _) => {
                crate::files::path::check_same(file)
                    .map_err(|error| error.about(Subject::Process(self.builder.pid)))?;
                file.path.as_slice()
            }
        };
        let taken = match source {
            Source::Object(object) => Some(self.take(object, writable)?),
            Source::Removed(file, gone) => {
                let opened = removed_name::open(file, gone, OFlag::from_bits_retain(flags));
                opened.ok().map(|opened| self.take_further(opened))
            }
            Source::File(_) | Source::Zero => None,
        };
        let fd = taken.unwrap_or_else(|| {
            let batch = self.calls.batch();
            let path = batch.string(path);
            let args = [AT_FDCWD.into(), path.into(), flags.into()];
            batch.call("opening a mapped file", nr::OPENAT, args)
        });
        self.open = Some(OpenFile {
            source,
            writable,
            fd,
        });
        Ok(fd)
    }

    /// A copy of this process's descriptor of an object.
    fn take(&mut self, object: u32, writable: bool) -> Result<CallIndex, ResurrectError> {
        let pid = self.builder.pid;
        let objects = self.builder.objects;
        let theirs = objects.descriptor(object, writable);
        let mut theirs = theirs.ok_or_else(|| ResurrectError::Impossible {
            pid,
            why: format!("memory object {object} is not there"),
        })?;
        if self.apart {
            let mode = if writable {
                OFlag::O_RDWR
            } else {
                OFlag::O_RDONLY
            };
            let further = objects.open(object, mode | OFlag::O_CLOEXEC);
            let doing = "opening a memory object again";
            let further = further.map_err(ResurrectError::call(pid, doing))?;
            theirs = further.as_raw_fd();
            self.further.push(further);
        }
        let args = [self.builder.pidfd.into(), theirs.into(), 0.into()];
        let batch = self.calls.batch();
        Ok(batch.call("taking a memory object", nr::PIDFD_GETFD, args))
    }

    /// A copy of this process's descriptor of a file that is opened for a mapping.
    fn take_further(&mut self, theirs: OwnedFd) -> CallIndex {
        let number = theirs.as_raw_fd();
        self.further.push(theirs);
        let args = [self.builder.pidfd.into(), number.into(), 0.into()];
        let batch = self.calls.batch();
        batch.call("taking a mapped file", nr::PIDFD_GETFD, args)
    }

    fn flush(&mut self) -> Result<(), ResurrectError> {
        self.make_run();
        self.close();
        self.calls.flush()?;
        self.further.clear();
        Ok(())
    }

    /// No other descriptor shall be there but the one through which the others will come.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let batch = self.calls.batch();
            batch.call("closing a mapped file", nr::CLOSE, [open.fd.into()]);
        }
    }
}

/// Whether saved pages lie in the mapping.
pub(super) fn has_pages(vma: &Vma, mm: &AddressSpace) -> bool {
    let from = mm
        .extents
        .partition_point(|e| e.va + e.pages * PAGE_SIZE_U64 <= vma.start);
    mm.extents.get(from).is_some_and(|e| e.va < vma.end)
}

/// The protection that a mapping has until [`super::protect`] sets the one it had. Anonymous memory is made alike: what
/// has been protected since a child was forked is one mapping with its neighbours there.
pub(super) fn made_with(vma: &Vma, mm: &AddressSpace, builder: &Builder<'_>) -> u32 {
    if is_segment(vma, builder.saved_objects) {
        return segments::attached_with(vma);
    }
    let anonymous = matches!(vma.backing, Backing::Anonymous { .. });
    // What reserves nothing may be writable without counting.
    let writable = has_pages(vma, mm) || apart::accounted(vma) || (anonymous && vma.has(b"nr"));
    match (writable, anonymous) {
        (true, true) => PROT_READ | PROT_WRITE,
        (true, false) => vma.prot | PROT_WRITE,
        (false, _) => vma.prot,
    }
}

fn extra_flags(vma: &Vma) -> u64 {
    let flag = |name: &[u8; 2], bit| if vma.has(name) { bit } else { 0 };
    MAP_FIXED_NOREPLACE | flag(b"gd", MAP_GROWSDOWN) | flag(b"nr", MAP_NORESERVE)
}

/// hugetlb pages of the mapping's size.
fn huge_flags(vma: &Vma) -> u64 {
    if vma.page_size > PAGE_SIZE_U64 {
        MAP_HUGETLB | u64::from(vma.page_size.trailing_zeros()) << MAP_HUGE_SHIFT
    } else {
        0
    }
}
