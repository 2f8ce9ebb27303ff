//! Making the world and rebuilding the processes in it.
//!
//! The supervisor (this process, the real first one) makes the namespaces; a child of it inside,
//! the restorer, rebuilds the processes there, where ids are what they were, and ends.

use super::saved::Saved;
use super::{InitError, Result, memory, release};
use crate::early::switch::detach_proc;
use crate::mounts::{self, Phase};
use crate::settings;
use nix::unistd::pipe2;
use persist_mem::handback::mem_total;
use persist_mem::manifest::Manifest;
use persist_mem::phys_store::PhysStore;
use persist_mem::physmem::PhysMem;
use resurrect::supervisor::report::{REPORT, Report, Span, TimeLine};
use resurrect::supervisor::{clock, control, namespaces::Namespaces, serve};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use sys::Pid;

/// What the restorer tells the supervisor.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    spans: Vec<Span>,
    pages_verified: u64,
    warnings: Vec<String>,
    error: Option<String>,
}

/// Rebuilds the processes and serves them for ever.
///
/// # Errors
/// Nothing of the world is left then.
pub(super) fn start(
    saved: Saved,
    time: &mut TimeLine,
    mut warnings: Vec<String>,
) -> Result<Infallible> {
    let signals = serve::take_signals()?;
    let now = clock::now()?;
    let wanted = clock::carried_on(&saved.manifest.host.clocks, &now, saved.tsc_hz());
    clock::set_realtime(wanted.realtime)?;
    warnings.extend(settings::restore(
        Path::new("/proc/sys"),
        &saved.upgrade.settings,
    ));
    let offsets = clock::offsets(&wanted, &now);
    let namespaces = Namespaces::create(Path::new("/proc"), &offsets)?;
    let outcome = detach_proc()
        .map_err(InitError::from)
        .and_then(|proc| Ok((proc, rebuild(&saved, &namespaces)?)));
    let (_proc, outcome) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            namespaces.destroy();
            return Err(error);
        }
    };
    let mut spans = old_spans(&saved, time.began());
    spans.extend(time.spans().iter().cloned());
    spans.extend(outcome.spans);
    warnings.extend(outcome.warnings);
    let mut report = first_report(&saved, &spans, warnings);
    report.pages_verified = outcome.pages_verified;
    log::info!(
        "the processes run on; blackout {:.0} ms",
        report.blackout_ms
    );
    let listener = control::listen(Path::new(control::SOCKET))
        .inspect_err(|error| log::error!("{error}"))
        .ok();
    store(&report);
    finish(&saved, &mut report, spans);
    serve::serve(&signals, listener.as_ref(), namespaces.init())
}

fn store(report: &Report) {
    if let Err(error) = report.store(Path::new(REPORT)) {
        log::error!("{error}");
    }
}

/// Hands the memory back and completes the report.
fn finish(saved: &Saved, report: &mut Report, mut spans: Vec<Span>) {
    let mut time = TimeLine::begin(sys::clock::tsc());
    report.warnings.extend(memory::drain(saved));
    time.done("hand-back");
    spans.extend(time.spans().iter().cloned());
    report.set_phases(&spans, saved.tsc_hz());
    report.mem_total_after = mem_total().unwrap_or(0);
    report.complete = true;
    store(report);
}

/// All that is known when the processes run.
fn first_report(saved: &Saved, new_spans: &[Span], warnings: Vec<String>) -> Report {
    let carried = &saved.upgrade.carried;
    let mut report = Report {
        from: saved.manifest.host.release.clone(),
        to: release(),
        processes: carried.processes,
        threads: carried.threads,
        bytes_in_place: carried.bytes_in_place,
        bytes_moved: carried.bytes_moved,
        mem_total_before: saved.upgrade.mem_total,
        mem_total_after: mem_total().unwrap_or(0),
        warnings,
        ..Report::default()
    };
    report.set_phases(new_spans, saved.tsc_hz());
    report
}

/// The old kernel's phases, and the jump up to the new kernel's first process.
fn old_spans(saved: &Saved, init: u64) -> Vec<Span> {
    let stamps = &saved.upgrade.stamps;
    let ends = stamps.iter().skip(1).map(|s| s.tsc);
    let sealed = saved.superblock.sealed;
    let mut spans: Vec<Span> = stamps
        .iter()
        .zip(ends.chain([sealed]))
        .map(|(stamp, end)| Span {
            name: stamp.phase.name().to_owned(),
            start: stamp.tsc,
            end,
        })
        .collect();
    spans.push(Span {
        name: "jump".to_owned(),
        start: sealed,
        end: init,
    });
    spans
}

/// An id for the restorer that no carried process, thread, group or session has.
fn free_id(manifest: &Manifest) -> Pid {
    let mut taken = BTreeSet::new();
    for process in &manifest.processes {
        taken.extend([process.pid.0, process.pgid.0, process.sid.0]);
        let threads = process.live().into_iter().flat_map(|live| &live.threads);
        taken.extend(threads.map(|thread| thread.tid.0));
    }
    // Below the smallest pid_max a kernel starts with.
    let free = (2..32768).rev().find(|id| !taken.contains(id));
    Pid(free.unwrap_or(32767))
}

/// Runs the restorer and waits for it.
fn rebuild(saved: &Saved, namespaces: &Namespaces) -> Result<Outcome> {
    let fail = |what: &str, errno: sys::Errno| InitError::Restorer(format!("{what}: {errno}"));
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| fail("pipe", errno))?;
    let child = namespaces.spawn_inside(free_id(&saved.manifest), || {
        let outcome = restorer(saved);
        let code = i32::from(outcome.error.is_some());
        let text = serde_json::to_vec(&outcome).unwrap_or_default();
        // The supervisor notices when nothing comes.
        let _ = File::from(write).write_all(&text);
        code
    })?;
    let mut text = Vec::new();
    let read = File::from(read).read_to_end(&mut text);
    let status = sys::wait::wait_for(child.leader()).map_err(|errno| fail("waiting", errno))?;
    let outcome: Outcome = read
        .map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()))
        .map_err(|e| InitError::Restorer(format!("the restorer ended with {status:?} ({e})")))?;
    match outcome.error {
        Some(error) => Err(InitError::Restorer(error)),
        None => Ok(outcome),
    }
}

/// The restorer: inside the world's namespaces.
fn restorer(saved: &Saved) -> Outcome {
    let mut outcome = Outcome::default();
    let mut time = TimeLine::begin(sys::clock::tsc());
    if let Err(error) = restore(saved, &mut time, &mut outcome) {
        outcome.error = Some(error);
    }
    outcome.spans = time.spans().to_vec();
    outcome
}

fn restore(
    saved: &Saved,
    time: &mut TimeLine,
    outcome: &mut Outcome,
) -> std::result::Result<(), String> {
    let failed = mounts::restore(&saved.upgrade.mounts, Path::new("/"), Phase::Inside)
        .map_err(|e| e.to_string())?;
    outcome
        .warnings
        .extend(failed.iter().map(ToString::to_string));
    // Some settings belong to the PID namespace.
    let _ = settings::restore(Path::new("/proc/sys"), &saved.upgrade.settings);
    let memory = PhysMem::open().map_err(|e| e.to_string())?;
    let plan = &saved.upgrade.memory;
    let _store = PhysStore::new(memory, plan.kept(), plan.block_size);
    time.done("resurrect");
    Err("this kupgrade cannot rebuild processes yet".to_owned())
}
