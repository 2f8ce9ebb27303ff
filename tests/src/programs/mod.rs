//! Ordinary programs that live through upgrades, and how each is verified afterwards.

mod app;
mod counter;
mod pipeline;
mod redis;
mod settings;
mod shell;
mod subjects;

use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use app::App;
pub(crate) use counter::Counter;
pub(crate) use pipeline::Pipeline;
pub(crate) use redis::Redis;
pub(crate) use settings::Settings;
pub(crate) use shell::OperatorShell;
pub(crate) use subjects::Subjects;

use crate::guest::Shell;

/// For commands that answer at once, with room for a busy host.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

/// What is known of the upgrade between two looks at a program.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pause {
    /// How long the programs stood still, in milliseconds, as kupgrade tells it.
    pub(crate) blackout_ms: Option<f64>,
}

/// A program that is carried.
pub(crate) trait Program {
    /// What people call it.
    fn name(&self) -> String;

    /// Starts it in the guest and waits until it is at work.
    fn start(&mut self, shell: &mut Shell) -> Result<()>;

    /// Takes down what must be the same after the next upgrade.
    fn note(&mut self, shell: &mut Shell) -> Result<()>;

    /// Verifies it against the last note. Returns what is to be told of it.
    fn verify(&mut self, shell: &mut Shell, pause: &Pause) -> Result<String>;
}

/// The programs of the demonstration. `data` is MiB in Redis.
pub(crate) fn demonstration(data: u64) -> Vec<Box<dyn Program>> {
    vec![
        Box::new(OperatorShell::default()),
        Box::new(Redis::new(data)),
        Box::new(Counter::default()),
        Box::new(Pipeline::default()),
    ]
}

/// The real programs whose names are among `names`; all of them when it is empty.
pub(crate) fn apps(names: &str) -> Vec<Box<dyn Program>> {
    app::ALL
        .iter()
        .filter(|name| names.is_empty() || names.split(' ').any(|wanted| wanted == **name))
        .map(|name| Box::new(App::new(name)) as Box<dyn Program>)
        .collect()
}

/// Verifies all of them and returns what is wrong, a line each.
pub(crate) fn verify_all(
    programs: &mut [Box<dyn Program>],
    shell: &mut Shell,
    pause: &Pause,
    mut tell: impl FnMut(&str),
) -> Vec<String> {
    let mut errors = Vec::new();
    for program in programs {
        match program.verify(shell, pause) {
            Ok(text) => tell(&format!("{}: {text}", program.name())),
            Err(error) => {
                let line = format!("{}: {error:#}", program.name());
                tell(&format!("WRONG {line}"));
                errors.push(line);
            }
        }
    }
    errors
}

/// PID, ancestry, session, terminal and command line of a process: must survive an upgrade.
fn identity(shell: &mut Shell, pid: u32) -> Result<String> {
    let text = shell
        .must(
            &format!("ps -ww -o pid=,ppid=,pgid=,sid=,tty=,uid=,args= -p {pid}"),
            SHORT,
        )
        .with_context(|| format!("process {pid} is gone"))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Complains when something is not what it was.
fn same(what: &str, before: &str, after: &str) -> Result<()> {
    if before != after {
        bail!("{what} was '{before}' and is '{after}'");
    }
    Ok(())
}

/// Waits until a command's output satisfies `enough`.
fn until(
    shell: &mut Shell,
    command: &str,
    limit: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<String> {
    let end = std::time::Instant::now() + limit;
    loop {
        let output = shell.run(command, SHORT)?;
        if output.status == 0 && enough(output.text.trim()) {
            return Ok(output.text.trim().to_owned());
        }
        if std::time::Instant::now() > end {
            bail!(
                "'{command}' still said '{}' after {} s",
                output.text.trim(),
                limit.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The whole number that a guest printed.
fn number(text: &str) -> Result<u64> {
    text.trim()
        .parse()
        .with_context(|| format!("'{}' is not a number", text.trim()))
}
