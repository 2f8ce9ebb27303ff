//! A subject of ours: a program that checks itself when it is asked (`tests/README.md`).

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Pause, Program, SHORT, identity, number, same, until};
use crate::guest::Shell;

/// How long a subject may take to build its state or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One running subject.
pub(crate) struct Subject {
    kind: String,
    pid: u32,
    identity: String,
    asked: u32,
    /// Why it has nothing to do on this machine.
    skipped: Option<String>,
}

impl Subject {
    /// The subject with this name.
    pub(crate) fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            pid: 0,
            identity: String::new(),
            asked: 0,
            skipped: None,
        }
    }

    fn prefix(&self) -> String {
        format!("/var/lab/{}", self.kind)
    }

    /// Asks it to check itself.
    fn ask(&mut self, shell: &mut Shell) -> Result<()> {
        self.asked += 1;
        let (prefix, word) = (self.prefix(), self.asked);
        shell.must(
            &format!("echo {word} > {prefix}.asking && mv {prefix}.asking {prefix}.ask"),
            SHORT,
        )?;
        let start = format!("{word} ");
        let answer = until(shell, &format!("cat {prefix}.result"), PATIENCE, |text| {
            text.starts_with(&start)
        })
        .context("it does not answer")?;
        match answer[start.len()..].trim() {
            "PASS" => Ok(()),
            other => bail!("it says: {other}"),
        }
    }
}

impl Program for Subject {
    fn name(&self) -> String {
        format!("subject {}", self.kind)
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        let prefix = self.prefix();
        shell.must(
            &format!("rm -f {prefix}.*; /opt/kupgrade/subject {} {prefix} < /dev/null > {prefix}.log 2>&1 &", self.kind),
            SHORT,
        )?;
        let ready = until(
            shell,
            &format!("cat {prefix}.ready || cat {prefix}.log"),
            PATIENCE,
            |text| text.starts_with("READY ") || text.starts_with("SKIP "),
        )?;
        if let Some(reason) = ready.strip_prefix("SKIP ") {
            self.skipped = Some(reason.trim().to_owned());
            return Ok(());
        }
        self.pid = u32::try_from(number(ready.trim_start_matches("READY "))?)?;
        self.ask(shell).context("before any upgrade")
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        if self.skipped.is_none() {
            self.identity = identity(shell, self.pid)?;
        }
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        if let Some(reason) = &self.skipped {
            return Ok(format!("not on this machine: {reason}"));
        }
        same("the process", &self.identity, &identity(shell, self.pid)?)?;
        self.ask(shell)?;
        Ok(format!("process {}, checked itself", self.pid))
    }
}
