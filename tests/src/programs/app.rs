//! The real programs: each is a script in `guest/programs/apps` that starts one with load on it, notes what must be the
//! same, and verifies it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Pause, Program, SHORT};
use crate::guest::Shell;

/// The scripts. What must last through the upgrade is begun last: a save of Redis, a compile.
pub(crate) const ALL: &[&str] = &[
    "postgres",
    "mariadb",
    "memcached",
    "nginx",
    "asyncio_server",
    "node",
    "jvm",
    "go",
    "terminal",
    "redis",
    "make",
];

/// How long a script may take: a translated machine is ten times slower than a real one.
const PATIENCE: Duration = Duration::from_secs(1800);

/// One of them.
pub(crate) struct App {
    script: &'static str,
}

impl App {
    pub(crate) fn new(script: &'static str) -> Self {
        Self { script }
    }

    /// Runs its script, whose last line is what is to be told.
    fn call(&self, shell: &mut Shell, words: &str) -> Result<String> {
        let script = self.script;
        let command = format!("python3 /opt/kupgrade/lab/apps/{script}.py {words} 2>&1");
        let output = shell.run(&command, PATIENCE)?;
        let last = output.text.trim().lines().last().unwrap_or_default();
        if output.status != 0 {
            let logs = shell.run(
                &format!("cd /var/lab/apps/{script} && tail -n 8 *log *out 2>/dev/null"),
                SHORT,
            );
            bail!(
                "{}\n{}",
                output.text.trim(),
                logs.map_or_else(|e| e.to_string(), |o| o.text)
            );
        }
        Ok(last.to_owned())
    }
}

impl Program for App {
    fn name(&self) -> String {
        self.script.replace('_', " ")
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        self.call(shell, "start")
            .context("it does not start")
            .map(drop)
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.call(shell, "note").map(drop)
    }

    fn verify(&mut self, shell: &mut Shell, pause: &Pause) -> Result<String> {
        let blackout = pause.blackout_ms.unwrap_or_default();
        self.call(shell, &format!("verify {blackout}"))
    }
}
