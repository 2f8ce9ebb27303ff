//! The same on the kernels of machines: all subjects, one after the other, told by the same worker.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::verdict;
use super::worker::Story;
use crate::conformance::Fate;
use crate::guest::Shell;
use crate::paths;
use crate::ui;

/// All of them take ten minutes with a translator.
const PATIENCE: Duration = Duration::from_secs(3000);

/// What is refused in a machine only: `net.core.default_qdisc` is told to nobody in a network namespace of its own, so
/// that what Debian's kernels give an interface by themselves looks like somebody's.
const REFUSED: &[(&str, &str)] = &[
    ("tun", "queueing discipline"),
    ("tun-offloads", "queueing discipline"),
];

/// The lab itself, by the name under which the machine has it.
pub(crate) fn program() -> Result<PathBuf> {
    let lab = std::env::current_exe().context("cannot find the lab's own program")?;
    let copy = paths::run_dir("guest-program")?.join("native-worker");
    fs::copy(&lab, &copy).with_context(|| format!("cannot copy {}", lab.display()))?;
    Ok(copy)
}

/// Every subject through checkpoint and restore inside of a machine.
pub(crate) fn every_subject(shell: &mut Shell) -> Result<()> {
    let table = shell.must("subject --table", Duration::from_secs(30))?;
    let mut expected = BTreeMap::new();
    for line in table.lines() {
        if let [_, name, here, ..] = line.split('\t').collect::<Vec<_>>()[..] {
            expected.insert(name, Fate::parse(here));
        }
    }
    for (name, words) in REFUSED {
        expected.insert(name, Fate::Refused((*words).to_owned()));
    }
    let text = shell.must("bash /opt/kupgrade/lab/one-kernel.sh 4", PATIENCE)?;
    let mut wrong = Vec::new();
    for line in text.lines() {
        let Some((name, story)) = line.split_once(' ') else {
            continue;
        };
        let Some(expected) = expected.remove(name) else {
            continue;
        };
        let told = serde_json::from_str::<Story>(story.trim())
            .with_context(|| format!("the worker said '{story}'"))
            .and_then(|story| verdict(&expected, &story));
        match told {
            Ok(text) => ui::step(&format!("    {name}: {text}")),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    wrong.extend(expected.keys().map(|name| format!("{name}: no answer")));
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("\n    "))
}
