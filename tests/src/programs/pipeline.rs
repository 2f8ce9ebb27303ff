//! A shell pipeline that runs in the background: three processes, pipes with data under way,
//! and a new short-lived child five times a second.

use anyhow::{Context, Result, bail};

use super::{Pause, Program, SHORT, number, same, until};
use crate::guest::Shell;

const FILE: &str = "/var/lab/pipeline.log";

/// The pipeline.
#[derive(Default)]
pub(crate) struct Pipeline {
    group: u64,
    members: String,
    number: u64,
}

impl Pipeline {
    /// The last number, after checking that none is missing.
    fn last(shell: &mut Shell) -> Result<u64> {
        let check = format!(
            "awk '$1 != NR {{ print \"line \" NR \" is \" $1; bad = 1; exit }} END {{ exit bad }}' {FILE}"
        );
        let output = shell.run(&check, SHORT)?;
        if output.status != 0 {
            bail!("a number is missing: {}", output.text.trim());
        }
        number(&shell.must(&format!("wc -l < {FILE}"), SHORT)?)
    }

    /// The long-lived processes of the job.
    fn members(&self, shell: &mut Shell) -> Result<String> {
        let command = format!(
            "ps -ww -eo pgid=,pid=,ppid=,sid=,tty=,args= | awk '$1 == {0} && $3 != {0}'",
            self.group
        );
        let text = shell.must(&command, SHORT)?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl Program for Pipeline {
    fn name(&self) -> String {
        "shell pipeline".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        shell.must(
            &format!(
                "(n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done) | sed -u 's/^/line /' | \
                 while read -r word number; do echo $number >> {FILE}; done &"
            ),
            SHORT,
        )?;
        let group = shell.must("jobs -p %%", SHORT)?;
        self.group = number(group.lines().last().unwrap_or_default())?;
        until(shell, &format!("wc -l < {FILE}"), SHORT, |lines| {
            lines != "0"
        })?;
        Ok(())
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.members = self.members(shell)?;
        self.number = Self::last(shell)?;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        same("the job", &self.members, &self.members(shell)?)?;
        let before = Self::last(shell)?;
        until(shell, &format!("wc -l < {FILE}"), SHORT, |lines| {
            lines.parse().is_ok_and(|lines: u64| lines > before)
        })
        .context("no line comes through it any more")?;
        let last = Self::last(shell)?;
        if last <= self.number {
            bail!("it wrote {} lines before and {last} now", self.number);
        }
        let jobs = shell.must("jobs -r -p", SHORT)?;
        if !jobs
            .lines()
            .any(|line| line.trim() == self.group.to_string())
        {
            bail!("its shell does not count it among the running jobs any more: {jobs}");
        }
        Ok(format!("group {}, {last} lines, none missing", self.group))
    }
}
