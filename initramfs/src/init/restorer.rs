//! The restorer: a child of the supervisor that rebuilds the processes, checks them, lets them go
//! and ends.

use super::saved::Saved;
use crate::mounts::{self, Phase};
use crate::settings;
use nix::fcntl::OFlag;
use persist_mem::manifest::{Extent, Manifest, PageChecksums};
use persist_mem::phys_store::PhysStore;
use persist_mem::physmem::PhysMem;
use resurrect::supervisor::namespaces::Home;
use resurrect::supervisor::report::{Span, TimeLine};
use resurrect::{Lost, Options};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use sys::{PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// What the restorer tells the supervisor.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// The world's first process, by its id outside.
    pub(super) init: Option<i32>,
    /// Its part of the time line.
    pub(super) spans: Vec<Span>,
    /// Pages whose checksum was compared.
    pub(super) pages_verified: u64,
    /// Who could not be rebuilt.
    pub(super) lost: Vec<Lost>,
    /// What went not quite as it should.
    pub(super) warnings: Vec<String>,
    /// Why nothing was carried.
    pub(super) error: Option<String>,
}

/// Rebuilds the processes that can be. On an error none of them is left when this process ends.
pub(super) fn run(saved: &Saved, home: &Home) -> Outcome {
    let mut outcome = Outcome::default();
    let mut time = TimeLine::begin(sys::clock::tsc());
    if let Err(error) = rebuild(saved, home, &mut time, &mut outcome) {
        outcome.error = Some(error);
    }
    outcome.spans = time.spans().to_vec();
    outcome
}

fn rebuild(
    saved: &Saved,
    home: &Home,
    time: &mut TimeLine,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let memory = PhysMem::open().map_err(|e| e.to_string())?;
    let plan = &saved.upgrade.memory;
    let store = PhysStore::new(memory, plan.kept(), plan.block_size);
    let tries = Cell::new(0);
    let born = |init: Pid| {
        if tries.replace(tries.get() + 1) > 0 {
            mounts::take_away(&saved.upgrade.mounts, Path::new("/"), Phase::Inside);
        }
        home.run_inside(init, || mount_inside(saved))
            .map_err(|e| format!("mounting /proc of the world: {e}"))
    };
    let verified = Cell::new(0);
    let look = |built: &Manifest, hosts: &BTreeMap<Pid, Pid>| match &saved.upgrade.checksums {
        Some(sums) => verify(built, hosts, &store, sums).map(|pages| verified.set(pages)),
        None => Ok(()),
    };
    let options = Options {
        elapsed: elapsed(saved),
        filled: Some(&look),
        root_flags: u64::from(nix::libc::CLONE_NEWPID.cast_unsigned()),
        born: Some(&born),
        ..Options::default()
    };
    let rebuilt = resurrect::restore_most(&saved.manifest, &store, options);
    let (world, lost) = rebuilt.map_err(|e| e.to_string())?;
    outcome.lost = lost;
    outcome.pages_verified = verified.get();
    time.done("resurrect");
    let first = saved.manifest.processes.first().map(|p| p.pid);
    outcome.init = first.and_then(|pid| world.host_pid(pid)).map(|pid| pid.0);
    world.thaw().map_err(|e| e.to_string())?;
    time.done("thaw");
    Ok(())
}

/// Time since the old kernel's clocks were read.
fn elapsed(saved: &Saved) -> Duration {
    let gone = resurrect::supervisor::clock::between(
        saved.manifest.host.clocks.tsc,
        sys::clock::tsc(),
        saved.tsc_hz(),
    );
    Duration::from_nanos(gone.unsigned_abs())
}

/// In a helper inside the world: the mounts that show its PID namespace, and the settings that
/// belong to it.
fn mount_inside(saved: &Saved) -> i32 {
    let failed = match mounts::restore(&saved.upgrade.mounts, Path::new("/"), Phase::Inside) {
        Ok(failed) => failed,
        Err(error) => vec![error],
    };
    for error in &failed {
        log::error!("{error}");
    }
    let own = settings::of_pid_namespace(&saved.upgrade.settings);
    let _ = settings::restore(Path::new("/"), &own);
    i32::from(!Path::new("/proc/self").exists())
}

/// Compares every page of every process with the checksum the old kernel's kupgrade made.
fn verify(
    built: &Manifest,
    hosts: &BTreeMap<Pid, Pid>,
    store: &PhysStore,
    sums: &PageChecksums,
) -> Result<u64, String> {
    let mut pages = 0;
    for process in &built.processes {
        let (Some(live), Some(&host)) = (process.live(), hosts.get(&process.pid)) else {
            continue;
        };
        let named = |what: String| format!("process {}: {what}", process.pid);
        let mem = sys::procdir::open(host, "mem", OFlag::O_RDONLY)
            .map_err(|e| named(format!("opening its memory: {e}")))?;
        let check = Check { mem, sums };
        check.all(&live.mm.extents).map_err(named)?;
        pages += live.mm.extents.iter().map(|e| e.pages).sum::<u64>();
    }
    for object in &built.shared_objects {
        for extent in &object.extents {
            verify_kept(extent, store, sums)
                .map_err(|what| format!("memory object {}: {what}", object.id))?;
            pages += extent.pages;
        }
    }
    Ok(pages)
}

/// Compares pages where the old kernel left them: those of memory objects, which no process needs to have
/// mapped.
fn verify_kept(extent: &Extent, store: &PhysStore, sums: &PageChecksums) -> Result<(), String> {
    for frame in extent.frame..extent.frame + extent.pages {
        let sum = store.page_crc(frame).map_err(|e| e.to_string())?;
        if sum.is_none() || sum != sums.of(frame) {
            return Err(format!(
                "frame {frame:#x} is not as it was: its CRC differs"
            ));
        }
    }
    Ok(())
}

/// The comparison for one process.
struct Check<'a> {
    mem: File,
    sums: &'a PageChecksums,
}

impl Check<'_> {
    /// Compares with all processors. What nobody may read is read by this thread alone, the tracer: since 6.12 the
    /// kernel may let no other do so (`proc_mem.force_override=ptrace`, fs/proc/base.c).
    fn all(&self, extents: &[Extent]) -> Result<(), String> {
        let pieces: Vec<Extent> = extents.iter().flat_map(cut).collect();
        let threads = match std::thread::available_parallelism() {
            Ok(threads) if pieces.len() > FEW => threads.get(),
            _ => 1,
        };
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; PIECE * PAGE_SIZE];
            let mut unread = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.read(piece, &mut buffer) {
                    Ok(bytes) => self.compare(piece, bytes)?,
                    Err(_) => unread.push(*piece),
                }
            }
            Ok(unread)
        };
        let unread = std::thread::scope(|scope| {
            // As many as there may be; this one does what the others do not.
            let other = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads).map_while(other).collect();
            let mut unread = work();
            for other in others {
                let other = other.join();
                let other = other.unwrap_or_else(|_| Err("a thread panicked".to_owned()));
                unread = unread.and_then(|unread| Ok([unread, other?].concat()));
            }
            unread
        })?;
        let mut buffer = vec![0; PIECE * PAGE_SIZE];
        for piece in &unread {
            let failed = |e| format!("reading {} pages at {:#x}: {e}", piece.pages, piece.va);
            let bytes = self.read(piece, &mut buffer).map_err(failed)?;
            self.compare(piece, bytes)?;
        }
        Ok(())
    }

    fn read<'b>(&self, piece: &Extent, buffer: &'b mut [u8]) -> std::io::Result<&'b [u8]> {
        let pages = usize::try_from(piece.pages).map_or(PIECE, |pages| pages.min(PIECE));
        let bytes = &mut buffer[..pages * PAGE_SIZE];
        self.mem.read_exact_at(bytes, piece.va)?;
        Ok(bytes)
    }

    fn compare(&self, piece: &Extent, bytes: &[u8]) -> Result<(), String> {
        for (n, page) in (0..).zip(bytes.chunks(PAGE_SIZE)) {
            self.page(piece.va + n * PAGE_SIZE_U64, piece.frame + n, page)?;
        }
        Ok(())
    }

    fn page(&self, va: u64, frame: u64, bytes: &[u8]) -> Result<(), String> {
        let sum = crc32fast::hash(bytes);
        match self.sums.of(frame) {
            Some(right) if right == sum => Ok(()),
            Some(_) => Err(format!(
                "the page at {va:#x} (frame {frame:#x}) is not as it was: its CRC differs"
            )),
            None => Err(format!("the page at {va:#x} has no checksum")),
        }
    }
}

/// Pages compared at a time.
const PIECE: usize = 64;
/// Fewer pieces than this are compared by one thread.
const FEW: usize = 32;

/// An extent in pieces.
fn cut(extent: &Extent) -> impl Iterator<Item = Extent> + use<> {
    let extent = *extent;
    (0..extent.pages).step_by(PIECE).map(move |done| Extent {
        va: extent.va + done * PAGE_SIZE_U64,
        pages: (extent.pages - done).min(PIECE as u64),
        frame: extent.frame + done,
    })
}
