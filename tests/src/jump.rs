//! One upgrade of a guest, seen from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::guest::{Output, Pending};
use crate::programs::SHORT;
use crate::setup::kernels::Kernel;
use crate::vm::Vm;

/// How long an upgrade may take from the command to its end.
const LIMIT: Duration = Duration::from_secs(900);

/// How often the console is looked at meanwhile.
const GLANCE: Duration = Duration::from_secs(5);

/// What the console says when the host starts afresh.
const LOST: &str = "the processes could not be carried";

/// kupgrade's exit status when some processes could not be rebuilt: the report names them.
const SOME_LOST: i32 = 4;

/// How long handing the memory back may take after the thaw.
const DRAIN: Duration = Duration::from_secs(120);

/// What `kupgrade report --json` tells. Fields that a later version adds do no harm.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Processes carried.
    pub(crate) processes: u64,
    /// Threads carried.
    pub(crate) threads: u64,
    /// Bytes whose page stayed where it was.
    pub(crate) bytes_in_place: u64,
    /// Bytes that were copied.
    pub(crate) bytes_moved: u64,
    /// Where these had been.
    pub(crate) moved: Moved,
    /// From the freeze to the thaw.
    pub(crate) blackout_ms: f64,
    /// The time line.
    pub(crate) phases: Vec<Phase>,
    /// Who was not rebuilt.
    pub(crate) lost: Vec<Lost>,
}

/// A process that could not be rebuilt.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Lost {
    /// Its id.
    pub(crate) pid: i32,
    /// Its name.
    pub(crate) comm: String,
    /// Why not.
    pub(crate) why: String,
}

/// Bytes that were copied, by the place they were copied out of.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Moved {
    /// The boot window's main part: kupgrade chose it.
    pub(crate) window: u64,
    /// The first memory block: RAM of the new kernel on every host.
    pub(crate) first_block: u64,
    /// Those at the end of RAM: likewise.
    pub(crate) last_blocks: u64,
}

/// One phase of an upgrade, on one clock across the jump.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Phase {
    /// What it is called.
    pub(crate) name: String,
    /// Its start in milliseconds.
    pub(crate) start_ms: f64,
    /// Its end in milliseconds.
    pub(crate) end_ms: f64,
}

/// An upgrade that was made.
#[derive(Clone, Debug)]
pub(crate) struct Jump {
    /// The kernel release before it.
    pub(crate) from: String,
    /// The kernel release after it.
    pub(crate) to: String,
    /// What kupgrade itself says.
    pub(crate) report: Report,
    /// From the command being typed to the shell's answer, on the host's clock.
    pub(crate) command: Duration,
    /// MemTotal in bytes before.
    pub(crate) mem_before: u64,
}

/// Types `kupgrade` in the guest's shell and waits for that same shell to answer on the new
/// kernel.
pub(crate) fn upgrade(vm: &mut Vm, to: &Kernel) -> Result<Jump> {
    upgrade_with(vm, to, "")
}

/// The same, with something before the command.
pub(crate) fn upgrade_with(vm: &mut Vm, to: &Kernel, before: &str) -> Result<Jump> {
    let from = release(vm)?;
    let mem_before = mem_total(vm)?;
    let command = format!("{before}kupgrade --kernel {} --verify", to.guest_vmlinuz());
    let pending = vm.shell.start(&command)?;
    let began = Instant::now();
    let output = answer(vm, &pending)?;
    let took = began.elapsed();
    std::fs::write(
        vm.dir().join(format!("kupgrade-to-{}.log", to.short())),
        &output.text,
    )?;
    if output.status != SOME_LOST {
        output.ok().with_context(|| command)?;
    }
    let now = release(vm)?;
    if now != to.release {
        bail!(
            "kupgrade said it was done, but the guest runs {now}, not {}",
            to.release
        );
    }
    let text = vm.shell.must("kupgrade report --json", SHORT)?;
    let report = parse(&text)?;
    Ok(Jump {
        from,
        to: now,
        report,
        command: took,
        mem_before,
    })
}

/// Waits for the shell's answer, but not when the new kernel says that there will be none.
fn answer(vm: &mut Vm, pending: &Pending) -> Result<Output> {
    let end = Instant::now() + LIMIT;
    loop {
        match vm.shell.finish(pending, GLANCE) {
            Err(error) if Instant::now() > end => return Err(error),
            Err(error) if !vm.alive() || vm.console_text().contains(LOST) => return Err(error),
            Err(_) => {}
            done => return done,
        }
    }
}

/// The JSON in what the command printed.
fn parse(text: &str) -> Result<Report> {
    let start = text.find('{').unwrap_or(0);
    serde_json::from_str(text.get(start..).unwrap_or_default().trim())
        .with_context(|| format!("kupgrade's report is not what was agreed: {text}"))
}

/// What the guest's kernel has logged about faults of its own; empty when all is well.
pub(crate) fn faults(vm: &mut Vm) -> Result<Vec<String>> {
    const SIGNS: &str = "WARNING: |BUG: |Oops|general protection fault|Call Trace|hung_task|lockup";
    let text = vm
        .shell
        .run(&format!("dmesg | grep -E '{SIGNS}'"), SHORT)?
        .text;
    // The command itself may be shown.
    let lines = text.lines().filter(|line| line.starts_with('['));
    Ok(lines.map(str::to_owned).collect())
}

/// What `uname -r` says.
pub(crate) fn release(vm: &mut Vm) -> Result<String> {
    Ok(vm.shell.must("uname -r", SHORT)?.trim().to_owned())
}

/// MemTotal in bytes.
pub(crate) fn mem_total(vm: &mut Vm) -> Result<u64> {
    let text = vm
        .shell
        .must("awk '/^MemTotal:/ { print $2 }' /proc/meminfo", SHORT)?;
    let kib: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("MemTotal is '{text}'"))?;
    Ok(kib * 1024)
}

/// Waits until the memory was handed back: MemTotal within 1 % of `before`. Returns the last
/// value in any case.
pub(crate) fn wait_for_memory(vm: &mut Vm, before: u64) -> Result<u64> {
    let end = Instant::now() + DRAIN;
    loop {
        let now = mem_total(vm)?;
        if now.abs_diff(before) <= before / 100 || Instant::now() > end {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_report_after_other_words() {
        let report = parse("note\n{\"processes\": 7, \"blackout_ms\": 12.5, \"new\": 1}\n")
            .expect("a report");
        assert_eq!(report.processes, 7);
        assert!(report.blackout_ms > 12.0);
        assert!(parse("no report").is_err());
    }
}
