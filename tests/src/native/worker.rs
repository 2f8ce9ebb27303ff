//! The life of one subject, told from inside of its namespaces: this process is PID 1 there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::conformance::Fate;
use crate::ui;

/// How long the whole life of a subject may take.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// Seconds that one step of it may take, unless told otherwise.
const STEP: u64 = 30;

/// How long a subject whose calls have time-outs is away once: longer than these may be late.
const AWAY: Duration = Duration::from_millis(700);

/// Whether that matters to a subject.
fn is_timed(name: &str) -> bool {
    name.contains("timed") || name.ends_with("-twice")
}

/// What `cargo lab native-worker` takes.
#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The subject
    name: String,
    /// The program of the subjects
    subject: PathBuf,
    /// kupgrade
    pub(super) kupgrade: PathBuf,
    /// Where logs and images go
    dir: PathBuf,
    /// Seconds that each step may take
    #[arg(long, default_value_t = STEP)]
    step: u64,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Story {
    /// In one word and its reason.
    pub(super) fate: Fate,
    /// Its state was broken and its check did not see it.
    pub(super) survives_spoiling: bool,
    /// Milliseconds that the last checkpoint and restore took.
    checkpoint_ms: f64,
    restore_ms: f64,
}

impl Story {
    /// The times in words.
    pub(super) fn times(&self) -> String {
        format!(
            "checkpoint {:.0} ms, restore {:.0} ms",
            self.checkpoint_ms, self.restore_ms
        )
    }
}

/// `cargo lab native-worker`: prints the story as JSON.
pub(crate) fn worker(args: &WorkerArgs) -> Result<ExitCode> {
    if !nix::unistd::getpid().eq(&Pid::from_raw(1)) {
        bail!("this runs as PID 1 of namespaces of its own only; use cargo lab test one-kernel");
    }
    furnish()?;
    let mut life = Life::new(args);
    if let Err(error) = life.live() {
        life.story.fate = Fate::Wrong(format!("{error:#}"));
    }
    ui::say(&serde_json::to_string(&life.story)?);
    Ok(ExitCode::SUCCESS)
}

/// Mounts that belong to the namespaces.
pub(super) fn furnish() -> Result<()> {
    let fresh = |kind: &str, at: &str, data: Option<&str>| {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), data)
            .with_context(|| format!("cannot mount {kind} on {at}"))
    };
    fresh("devpts", "/dev/pts", Some("ptmxmode=666"))?;
    fs::create_dir_all("/dev/mqueue")?;
    fresh("mqueue", "/dev/mqueue", None)
}

/// A subject while it lives.
pub(super) struct Life<'a> {
    args: &'a WorkerArgs,
    pub(super) pid: Pid,
    asked: u32,
    story: Story,
}

impl<'a> Life<'a> {
    pub(super) fn new(args: &'a WorkerArgs) -> Self {
        Self {
            args,
            pid: Pid::from_raw(0),
            asked: 0,
            story: Story {
                fate: Fate::Carried,
                survives_spoiling: false,
                checkpoint_ms: 0.0,
                restore_ms: 0.0,
            },
        }
    }

    fn live(&mut self) -> Result<()> {
        if let Some(why) = self.start()? {
            self.story.fate = Fate::NotHere(why);
            return Ok(());
        }
        self.must_pass("before anything was done")?;
        let when = match self.checkpoint("left", &["--leave-running"])? {
            None => "after a checkpoint that let it run on",
            // Some things can only be carried away.
            Some(_) => "after a refusal",
        };
        self.must_pass(when)?;
        for round in ["first", "second"] {
            if let Some(refusal) = self.checkpoint(round, &[])? {
                self.must_pass(&format!("after the {round} refusal"))?;
                self.story.fate = Fate::Refused(refusal);
                break;
            }
            self.gone()?;
            if round == "first" && is_timed(&self.args.name) {
                sleep(AWAY);
            }
            self.restore(round)?;
            self.must_pass(&format!("after the {round} restore"))?;
        }
        self.spoil()
    }

    fn step(&self) -> Duration {
        Duration::from_secs(self.args.step)
    }

    pub(super) fn file(&self, ending: &str) -> PathBuf {
        self.args.dir.join(format!("s.{ending}"))
    }

    /// Starts the subject in a session of its own; returns why it cannot run here.
    pub(super) fn start(&mut self) -> Result<Option<String>> {
        let log = File::create(self.file("log"))?;
        let child = Command::new("setsid")
            .arg(&self.args.subject)
            .arg(&self.args.name)
            .arg(self.args.dir.join("s"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the subject")?;
        self.pid = Pid::from_raw(i32::try_from(child.id())?);
        let text = self
            .wait_for("ready", "")
            .context("it does not get ready")?;
        if let Some(why) = text.strip_prefix("SKIP ") {
            return Ok(Some(why.trim().to_owned()));
        }
        Ok(None)
    }

    /// Waits until a file of the subject begins with `start`, and returns the rest.
    fn wait_for(&self, ending: &str, start: &str) -> Result<String> {
        let path = self.file(ending);
        let end = Instant::now() + self.step();
        loop {
            let text = fs::read_to_string(&path).unwrap_or_default();
            if let Some(rest) = text.strip_prefix(start).filter(|rest| !rest.is_empty()) {
                return Ok(rest.trim().to_owned());
            }
            if let Some(status) = self.reap(self.pid)? {
                let log = fs::read_to_string(self.file("log")).unwrap_or_default();
                if ending != "ready" || !path.exists() {
                    bail!("it has ended ({status:?}): {}", log.trim());
                }
            }
            if Instant::now() > end {
                bail!("no answer within {:?}", self.step());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Reaps whatever has ended, as PID 1 must; returns the end of `wanted`.
    fn reap(&self, wanted: Pid) -> Result<Option<WaitStatus>> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(None),
                Ok(status) if status.pid() == Some(wanted) => return Ok(Some(status)),
                Ok(_) => {}
                Err(error) => return Err(error).context("waitpid"),
            }
        }
    }

    fn ask(&mut self, word: &str) -> Result<String> {
        self.asked += 1;
        let word = match word {
            "" => self.asked.to_string(),
            word => word.to_owned(),
        };
        let scratch = self.file("asking");
        fs::write(&scratch, &word)?;
        fs::rename(&scratch, self.file("ask"))?;
        self.wait_for("result", &format!("{word} "))
    }

    pub(super) fn must_pass(&mut self, when: &str) -> Result<()> {
        match self.ask("").with_context(|| when.to_owned())?.as_str() {
            "PASS" => Ok(()),
            other => bail!("{when} it says {other}"),
        }
    }

    /// Breaks its state, if it knows how: the check must see it.
    fn spoil(&mut self) -> Result<()> {
        match self.ask("spoil")?.as_str() {
            "SPOILED" => self.story.survives_spoiling = self.ask("")? == "PASS",
            // tests/subjects/src/kit/mod.rs
            answer if answer.contains("nobody said how to break it") => {}
            answer => bail!("its state cannot be broken: {answer}"),
        }
        Ok(())
    }

    /// Returns why it was refused.
    fn checkpoint(&mut self, image: &str, more: &[&str]) -> Result<Option<String>> {
        let start = Instant::now();
        let (ok, text) =
            self.kupgrade(image, &["checkpoint", "--pid", &self.pid.to_string()], more)?;
        self.story.checkpoint_ms = start.elapsed().as_secs_f64() * 1e3;
        if !ok && !text.contains("nothing was touched") {
            bail!("checkpoint fails: {text}");
        }
        Ok((!ok).then_some(text))
    }

    fn restore(&mut self, image: &str) -> Result<()> {
        let start = Instant::now();
        let (ok, text) = self.kupgrade(image, &["restore"], &[])?;
        self.story.restore_ms = start.elapsed().as_secs_f64() * 1e3;
        if !ok {
            bail!("the {image} restore fails: {text}");
        }
        Ok(())
    }

    /// Runs kupgrade on an image; returns whether it was successful, and what it printed.
    fn kupgrade(&self, image: &str, args: &[&str], more: &[&str]) -> Result<(bool, String)> {
        // With the limit of an ordinary shell, whatever that of the lab is.
        let mut command = Command::new("prlimit");
        command.arg("--nofile=1024:").arg(&self.args.kupgrade);
        command.args(args).arg("--dir").arg(self.image(image));
        command.args(more);
        self.run(command, &format!("{image}-{}", args[0]))
    }

    /// Runs a program, whose output goes into a file of this name.
    fn run(&self, mut command: Command, name: &str) -> Result<(bool, String)> {
        let path = self.file(&format!("{name}.out"));
        let log = File::create(&path)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let end = Instant::now() + self.step();
        let status = loop {
            if let Some(status) = self.reap(pid)? {
                break status;
            }
            if Instant::now() > end {
                bail!("{name} takes more than {:?}", self.step());
            }
            sleep(Duration::from_millis(1));
        };
        let text = fs::read_to_string(&path)?.trim().to_owned();
        Ok(match status {
            WaitStatus::Exited(_, code) => (code == 0, text),
            other => (false, format!("{text} ({other:?})")),
        })
    }

    pub(super) fn image(&self, name: &str) -> PathBuf {
        self.args.dir.join(format!("image-{name}"))
    }

    /// Waits until nothing is left of the tree, zombies included.
    pub(super) fn gone(&self) -> Result<()> {
        let end = Instant::now() + self.step();
        while Path::new("/proc").join(self.pid.to_string()).exists() {
            self.reap(Pid::from_raw(0))?;
            if Instant::now() > end {
                bail!("process {} is still there after its checkpoint", self.pid);
            }
            sleep(Duration::from_millis(1));
        }
        self.reap(Pid::from_raw(0)).map(drop)
    }
}
