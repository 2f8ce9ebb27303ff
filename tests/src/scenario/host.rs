//! The host that a test finds: a machine with programs at work.

use anyhow::{Context, Result, bail};

use super::Test;
use crate::guest::Output;
use crate::jump::{self, Jump};
use crate::programs::{self, Pause, Program, SHORT, Subjects};
use crate::rig::Rig;
use crate::ui;
use crate::vm::Vm;

/// What sort of host a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 6.1 with the demonstration's programs, little data, and some subjects. Shared.
    Busy,
    /// The same with the demonstration's own sizes. Shared.
    Full,
    /// A kernel with every subject of some groups. Shared.
    Subjects {
        /// The kernel.
        from: &'static str,
        /// What `subject --list` is asked for.
        parts: &'static str,
    },
    /// 6.1 with real programs. Shared.
    Apps {
        /// Which of them. When it is empty all, and the machine has the root file system for them.
        names: &'static str,
    },
    /// A kernel with nothing but its shell, for this test alone.
    Kernel {
        /// The kernel.
        from: &'static str,
    },
    /// 6.1 with nothing but its shell, for this test alone.
    Fresh {
        /// MiB of RAM.
        memory: u64,
    },
}

/// Subjects that hold what most programs hold.
const SOME: &str = "=registers =anon =masks =pipe =epoll-set =eventfd =signalfd =timerfd-periodic \
                    =unix-stream =unix-listening =tcp-listening =profiles";

/// A running host and what must live through everything on it.
pub(crate) struct Host {
    kind: Kind,
    /// Its machine.
    pub(crate) vm: Vm,
    programs: Vec<Box<dyn Program>>,
}

impl Host {
    /// Boots a host and starts its programs.
    pub(super) fn boot(rig: &Rig, name: &str, kind: Kind) -> Result<Self> {
        let (memory, data, parts) = match kind {
            Kind::Busy => (2048, 32, Some(SOME)),
            Kind::Full => (3072, 500, Some(SOME)),
            Kind::Subjects { parts, .. } => (3072, 0, Some(parts)),
            Kind::Apps { names: "" } => (4096, 0, None),
            Kind::Apps { .. } => (1536, 0, None),
            Kind::Kernel { .. } => (3072, 0, None),
            Kind::Fresh { memory } => (memory, 0, None),
        };
        let kernel = match kind {
            Kind::Subjects { from, .. } | Kind::Kernel { from } => from,
            _ => "6.1",
        };
        let mut spec = rig.spec(&name.replace('/', "-"), kernel, memory)?;
        if let Kind::Apps { names: "" } = kind {
            spec = rig.with_apps(spec)?;
        }
        let vm = rig.boot(&spec)?;
        let mut host = Self {
            kind,
            vm,
            programs: Vec::new(),
        };
        host.start(data, parts)
            .map_err(|error| host.vm.explain(error))?;
        Ok(host)
    }

    fn start(&mut self, data: u64, parts: Option<&'static str>) -> Result<()> {
        if data > 0 {
            self.programs = programs::demonstration(data);
            self.programs.push(Box::new(programs::Settings::default()));
        }
        if let Kind::Apps { names } = self.kind {
            self.programs = programs::apps(names);
        }
        if let Some(parts) = parts {
            self.programs.push(Box::new(Subjects::new(parts)));
        }
        for program in &mut self.programs {
            program
                .start(&mut self.vm.shell)
                .with_context(|| format!("starting {}", program.name()))?;
        }
        Ok(())
    }

    /// Can this host be given to the next test?
    pub(super) fn serves(&self, kind: Kind) -> bool {
        self.kind == kind && !matches!(kind, Kind::Fresh { .. } | Kind::Kernel { .. })
    }

    /// Runs one test: all programs are noted before it.
    pub(super) fn test(&mut self, rig: &Rig, test: Test) -> Result<()> {
        let result = self.note().and_then(|()| test(self, rig));
        result.map_err(|error| self.vm.explain(error))
    }

    fn note(&mut self) -> Result<()> {
        for program in &mut self.programs {
            program
                .note(&mut self.vm.shell)
                .with_context(|| format!("before the test: {}", program.name()))?;
        }
        Ok(())
    }

    /// Runs kupgrade, which must refuse: not end with status 0, say each of `words`, and leave
    /// the host as it was, with every program running on.
    pub(super) fn must_refuse(&mut self, command: &str, words: &[&str]) -> Result<()> {
        let before = jump::release(&mut self.vm)?;
        let output = self.vm.shell.run(command, 6 * SHORT)?;
        judge_refusal(&output, words)?;
        let after = jump::release(&mut self.vm)?;
        if before != after {
            bail!("it refused, but the host runs {after} now");
        }
        self.verify(&Pause {
            blackout_ms: Some(0.0),
        })
        .context("after the refusal")
    }

    /// Upgrades, verifies every program and that the memory is back.
    pub(super) fn must_upgrade(&mut self, rig: &Rig, to: &str) -> Result<()> {
        let jump = jump::upgrade(&mut self.vm, rig.kernel(to)?)?;
        self.must_have_come(&jump)
    }

    /// The same with one process more, which cannot be rebuilt: only that is lost.
    pub(super) fn must_upgrade_without_one(&mut self, rig: &Rig, to: &str) -> Result<()> {
        let shell = &mut self.vm.shell;
        let pid = shell.must("sleep 10000 < /dev/null > /dev/null 2>&1 & echo $!", SHORT)?;
        let pid = pid.lines().last().unwrap_or_default().trim();
        let fault = format!("KUPGRADE_FAULT=process:{pid} ");
        let mut jump = jump::upgrade_with(&mut self.vm, rig.kernel(to)?, &fault)?;
        let lost = core::mem::take(&mut jump.report.lost);
        if lost.len() != 1 || lost[0].pid.to_string() != pid {
            bail!("lost are {lost:?} instead of process {pid}");
        }
        self.must_have_come(&jump)
    }

    fn must_have_come(&mut self, jump: &Jump) -> Result<()> {
        self.verify(&Pause {
            blackout_ms: Some(jump.report.blackout_ms),
        })?;
        let mem_after = jump::wait_for_memory(&mut self.vm, jump.mem_before)?;
        let faults = jump::faults(&mut self.vm)?;
        let faults = faults.iter().map(|line| format!("the kernel says: {line}"));
        let summary = crate::report::Summary::new(jump, mem_after, faults.collect());
        ui::say(&crate::report::tables(std::slice::from_ref(&summary)));
        if !summary.errors.is_empty() {
            bail!("{}", summary.errors.join("; "));
        }
        Ok(())
    }

    fn verify(&mut self, pause: &Pause) -> Result<()> {
        let errors = programs::verify_all(&mut self.programs, &mut self.vm.shell, pause, |text| {
            ui::step(&format!("    {text}"));
        });
        if !errors.is_empty() {
            bail!("{}", errors.join("; "));
        }
        Ok(())
    }
}

/// A refusal has a status that is not 0 and a message with the words.
fn judge_refusal(output: &Output, words: &[&str]) -> Result<()> {
    if output.status == 0 {
        bail!("it did not refuse: exit status 0\n{}", output.text);
    }
    if output.status > 100 {
        bail!(
            "it did not refuse, it was not found or died: exit status {}\n{}",
            output.status,
            output.text
        );
    }
    let text = output.text.to_lowercase();
    for word in words {
        if !text.contains(&word.to_lowercase()) {
            bail!("its message does not say '{word}':\n{}", output.text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(status: i32) -> Output {
        Output {
            status,
            text: "kupgrade: /x is not a kernel".into(),
        }
    }

    #[test]
    fn only_a_refusal_with_its_reason_counts() {
        assert!(judge_refusal(&output(1), &["not a Kernel"]).is_ok());
        assert!(judge_refusal(&output(0), &[]).is_err());
        assert!(judge_refusal(&output(127), &[]).is_err());
        assert!(judge_refusal(&output(1), &["window"]).is_err());
    }
}
