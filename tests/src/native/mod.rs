//! The tests on one kernel that need no virtual machine: every subject lives through a
//! checkpoint that lets it run on, and through checkpoint and restore, twice.
//!
//! Each subject has PIDs, mounts, IPC objects and a network of its own ([`worker`]), so that
//! several run side by side and nothing is left behind.

mod bench;
mod guest;
mod measure;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use bench::{BenchmarkArgs, bench};
pub(crate) use guest::{every_subject, program as guest_program};
pub(crate) use measure::{BenchArgs, bench as bench_worker};
pub(crate) use worker::{WorkerArgs, worker};

use crate::conformance::{Fate, Table};
use crate::paths;
use crate::rig;
use crate::tool::Tool;
use worker::Story;

/// Names of these tests begin so.
const PREFIX: &str = "one-kernel/";

/// A subject as `subject --table` tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Its test's name.
    pub(crate) test: String,
    name: String,
    /// What is expected of it on one kernel.
    expected: Fate,
}

/// The lab's own worker for a subject, in namespaces of its own.
fn apart(worker: &str, name: &str, subject: &Path, kupgrade: &Path, dir: &Path) -> Result<Tool> {
    let lab = std::env::current_exe().context("cannot find the lab's own program")?;
    Ok(Tool::root("unshare", worker::LIMIT)
        .args(["--pid", "--fork", "--kill-child", "--mount"])
        .args(["--mount-proc", "--ipc"])
        // CRIU looks for a loopback interface that is on.
        .args((worker == "native-worker").then_some("--net"))
        .arg(lab)
        .args([worker, name])
        .args([subject, kupgrade, dir]))
}

/// What the tests are run with.
pub(crate) struct Native {
    subject: PathBuf,
    kupgrade: PathBuf,
    dir: PathBuf,
    table: Mutex<Table>,
}

impl Native {
    /// Builds kupgrade and the subjects; returns the subjects that `wanted` wants.
    pub(crate) fn prepare(wanted: impl Fn(&str) -> bool) -> Result<(Self, Vec<Subject>)> {
        let program = |package| -> Result<PathBuf> {
            rig::build(package)?
                .pop()
                .with_context(|| format!("{package} has no program"))
        };
        let native = Self {
            subject: program("subjects")?,
            kupgrade: program("kupgrade")?,
            dir: paths::run_dir("one-kernel")?,
            table: Mutex::new(Table::load()),
        };
        let text = Tool::new(&native.subject.to_string_lossy(), Duration::from_secs(10))
            .arg("--table")
            .output()?;
        let mut subjects = Vec::new();
        let mut table = native.table();
        for line in text.lines() {
            let [group, name, here, across, resource] =
                line.splitn(5, '\t').collect::<Vec<_>>()[..]
            else {
                bail!("the subjects' table has a line '{line}'");
            };
            table.add(group, name, resource, Fate::parse(across));
            let test = format!("{PREFIX}{group}/{name}");
            if wanted(&test) {
                subjects.push(Subject {
                    test,
                    name: name.to_owned(),
                    expected: Fate::parse(here),
                });
            }
        }
        table.keep_listed();
        drop(table);
        Ok((native, subjects))
    }

    /// Runs them, as many at a time as there are `lanes`, and tells the result of each.
    pub(crate) fn run(
        &self,
        subjects: &[Subject],
        lanes: usize,
        tell: impl Fn(&Subject, Result<String>) + Sync,
    ) -> Result<()> {
        let next = Mutex::new(subjects.iter());
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    loop {
                        let subject = next
                            .lock()
                            .unwrap_or_else(|poison| poison.into_inner())
                            .next();
                        let Some(subject) = subject else { break };
                        let story = self.live(subject);
                        tell(subject, self.judge(subject, story));
                    }
                });
            }
        });
        self.table().save()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Runs one subject in namespaces of its own.
    fn live(&self, subject: &Subject) -> Result<Story> {
        let dir = self.fresh(&subject.name)?;
        let text = apart(
            "native-worker",
            &subject.name,
            &self.subject,
            &self.kupgrade,
            &dir,
        )?
        .output()?;
        serde_json::from_str(text.trim()).with_context(|| format!("the worker said '{text}'"))
    }

    /// A directory for a run of a subject, of which there may be several.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let mut dir = self.dir.join(name);
        let mut number = 1;
        loop {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    number += 1;
                    dir = self.dir.join(format!("{name}.{number}"));
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}", dir.display()));
                }
                Ok(()) => return Ok(dir),
            }
        }
    }

    /// Is it what was expected? Returns what is to be told.
    fn judge(&self, subject: &Subject, story: Result<Story>) -> Result<String> {
        let story = story?;
        self.table().here(&subject.name, &story.fate);
        verdict(&subject.expected, &story)
    }
}

/// Is it what was expected? Returns what is to be told.
fn verdict(expected: &Fate, story: &Story) -> Result<String> {
    if story.survives_spoiling {
        bail!("its check passes after its state was broken");
    }
    match (expected, &story.fate) {
        (_, Fate::NotHere(why)) => Ok(format!("not on this machine: {why}")),
        (Fate::Carried, Fate::Carried) => Ok(story.times()),
        (Fate::Refused(words), Fate::Refused(text)) if text.contains(words.as_str()) => {
            Ok(format!("refused, as expected: {words}"))
        }
        (Fate::Wrong(why), Fate::Wrong(_)) => Ok(format!("a known defect: {why}")),
        (expected, Fate::Carried) => {
            bail!("it is carried, but expected.rs says '{expected}': update the list")
        }
        (Fate::Carried, fate) => bail!("{fate}"),
        (expected, fate) => bail!("{fate}\nexpected.rs says '{expected}'"),
    }
}
