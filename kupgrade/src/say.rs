//! What the command says. That nobody listens any more, as behind a closed pipe, stops nothing.

use crate::limits;
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
    if is_of_descriptors(&why) {
        aside(&limits::too_few_descriptors());
    }
}

/// Whether somebody met the limit of open files (`EMFILE`), as [`nix::errno::Errno`] or [`io::Error`] tell it.
fn is_of_descriptors(why: &str) -> bool {
    why.contains("EMFILE:") || why.contains("(os error 24)")
}

/// A line of progress, to stderr: there is no better place to say that it could not be said.
pub(crate) fn aside(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kupgrade: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn only_the_limit_of_a_process_is_told_of() {
        let is = |errno: Errno| {
            let told = [errno.to_string(), io::Error::from(errno).to_string()];
            told.map(|why| is_of_descriptors(&format!("process 7: opening a pidfd: {why}")))
        };
        assert_eq!(is(Errno::EMFILE), [true, true]);
        // Of the whole host: no limit of the command's helps.
        assert_eq!(is(Errno::ENFILE), [false, false]);
    }
}
