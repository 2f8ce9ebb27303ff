//! Running the host's programs: every one bounded, every failure with its output.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One run of a program of the host. It is ended (by `timeout(1)`) when its limit is over.
pub(crate) struct Tool {
    name: String,
    command: Command,
    limit: Duration,
    log: Option<PathBuf>,
}

impl Tool {
    /// A run of `program` with a limit of `limit`.
    pub(crate) fn new(program: &str, limit: Duration) -> Self {
        Self::build(program, limit, false)
    }

    /// The same as root: through `sudo` when the lab itself is not root.
    pub(crate) fn root(program: &str, limit: Duration) -> Self {
        Self::build(program, limit, !nix::unistd::geteuid().is_root())
    }

    fn build(program: &str, limit: Duration, sudo: bool) -> Self {
        let mut command = Command::new(if sudo { "sudo" } else { "timeout" });
        if sudo {
            command.args(["--preserve-env=APT_CONFIG,DEBIAN_FRONTEND", "timeout"]);
        }
        command
            .arg("--kill-after=5")
            .arg(limit.as_secs().max(1).to_string())
            .arg(program)
            .stdin(Stdio::null());
        Self {
            name: program.to_owned(),
            command,
            limit,
            log: None,
        }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets its working directory.
    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Writes what it prints to this file instead of keeping it.
    pub(crate) fn log(mut self, path: PathBuf) -> Self {
        self.log = Some(path);
        self
    }

    /// Runs it; what it prints is shown only when it fails.
    pub(crate) fn run(mut self) -> Result<()> {
        if let Some(path) = self.log.clone() {
            let file =
                File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            self.command.stdout(file.try_clone()?).stderr(file);
            let status = self.command.status().with_context(|| self.cannot_start())?;
            if !status.success() {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                bail!(
                    "{} ({})",
                    self.failed(&status.to_string(), &text),
                    path.display()
                );
            }
            return Ok(());
        }
        self.output().map(drop)
    }

    /// Runs it with the lab's own standard output and error.
    pub(crate) fn run_shown(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| self.cannot_start())?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Runs it and returns its standard output.
    pub(crate) fn output(mut self) -> Result<String> {
        let out = self.command.output().with_context(|| self.cannot_start())?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            let all = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
            bail!("{}", self.failed(&out.status.to_string(), &all));
        }
        Ok(text)
    }

    fn cannot_start(&self) -> String {
        format!("cannot start {}", self.name)
    }

    fn failed(&self, status: &str, text: &str) -> String {
        let end = if status.contains("124") {
            format!("was ended after {} s", self.limit.as_secs())
        } else {
            format!("ended with {status}")
        };
        format!("{} {end}; its last lines:\n{}", self.name, tail(text, 15))
    }
}

/// The last `lines` lines of a text, indented.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..]
        .iter()
        .map(|line| format!("    {}", line.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Does the host have this program?
pub(crate) fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = Tool::new("sleep", SHORT)
            .arg("30")
            .run()
            .expect_err("it was not ended");
        assert!(error.to_string().contains("ended after 1 s"), "{error}");
    }

    #[test]
    fn a_failure_shows_the_last_lines() {
        let error = Tool::new("sh", SHORT)
            .args(["-c", "echo some words >&2; exit 3"])
            .output()
            .expect_err("it did not fail");
        assert!(error.to_string().contains("some words"), "{error}");
    }
}
