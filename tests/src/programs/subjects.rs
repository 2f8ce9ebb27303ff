//! Our subjects: programs that check themselves when they are asked (`tests/README.md`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Pause, Program, SHORT, number};
use crate::conformance::{Fate, Table};
use crate::guest::Shell;
use crate::ui;

/// How long all of them may take to build their state or to answer.
const PATIENCE: Duration = Duration::from_secs(400);

const SCRIPT: &str = "bash /opt/kupgrade/lab/subjects.sh";

/// All subjects of a machine.
pub(crate) struct Subjects {
    parts: &'static str,
    /// Name and process of those that run.
    running: BTreeMap<String, u64>,
    /// What kupgrade does not want to carry on this kernel, and those that did not work even
    /// before anything was done.
    left: BTreeMap<String, Fate>,
    asked: u32,
}

impl Subjects {
    /// Those that `subject --list` offers for one of the parts of names.
    pub(crate) fn new(parts: &'static str) -> Self {
        Self {
            parts,
            running: BTreeMap::new(),
            left: BTreeMap::new(),
            asked: 0,
        }
    }

    /// Asks all of them; returns what those say that are not content.
    fn ask(&mut self, shell: &mut Shell) -> Result<BTreeMap<String, String>> {
        self.asked += 1;
        let text = shell.must(&format!("{SCRIPT} ask {}", self.asked), PATIENCE)?;
        let content = format!("{} PASS", self.asked);
        let mut answers: BTreeMap<_, _> = lines(&text).collect();
        for name in self.running.keys() {
            answers
                .entry(name.clone())
                .or_insert_with(|| "it is not asked any more".to_owned());
        }
        answers.retain(|_, answer| answer.trim() != content);
        Ok(answers)
    }

    /// Ends one that cannot come along, and keeps the reason.
    fn leave(&mut self, shell: &mut Shell, name: &str, fate: Fate) -> Result<()> {
        ui::step(&format!("    subject {name} is left behind: {fate}"));
        self.running.remove(name);
        self.left.insert(name.to_owned(), fate);
        shell.must(&format!("{SCRIPT} end {name}"), SHORT).map(drop)
    }

    /// Puts what an upgrade made of them into the table of what is carried.
    fn tell_table(&self, wrong: &BTreeMap<String, String>) -> Result<()> {
        let mut table = Table::load();
        for (name, fate) in &self.left {
            table.across(name, fate.clone());
        }
        for name in self.running.keys() {
            let fate = wrong
                .get(name)
                .map_or(Fate::Carried, |answer| Fate::Wrong(answer.clone()));
            table.across(name, fate);
        }
        table.save()
    }
}

/// First word and the rest of every line.
fn lines(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(' ')?;
        Some((name.to_owned(), rest.trim().to_owned()))
    })
}

impl Program for Subjects {
    fn name(&self) -> String {
        "subjects".to_owned()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        let text = shell.must(&format!("{SCRIPT} start {}", self.parts), PATIENCE)?;
        for (name, answer) in lines(&text) {
            if let Some(pid) = answer.strip_prefix("READY ") {
                self.running.insert(name, number(pid)?);
            } else if let Some(why) = answer.strip_prefix("SKIP ") {
                self.left.insert(name, Fate::NotHere(why.to_owned()));
            } else {
                bail!("subject {name} does not start: {answer}");
            }
        }
        if self.running.is_empty() {
            bail!("there is no subject: {text}");
        }
        for (name, answer) in self.ask(shell)? {
            let fate = Fate::Wrong(format!("before any upgrade: {answer}"));
            self.leave(shell, &name, fate)?;
        }
        ui::step(&format!("    {} subjects run", self.running.len()));
        Ok(())
    }

    /// Leaves those behind that kupgrade does not carry on this kernel.
    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        let output = shell.run("kupgrade check --json", 4 * SHORT)?;
        let verdicts: Value = serde_json::from_str(&output.text)
            .with_context(|| format!("kupgrade check says:\n{}", output.text))?;
        let refused: BTreeMap<String, String> = verdicts
            .as_array()
            .into_iter()
            .flatten()
            .filter(|verdict| verdict["verdict"] == "refused")
            .map(|verdict| (verdict["pid"].to_string(), verdict["reasons"].to_string()))
            .collect();
        if refused.is_empty() {
            return Ok(());
        }
        let pids: Vec<&str> = refused.keys().map(String::as_str).collect();
        let text = shell.must(&format!("{SCRIPT} who {} || true", pids.join(" ")), SHORT)?;
        for (pid, name) in lines(&text) {
            if self.running.contains_key(&name) {
                let reasons = refused.get(&pid).cloned().unwrap_or_default();
                self.leave(shell, &name, Fate::Refused(reasons))?;
            }
        }
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, pause: &Pause) -> Result<String> {
        let wrong = self.ask(shell)?;
        if pause.blackout_ms.is_some_and(|ms| ms > 0.0) {
            self.tell_table(&wrong)?;
        }
        let mut errors: Vec<String> = wrong
            .iter()
            .map(|(name, answer)| format!("{name}: {answer:.500}"))
            .collect();
        let left = self.left.iter();
        errors.extend(
            left.filter(|(_, fate)| !matches!(fate, Fate::NotHere(_)))
                .map(|(name, fate)| format!("{name}: {fate}")),
        );
        if !errors.is_empty() {
            bail!("{}", errors.join("\n    "));
        }
        Ok(format!("{}, all checked themselves", self.running.len()))
    }
}
