//! What the command says. That nobody listens any more, as behind a closed pipe, stops nothing.

use crate::limits;
use nix::errno::Errno;
use std::io::{self, ErrorKind, Write};

/// A result, to stdout.
///
/// # Errors
/// When it cannot be written, a full disk say.
pub(crate) fn result(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let said = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    said.or_else(|why| match why.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(why),
    })
}

/// Why the command failed, and what can be done about it where that is no matter of what it was about.
pub(crate) fn failure(error: &anyhow::Error) {
    let why = format!("{error:#}");
    aside(&why);
    if why.contains(Errno::EMFILE.desc()) {
        aside(&limits::too_few_descriptors());
    }
}

/// A line of progress, to stderr: there is no better place to say that it could not be said.
pub(crate) fn aside(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kupgrade: {line}");
}
