//! Faults on purpose, for tests: `KUPGRADE_FAULT=sigterm:PHASE`, `sigkill:PHASE`, `manifest:HOW` and `process:PID`.

use nix::sys::signal::{Signal, raise};
use persist_mem::manifest::{Manifest, Phase, State};

fn wanted(what: &str) -> Option<String> {
    let text = std::env::var("KUPGRADE_FAULT").ok()?;
    let (kind, how) = text.split_once(':')?;
    (kind == what).then(|| how.to_owned())
}

/// Sends a signal to ourselves in the phase that is named.
pub(super) fn signal_at(phase: Phase) {
    // SIGTERM waits: it is held back.
    for (name, signal) in [("sigterm", Signal::SIGTERM), ("sigkill", Signal::SIGKILL)] {
        if wanted(name).as_deref() == Some(phase.name()) {
            let _ = raise(signal);
        }
    }
}

/// How the manifest is to be spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoil {
    /// One bit of a record is another.
    BitFlip,
    /// Nothing is written where the command line points.
    Missing,
    /// It names a version nobody knows.
    Version,
}

pub(super) fn spoil() -> Option<Spoil> {
    match wanted("manifest")?.as_str() {
        "bit-flip" => Some(Spoil::BitFlip),
        "missing" => Some(Spoil::Missing),
        "version" => Some(Spoil::Version),
        _ => None,
    }
}

/// Describes a process so that it cannot be rebuilt: its directory is nowhere.
pub(super) fn misplace(manifest: &mut Manifest) {
    let named = wanted("process").and_then(|pid| pid.parse().ok());
    let mut processes = manifest.processes.iter_mut();
    let process = processes.find(|process| Some(process.pid.0) == named);
    if let Some(State::Live(live)) = process.map(|process| &mut process.state) {
        live.directories.cwd.path = b"/nowhere".to_vec();
    }
}
