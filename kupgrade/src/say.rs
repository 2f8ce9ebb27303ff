//! What the command says. That nobody listens any more, as behind a closed pipe, stops nothing.

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

/// A line of progress or an error, to stderr: there is no better place to say that it could not be said.
pub(crate) fn aside(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kupgrade: {line}");
}
