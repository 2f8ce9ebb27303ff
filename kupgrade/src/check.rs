//! `kupgrade check`.

use crate::checkpoint::numbers_used_up;
use crate::limits::allow_descriptors;
use crate::say;
use crate::upgrade::check::of_host;
use anyhow::Result;
use freezer::proc;
use initramfs::{mounts, swaps};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use sys::Pid;

#[derive(Serialize)]
struct Verdict {
    pid: Pid,
    comm: String,
    verdict: &'static str,
    reasons: Vec<freezer::Refusal>,
}

/// Prints a verdict for every process, or those below `root`.
pub(crate) fn run(root: Option<Pid>, json: bool) -> Result<ExitCode> {
    allow_descriptors();
    let (pids, mut refusals) = match root {
        Some(root) => {
            let pids = proc::tree(root)?;
            let mut found = freezer::check::check_tree(root)?;
            found.extend(numbers_used_up(root)?);
            (pids, found)
        }
        None => {
            let me = Pid(nix::unistd::getpid().as_raw());
            let mut pids = proc::everyone()?;
            pids.retain(|pid| *pid != me);
            let shared = freezer::tables::shared(&pids)?;
            (pids, shared)
        }
    };
    let mut host = freezer::check::HostCheck::new();
    let mut verdicts = Vec::new();
    for pid in pids {
        let comm = proc::comm(pid);
        let mut reasons: Vec<_> = refusals
            .extract_if(.., |refusal| refusal.pid == pid)
            .collect();
        if root.is_none() {
            reasons.extend(host.check(pid)?);
        }
        let verdict = if reasons.is_empty() {
            "carried"
        } else {
            "refused"
        };
        verdicts.push(Verdict {
            pid,
            comm,
            verdict,
            reasons,
        });
    }
    let refused = verdicts.iter().filter(|v| v.verdict == "refused").count();
    let text = if json {
        serde_json::to_string_pretty(&verdicts)? + "\n"
    } else {
        table(&verdicts)? + &format!("{} processes, {refused} refused\n", verdicts.len())
    };
    say::result(&text)?;
    if root.is_none() {
        tell_of_host();
    }
    Ok(if refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// Mounts, network and memory, which an upgrade carries with the processes, are no process's: they have no verdict.
fn tell_of_host() {
    let swaps = swaps::capture(Path::new("/proc"));
    match mounts::capture::survey() {
        Ok(mounts) => of_host(&mounts, &swaps).iter().for_each(|reason| {
            say::aside(&format!("this host cannot be upgraded: {reason}"));
        }),
        Err(error) => say::aside(&format!("this host's mounts: {error}")),
    }
}

fn table(verdicts: &[Verdict]) -> Result<String> {
    let mut text = String::new();
    for verdict in verdicts {
        let Verdict { pid, comm, .. } = verdict;
        writeln!(text, "{pid:>7} {comm:<16} {}", verdict.verdict)?;
        for reason in &verdict.reasons {
            writeln!(text, "        {}: {}", reason.resource, reason.reason)?;
        }
    }
    Ok(text)
}
