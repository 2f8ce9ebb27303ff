//! One checkpoint and one restore, timed from inside of the namespaces of a load.
//!
//! How long processes stand still is seen from outside, the same way for both programs: the state of the
//! first process in `/proc/PID/stat` is looked at all the time, and counted are the moments from the first
//! one at which a tracer has stopped it (`t`) until it is gone.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::worker::{Life, WorkerArgs, furnish};
use crate::ui;

/// Time between two looks at a process.
const LOOK: Duration = Duration::from_micros(50);

/// A process that never stops is looked at no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `cargo lab bench-worker` takes.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    worker: WorkerArgs,
    /// The folder of CRIU; without it kupgrade is measured
    #[arg(long)]
    criu: Option<PathBuf>,
}

/// Milliseconds, and memory in huge pages in KiB.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// From the first stop of the first process until it is gone.
    pub(super) frozen: f64,
    /// The whole command.
    pub(super) checkpoint: f64,
    /// The whole command; it returns when the processes run.
    pub(super) restore: f64,
    /// Of the first process, before the checkpoint.
    pub(super) huge_before: u64,
    /// After the restore.
    pub(super) huge_after: u64,
}

/// `cargo lab bench-worker`: one checkpoint and one restore, as JSON.
pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    furnish()?;
    let mut life = Life::new(&args.worker);
    life.start()?;
    let image = life.image("bench");
    fs::create_dir_all(&image)?;
    let pid = life.pid.to_string();
    let tool = Tool { args, life: &life };
    let huge_before = huge(life.pid)?;
    let watch = watch(life.pid)?;
    let checkpoint = match args.criu {
        Some(_) => tool.time("dump", &["-t", &pid, "-D"])?,
        None => tool.time("checkpoint", &["--pid", &pid, "--dir"])?,
    };
    let frozen = watch.join().map_err(|_| anyhow!("the watch panicked"))??;
    life.gone()?;
    let restore = match args.criu {
        Some(_) => tool.time("restore", &["-d", "-D"])?,
        None => tool.time("restore", &["--dir"])?,
    };
    let huge_after = huge(life.pid)?;
    life.must_pass("after the restore")?;
    ui::say(&serde_json::to_string(&Measured {
        frozen,
        checkpoint,
        restore,
        huge_before,
        huge_after,
    })?);
    Ok(ExitCode::SUCCESS)
}

/// kupgrade or CRIU.
struct Tool<'a> {
    args: &'a BenchArgs,
    life: &'a Life<'a>,
}

impl Tool<'_> {
    /// Runs it on the image and returns the milliseconds it took.
    fn time(&self, action: &str, options: &[&str]) -> Result<f64> {
        let mut command = match &self.args.criu {
            Some(root) => crate::setup::criu::command(root),
            None => Command::new(&self.args.worker.kupgrade),
        };
        let path = self.life.file(&format!("{action}.out"));
        let log = File::create(&path)?;
        command
            .arg(action)
            .args(options)
            .arg(self.life.image("bench"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let start = Instant::now();
        let status = command.status().context("cannot start it")?;
        let took = milliseconds(start);
        if !status.success() {
            bail!("{action}: {}", fs::read_to_string(&path)?.trim());
        }
        Ok(took)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Looks at a process from now on; tells the milliseconds that it was stopped before it was gone.
fn watch(pid: Pid) -> Result<JoinHandle<Result<f64>>> {
    let stat = File::open(format!("/proc/{pid}/stat"))?;
    let look = move || {
        let begun = Instant::now();
        let mut stopped = None;
        while begun.elapsed() < PATIENCE {
            match state(&stat)? {
                None => return stopped.map(milliseconds).context("it was not seen stopped"),
                Some('t') => drop(stopped.get_or_insert_with(Instant::now)),
                Some(_) => {}
            }
            sleep(LOOK);
        }
        bail!("it is still there after {PATIENCE:?}")
    };
    Ok(thread::spawn(look))
}

/// The state in an open `/proc/PID/stat`; none when the process has ended.
fn state(stat: &File) -> Result<Option<char>> {
    let mut bytes = [0; 256];
    let len = match stat.read_at(&mut bytes, 0) {
        Ok(len) => len,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("reading its state"),
    };
    let text = String::from_utf8_lossy(&bytes[..len]);
    let state = text
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    Ok(state.filter(|state| !matches!(state, 'Z' | 'X')))
}

/// KiB of a process's anonymous memory in huge pages.
fn huge(pid: Pid) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.trim().parse().ok())
        .context("AnonHugePages is missing")
}
