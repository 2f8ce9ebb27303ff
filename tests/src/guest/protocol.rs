//! How a command and its answer are told apart from all else on a terminal.
//!
//! The command's output stands between two lines that hold a random token. The typed text
//! never holds such a line itself, so an echo of it is not taken for an answer, and whatever
//! other processes write is part of the output at worst.

use std::io::Read;

use anyhow::{Context, Result};

use super::Output;

/// The longest line that a terminal in canonical mode takes (`N_TTY_BUF_SIZE` less one).
pub(super) const LINE_LIMIT: usize = 4000;

/// A command and the lines that mark its answer.
pub(super) struct Request {
    /// What is typed.
    pub(super) text: String,
    begin: String,
    end: String,
}

impl Request {
    /// Wraps a command of one or more lines. It runs in the shell itself, not in a child.
    pub(super) fn new(token: String, command: &str) -> Self {
        let quoted = command.replace('\'', r"'\''");
        let text = format!(
            "printf '\\n@%s-B\\n' {token}; eval '{quoted}'; printf '\\n@%s-E %d\\n' {token} $?\n"
        );
        Self {
            text,
            begin: format!("@{token}-B"),
            end: format!("@{token}-E "),
        }
    }

    /// The answer, when all of it came.
    pub(super) fn answer(&self, bytes: &[u8]) -> Option<Output> {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        let start = text.find(&self.begin)? + self.begin.len();
        let body = text.get(start..)?.strip_prefix('\n')?;
        let stop = body.find(&self.end)?;
        let (status, _) = body.get(stop + self.end.len()..)?.split_once('\n')?;
        let output = body.get(..stop)?;
        Some(Output {
            status: status.trim().parse().ok()?,
            text: output.strip_suffix('\n').unwrap_or(output).to_owned(),
        })
    }
}

/// A random token.
pub(super) fn token() -> Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::new("t0k".into(), "echo it's")
    }

    #[test]
    fn an_answer_between_noise() {
        let bytes = b"noise\n@t0k-B\nline one\r\nline two\n\n@t0k-E 3\nmore";
        let output = request().answer(bytes).expect("an answer");
        assert_eq!(
            output,
            Output {
                status: 3,
                text: "line one\nline two\n".into()
            }
        );
    }

    #[test]
    fn an_echo_of_the_command_is_no_answer() {
        let request = request();
        let echo = request.text.clone();
        assert_eq!(request.answer(echo.as_bytes()), None);
    }

    #[test]
    fn half_an_answer_is_none() {
        assert_eq!(request().answer(b"\n@t0k-B\nx\n@t0k-E 1"), None);
        assert_eq!(request().answer(b"\n@other-B\nx\n@other-E 1\n"), None);
    }

    #[test]
    fn quotes_survive() {
        assert!(request().text.contains(r"eval 'echo it'\''s'"));
    }
}
