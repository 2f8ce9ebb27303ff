//! Making the world and rebuilding the processes in it.
//!
//! The supervisor (this process, the real first one) makes the time namespace; a child of it, the
//! restorer, rebuilds the processes in a new PID namespace, where ids are what they were, and ends.
//! The world's init is the supervisor's child then.

use super::meanwhile::Meanwhile;
use super::restorer::{self, Outcome};
use super::saved::Saved;
use super::{InitError, Result, memory, release, standstill};
use crate::early::kmsg::announce;
use crate::early::switch::detach_proc;
use crate::{disks, formats, huge_pages, interrupts, network, policies, settings, swaps};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use persist_mem::meminfo::mem_total;
use resurrect::supervisor::namespaces::{self, Home};
use resurrect::supervisor::report::{REPORT, Report, Span, TimeLine};
use resurrect::supervisor::{clock, control, serve};
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use sys::{Errno, Pid};

const SYS: &str = "/sys";
const SIGKILL: i32 = 9;

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
    let proc = Path::new("/proc");
    let now = clock::now()?;
    let wanted = clock::carried_on(&saved.manifest.host.clocks, &now, saved.tsc_hz());
    clock::set_realtime(&wanted, &now)?;
    if let Some(Err(errno)) = saved.upgrade.discipline.map(|clock| clock.set()) {
        warnings.push(format!("how the clock is kept right (adjtimex): {errno}"));
    }
    // A setting may forbid to load any.
    warnings.extend(policies::restore(&saved.upgrade.policies));
    // Interfaces come up by some of them, and have others of their own.
    let settings = settings::of_host(&saved.upgrade.settings);
    let _ = settings::restore(Path::new("/"), &settings);
    // What is missing now is tried again when all memory is back.
    let _ = huge_pages::begin(Path::new(SYS), &saved.upgrade.huge_pools);
    warnings.extend(network::restore(&saved.upgrade.network));
    warnings.extend(settings::restore(Path::new("/"), &settings));
    warnings.extend(disks::restore(Path::new(SYS), &saved.upgrade.disks));
    warnings.extend(interrupts::restore(proc, &saved.upgrade.interrupts));
    let (unregistered, formats) = formats::restore(&saved.upgrade.formats);
    warnings.extend(unregistered);
    let meanwhile = Meanwhile::begin();
    forget_report();
    namespaces::new_time(proc, &clock::offsets(&wanted, &now))?;
    let home = Home::of(proc)?;
    sys::procdir::set(detach_proc()?).map_err(|errno| fail("keeping /proc", errno))?;
    time.done("namespaces");
    let (init, outcome) = rebuild(&saved, &home)?;
    drop(formats);
    let mut spans = old_spans(&saved, time.began());
    spans.extend(time.spans().iter().cloned());
    spans.extend(outcome.spans);
    warnings.extend(outcome.warnings);
    let namespaces = settings::of_namespaces(&saved.upgrade.settings);
    warnings.extend(settings::restore(Path::new("/"), &namespaces));
    let mut report = first_report(&saved, &spans, warnings);
    report.pages_verified = outcome.pages_verified;
    report.lost = outcome.lost;
    for lost in &report.lost {
        announce(&lost.to_string());
    }
    log::info!(
        "the processes run on; blackout {:.0} ms",
        report.blackout_ms
    );
    let listener = control::listen(Path::new(control::SOCKET))
        .inspect_err(|error| log::error!("{error}"))
        .ok();
    store(&report);
    finish(&saved, meanwhile, &mut report, spans);
    drop(saved);
    serve::serve(&signals, listener.as_ref(), init)
}

fn fail(what: &str, errno: sys::Errno) -> InitError {
    InitError::Restorer(format!("{what}: {errno}"))
}

/// The report of an earlier upgrade came with `/run`; whoever waits for ours must not see it.
fn forget_report() {
    match std::fs::remove_file(REPORT) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("{REPORT}: {error}");
        }
        _ => {}
    }
}

fn store(report: &Report) {
    if let Err(error) = report.store(Path::new(REPORT)) {
        log::error!("{error}");
    }
}

/// Hands the memory back and completes the report.
fn finish(saved: &Saved, meanwhile: Meanwhile, report: &mut Report, mut spans: Vec<Span>) {
    let mut time = TimeLine::begin(sys::clock::tsc());
    report.warnings.extend(memory::drain(saved));
    drop(meanwhile);
    // What lay in old pages before could not be had earlier.
    let short = huge_pages::restore(Path::new(SYS), &saved.upgrade.huge_pools);
    report.warnings.extend(short);
    let of_memory = settings::of_memory(&saved.upgrade.settings);
    let unset = settings::restore(Path::new("/"), &of_memory);
    report.warnings.extend(unset);
    report.warnings.extend(swaps::restore(&saved.upgrade.swaps));
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
        bytes_moved: carried.moved.bytes(),
        moved: carried.moved,
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

/// Runs the restorer and waits for it. Gives the world's init, by its id out here.
fn rebuild(saved: &Saved, home: &Home) -> Result<(Pid, Outcome)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail("pipe", errno))?;
    let child = sys::process::spawn(0, &[], || {
        namespaces::release_signals();
        let outcome = restorer::run(saved, home);
        let code = i32::from(outcome.error.is_some());
        let text = serde_json::to_vec(&outcome).unwrap_or_default();
        // The supervisor notices when nothing comes.
        let _ = File::from(write).write_all(&text);
        code
    })
    .map_err(|errno| fail("making the restorer", errno))?;
    let text = standstill::read_all(read.into(), standstill::LIMIT, standstill::work_of_host);
    let stands_still = text == Err(Errno::ETIMEDOUT);
    if stands_still {
        // What it has built ends with it.
        let _ = sys::process::kill(child, SIGKILL);
    }
    let status = sys::wait::wait_for(child.leader()).map_err(|errno| fail("waiting", errno))?;
    if stands_still {
        let limit = standstill::LIMIT.as_secs();
        let why = format!("nothing has happened for {limit} s while processes were rebuilt");
        return Err(InitError::Restorer(why));
    }
    let outcome: Outcome = text
        .map_err(|e| e.to_string())
        .and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()))
        .map_err(|e| InitError::Restorer(format!("the restorer ended with {status:?} ({e})")))?;
    match (&outcome.error, outcome.init) {
        (Some(error), _) => Err(InitError::Restorer(error.clone())),
        (None, None) => Err(InitError::Restorer(
            "the world has no first process".to_owned(),
        )),
        (None, Some(init)) => Ok((Pid(init), outcome)),
    }
}
