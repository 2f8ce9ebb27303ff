//! Every test in a virtual machine, by name.
//!
//! To add one: a function that takes a [`Host`], and a line in [`SCENARIOS`].

mod chain;
mod damage;
mod host;
mod one_kernel;
mod refuse;
mod room;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

pub(crate) use host::{Host, Kind};

use crate::native::{Native, Subject};
use crate::rig::Rig;
use crate::tool::Tool;
use crate::ui;

/// A test: it gets a running host and says what is wrong.
type Test = fn(&mut Host, &Rig) -> Result<()>;

/// A name, the machine it needs, the test.
type Scenario = (&'static str, Kind, Test);

/// The groups of subjects, a machine for some of them.
const PROCESS: Kind = Kind::Subjects {
    from: "6.1",
    parts: "=memory =threads =signals",
};
const WAITING: Kind = Kind::Subjects {
    from: "6.1",
    parts: "=calls",
};
const TIME: Kind = Kind::Subjects {
    from: "6.1",
    parts: "=time =ancestry",
};
const DESCRIPTORS: Kind = Kind::Subjects {
    from: "6.1",
    parts: "=files =sockets =terminals =ipc",
};

/// What a restore that begins again may find from the time before.
const KEEPING: Kind = Kind::Subjects {
    from: "6.1",
    parts: "=ipc =terminals",
};

/// What 6.1 has not: it begins on the newest kernel.
const RECENT: Kind = Kind::Subjects {
    from: "backports",
    parts: "=guard =mseal =droppable =deny-write-exec =slices =tun =tap =tun-idle \
            =tcp-peek-place =recv-timed-apart =posix-timers-ids \
            =uring-provided-mapped =uring-futexes =uring-child-ends =uring-epoll",
};

/// All real programs, and those that need nothing but the ordinary root file system.
const APPS: Kind = Kind::Apps { names: "" };
const SOME_APPS: Kind = Kind::Apps {
    names: "asyncio_server redis",
};

/// All of them, in the order they run. Neighbours of one [`Kind`] that can share a machine do.
const SCENARIOS: &[Scenario] = &[
    (
        "one-kernel/checkpoint",
        Kind::Fresh { memory: 1536 },
        one_kernel::checkpoint,
    ),
    ("refuse/not-a-kernel", Kind::Busy, refuse::not_a_kernel),
    ("refuse/no-such-file", Kind::Busy, refuse::no_such_file),
    (
        "refuse/32-bit-kernel",
        Kind::Busy,
        refuse::kernel_of_32_bits,
    ),
    (
        "refuse/unsupported-descriptor",
        Kind::Busy,
        refuse::unsupported_descriptor,
    ),
    ("refuse/lost-network", Kind::Busy, refuse::lost_network),
    (
        "refuse/process-that-does-not-stop",
        Kind::Busy,
        refuse::unstoppable,
    ),
    ("refuse/sigterm-plan", Kind::Busy, refuse::sigterm_plan),
    ("refuse/sigterm-stage", Kind::Busy, refuse::sigterm_stage),
    ("refuse/sigterm-freeze", Kind::Busy, refuse::sigterm_freeze),
    (
        "refuse/sigterm-capture",
        Kind::Busy,
        refuse::sigterm_capture,
    ),
    (
        "refuse/sigterm-pin-down",
        Kind::Busy,
        refuse::sigterm_pin_down,
    ),
    (
        "refuse/sigkill-pin-down",
        Kind::Busy,
        refuse::sigkill_pin_down,
    ),
    (
        "chain/after-refusals-6.1-to-6.12",
        Kind::Busy,
        chain::to_trixie,
    ),
    ("chain/6.1-to-6.12", Kind::Full, chain::to_trixie),
    ("chain/6.12-to-newest", Kind::Full, chain::to_newest),
    ("chain/newest-to-6.12", Kind::Full, chain::to_trixie),
    ("subjects/process-6.1-to-6.12", PROCESS, chain::to_trixie),
    ("subjects/process-6.12-to-newest", PROCESS, chain::to_newest),
    ("subjects/waiting-6.1-to-6.12", WAITING, chain::to_trixie),
    ("subjects/waiting-6.12-to-newest", WAITING, chain::to_newest),
    ("subjects/time-6.1-to-6.12", TIME, chain::to_trixie),
    ("subjects/time-6.12-to-newest", TIME, chain::to_newest),
    (
        "subjects/descriptors-6.1-to-6.12",
        DESCRIPTORS,
        chain::to_trixie,
    ),
    (
        "subjects/descriptors-6.12-to-newest",
        DESCRIPTORS,
        chain::to_newest,
    ),
    ("subjects/recent-newest-to-newest", RECENT, chain::to_newest),
    (
        "guests/6.1",
        Kind::Kernel { from: "6.1" },
        one_kernel::every_subject,
    ),
    (
        "guests/6.12",
        Kind::Kernel { from: "6.12" },
        one_kernel::every_subject,
    ),
    (
        "guests/newest",
        Kind::Kernel { from: "backports" },
        one_kernel::every_subject,
    ),
    ("programs/6.1-to-6.12", SOME_APPS, chain::to_trixie),
    ("apps/6.1-to-6.12", APPS, chain::to_trixie),
    ("apps/6.12-to-newest", APPS, chain::to_newest),
    (
        "refuse/kexec-disabled",
        Kind::Fresh { memory: 1536 },
        refuse::kexec_disabled,
    ),
    (
        "refuse/nobody-traces",
        Kind::Fresh { memory: 1536 },
        refuse::nobody_traces,
    ),
    (
        "refuse/no-window",
        Kind::Fresh { memory: 224 },
        refuse::no_window,
    ),
    (
        "room/too-full",
        Kind::Fresh { memory: 1536 },
        room::too_full,
    ),
    (
        "room/nearly-half",
        Kind::Fresh { memory: 4096 },
        room::nearly_half,
    ),
    (
        "damage/lost-process",
        Kind::Fresh { memory: 1536 },
        damage::lost_process,
    ),
    (
        "damage/lost-among-subjects",
        KEEPING,
        damage::lost_among_subjects,
    ),
    (
        "damage/manifest-bit-flip",
        Kind::Fresh { memory: 1536 },
        damage::bit_flip,
    ),
    (
        "damage/manifest-missing",
        Kind::Fresh { memory: 1536 },
        damage::missing,
    ),
    (
        "damage/manifest-foreign-version",
        Kind::Fresh { memory: 1536 },
        damage::foreign_version,
    ),
];

/// Scenarios whose names begin so take long with a translator: they run when the filter names them.
const ON_REQUEST: [&str; 3] = ["subjects/", GUESTS, "apps/"];

/// Scenarios whose names begin so run the subjects on the machine's one kernel.
const GUESTS: &str = "guests/";

/// Scenarios whose names begin so do without the jump.
const ONE_KERNEL: &str = "one-kernel/";

/// How many subjects run at the same time: most of them sleep most of the time.
const LANES: usize = 4;

/// The name under which the tests beside the code run.
const UNIT: &str = "unit";

/// What `cargo lab test` takes.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only tests whose name contains this ("unit": those of `cargo test`)
    filter: Option<String>,
    /// Only tell the names
    #[arg(long)]
    list: bool,
}

/// `cargo lab test`
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    let wanted = |name: &str| {
        args.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    };
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|(name, _, _)| wanted(name))
        .filter(|(name, _, _)| {
            args.filter.is_some() || !ON_REQUEST.iter().any(|start| name.starts_with(start))
        })
        .collect();
    let native = Native::prepare(wanted);
    if args.list {
        ui::say(UNIT);
        native?.1.iter().for_each(|subject| ui::say(&subject.test));
        chosen.iter().for_each(|(name, _, _)| ui::say(name));
        return Ok(ExitCode::SUCCESS);
    }
    let mut tally = Tally::default();
    if wanted(UNIT) {
        tally.run(UNIT, unit);
    }
    match native {
        Ok((native, subjects)) => one_kernel(&native, &subjects, &mut tally),
        Err(error) => tally.failed("set-up of the subjects", &error),
    }
    let chosen = possible(chosen, &mut tally)?;
    if !chosen.is_empty() {
        let guests = chosen.iter().any(|(name, ..)| name.starts_with(GUESTS));
        let more = guests.then(crate::native::guest_program).transpose()?;
        match Rig::prepare("test", &[], true, more.as_slice()) {
            Ok(rig) => machines(&rig, &chosen, &mut tally),
            Err(error) => tally.failed("set-up of the machines", &error),
        }
    }
    Ok(tally.end())
}

/// What this kupgrade can be tried with: as long as it offers no `--kernel`, the scenarios that jump are
/// skipped, and counted as such. They run again by themselves with the first kupgrade that does.
fn possible(chosen: Vec<&'static Scenario>, tally: &mut Tally) -> Result<Vec<&'static Scenario>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let help = std::process::Command::new(cargo)
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "kupgrade",
            "--",
            "--help",
        ])
        .current_dir(crate::paths::workspace())
        .output()?;
    if String::from_utf8_lossy(&help.stdout).contains("--kernel") {
        return Ok(chosen);
    }
    let (now, later): (Vec<&Scenario>, Vec<&Scenario>) = chosen
        .into_iter()
        .partition(|scenario| scenario.0.starts_with(ONE_KERNEL));
    for scenario in &later {
        ui::step(&format!(
            "test {} ... skipped: kupgrade has no --kernel yet",
            scenario.0
        ));
    }
    tally.skipped += later.len();
    Ok(now)
}

/// Every subject on this kernel, several at a time. Those that fail so are tried again when nothing else runs, more
/// than once: who is right then was disturbed, and is named.
fn one_kernel(native: &Native, subjects: &[Subject], tally: &mut Tally) {
    const ALONE: usize = 2;
    let (shared, failed) = (Mutex::new(&mut *tally), Mutex::new(Vec::new()));
    let mut result = native.run(subjects, LANES, |subject, result| match result {
        Ok(text) => locked(&shared).passed(&subject.test, &text),
        Err(error) => {
            ui::step(&format!("test {} ... again later: {error:#}", subject.test));
            locked(&failed).push((subject.clone(), error));
        }
    });
    let failed = std::mem::take(&mut *locked(&failed));
    for (subject, first) in failed {
        let alone = vec![subject.clone(); ALONE];
        let wrong = Mutex::new(None);
        let tried = native.run(&alone, 1, |_, result| {
            if let Err(error) = result {
                locked(&wrong).get_or_insert(error);
            }
        });
        match locked(&wrong).take() {
            Some(error) => tally.failed(&subject.test, &error),
            None => tally.disturbed(&subject.test, &first),
        }
        result = result.and(tried);
    }
    if let Err(error) = result {
        tally.failed("the table of what is carried", &error);
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn unit() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    Tool::new(&cargo, Duration::from_secs(1500))
        .args(["test", "--workspace", "--no-fail-fast"])
        .dir(&crate::paths::workspace())
        .run_shown()
}

fn machines(rig: &Rig, chosen: &[&(&str, Kind, Test)], tally: &mut Tally) {
    let mut host: Option<Host> = None;
    for (name, kind, test) in chosen {
        if host.as_ref().is_some_and(|host| !host.serves(*kind)) {
            host = None;
        }
        let ok = tally.run(name, || {
            let host = match &mut host {
                Some(host) => host,
                None => host.insert(Host::boot(rig, name, *kind)?),
            };
            host.test(rig, *test)
        });
        if !ok {
            // Whatever state it is in, the next test must not find it.
            host = None;
        }
    }
    ui::say(&format!("logs: {}", rig.dir.display()));
}

/// Who passed, who failed.
#[derive(Default)]
struct Tally {
    passed: u32,
    skipped: usize,
    /// Name and reason.
    failed: Vec<(String, String)>,
    /// The same of those that failed beside others only.
    disturbed: Vec<(String, String)>,
}

impl Tally {
    fn run(&mut self, name: &str, test: impl FnOnce() -> Result<()>) -> bool {
        ui::step(&format!("test {name} ..."));
        let start = Instant::now();
        match test() {
            Ok(()) => {
                self.passed(name, &format!("{:.1} s", start.elapsed().as_secs_f64()));
                true
            }
            Err(error) => {
                self.failed(name, &error);
                false
            }
        }
    }

    fn passed(&mut self, name: &str, text: &str) {
        self.passed += 1;
        ui::step(&format!("test {name} ... ok ({text})"));
    }

    fn failed(&mut self, name: &str, error: &anyhow::Error) {
        ui::step(&format!("test {name} ... FAILED"));
        ui::say(&format!("{error:#}"));
        self.failed.push((name.to_owned(), format!("{error:#}")));
    }

    fn disturbed(&mut self, name: &str, error: &anyhow::Error) {
        self.passed(name, "alone");
        self.disturbed.push((name.to_owned(), format!("{error:#}")));
    }

    fn end(&self) -> ExitCode {
        for (name, why) in &self.disturbed {
            ui::say(&format!(
                "right alone, but wrong beside others: {name}: {}",
                shortened(why)
            ));
        }
        // Again, since a log is read from its end.
        for (name, why) in &self.failed {
            ui::say(&format!("failed: {name}: {}", shortened(why)));
        }
        ui::say(&format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped
        ));
        if self.failed.is_empty() && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Begin and end of a long text.
fn shortened(text: &str) -> String {
    const SIDE: usize = 300;
    let begin = text.char_indices().nth(SIDE);
    let end = text.char_indices().nth_back(SIDE);
    match (begin, end) {
        (Some((begin, _)), Some((end, _))) if begin < end => {
            format!("{} ... {}", &text[..begin], &text[end..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(shortened("short"), "short");
        let long = format!("{}{}{}", "a".repeat(300), "b".repeat(300), "c".repeat(301));
        let found = shortened(&long);
        assert!(found.starts_with('a') && found.ends_with('c') && !found.contains('b'));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|(name, _, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
