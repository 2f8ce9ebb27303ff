//! The channel into a guest: the root shell on its second serial port.
//!
//! That shell is a process of the guest like every other: it is carried through an upgrade and
//! goes on after it, so what was typed before the jump is answered after it.

mod inbox;
mod protocol;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use inbox::Inbox;
use protocol::{Request, token};

use crate::tool::tail;

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its exit status as the shell tells it.
    pub(crate) status: i32,
    /// All that was written to the terminal meanwhile.
    pub(crate) text: String,
}

impl Output {
    /// The text, when the status is 0.
    pub(crate) fn ok(self) -> Result<String> {
        if self.status != 0 {
            bail!("exit status {}:\n{}", self.status, tail(&self.text, 15));
        }
        Ok(self.text)
    }
}

/// A command that was typed and is not yet answered.
pub(crate) struct Pending {
    request: Request,
    command: String,
}

/// The shell.
pub(crate) struct Shell {
    stream: UnixStream,
    inbox: Arc<Inbox>,
}

impl Shell {
    /// Takes over QEMU's end of the serial line; all that comes is logged to `dir/shell.log`.
    pub(crate) fn new(stream: UnixStream, dir: &Path) -> Result<Self> {
        let inbox = Inbox::start(stream.try_clone()?, &dir.join("shell.log"))?;
        Ok(Self { stream, inbox })
    }

    /// Waits until a shell answers and makes it quiet: no echo, no prompt.
    pub(crate) fn greet(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let request = Request::new(token()?, " stty -echo -onlcr; PS1= PS2=; set +o history");
            self.stream
                .write_all(request.text.as_bytes())
                .context("the machine's serial line is closed")?;
            match self.inbox.wait(&request, Duration::from_secs(2)) {
                Ok(_) => return Ok(()),
                Err(error) if self.inbox.closed() => return Err(error),
                Err(error) if Instant::now() > end => {
                    return Err(
                        error.context(format!("no shell answered within {} s", limit.as_secs()))
                    );
                }
                // When the shell got only half of the line, it waits for the end of a quotation:
                // Ctrl-C leaves that.
                Err(_) => self
                    .stream
                    .write_all(b"\x03\n")
                    .context("the machine's serial line is closed")?,
            }
        }
    }

    /// Types a command.
    pub(crate) fn start(&mut self, command: &str) -> Result<Pending> {
        let request = Request::new(token()?, command);
        if request
            .text
            .lines()
            .any(|line| line.len() > protocol::LINE_LIMIT)
        {
            bail!(
                "a line of the command is longer than a terminal takes: {:.60}...",
                command
            );
        }
        self.inbox.forget();
        self.stream
            .write_all(request.text.as_bytes())
            .context("the machine's serial line is closed")?;
        Ok(Pending {
            request,
            command: command.to_owned(),
        })
    }

    /// Waits for the answer.
    pub(crate) fn finish(&mut self, pending: &Pending, limit: Duration) -> Result<Output> {
        self.inbox.wait(&pending.request, limit).with_context(|| {
            format!(
                "in the guest: {}",
                pending.command.lines().next().unwrap_or_default()
            )
        })
    }

    /// Types a command and waits for its answer, `limit` at most.
    pub(crate) fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let pending = self.start(command)?;
        self.finish(&pending, limit)
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(crate) fn must(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.run(command, limit)?
            .ok()
            .with_context(|| format!("in the guest: {command}"))
    }

    /// Types a command that will not be answered.
    pub(crate) fn type_line(&mut self, command: &str) -> Result<()> {
        self.inbox.forget();
        self.stream
            .write_all(format!("{command}\n").as_bytes())
            .context("the machine's serial line is closed")
    }

    /// Waits for a text from the guest and returns when it came.
    pub(crate) fn wait_text(&mut self, text: &str, limit: Duration) -> Result<Instant> {
        self.inbox.wait_text(text, limit)
    }

    /// The raw line, for a person.
    pub(crate) fn raw(&self) -> Result<(UnixStream, Arc<Inbox>)> {
        Ok((self.stream.try_clone()?, Arc::clone(&self.inbox)))
    }
}
