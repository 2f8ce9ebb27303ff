//! The socket between the world and the supervisor: one line each way per connection.

use super::{Result, SupervisorError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Where the supervisor listens, in the mount namespace it shares with the world.
pub const SOCKET: &str = "/run/kupgrade/supervisor.sock";
/// How long one side waits for the other's line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line taken.
const LINE: u64 = 4096;

/// What the supervisor can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Are you there?
    Ping,
    /// Leave this kernel for the one that is staged.
    Jump,
}

impl Request {
    fn word(self) -> &'static str {
        match self {
            Request::Ping => "ping",
            Request::Jump => "jump",
        }
    }

    fn from_word(word: &str) -> Option<Request> {
        [Request::Ping, Request::Jump]
            .into_iter()
            .find(|r| r.word() == word)
    }
}

/// Binds the socket; only root may connect.
///
/// # Errors
/// The directory or the socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |source| SupervisorError::File {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Takes one connection and answers it. `act` gives the answer's text, or why not.
pub fn answer(
    listener: &UnixListener,
    act: impl FnOnce(Request) -> std::result::Result<String, String>,
) {
    let Ok((stream, _)) = listener.accept() else {
        return;
    };
    let text = match read_line(&stream).map(|line| Request::from_word(line.trim())) {
        Err(error) => Err(error.to_string()),
        Ok(None) => Err("that is no request".to_owned()),
        Ok(Some(request)) => act(request),
    };
    let line = match text {
        Ok(text) => format!("ok {text}\n"),
        Err(text) => format!("refused {text}\n"),
    };
    // Whoever asked may have gone.
    let _ = (&stream).write_all(line.as_bytes());
}

fn read_line(stream: &UnixStream) -> std::io::Result<String> {
    use std::io::Read;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut line)?;
    Ok(line)
}

/// Asks the supervisor. A jump that succeeds gives no answer: nothing returns.
///
/// # Errors
/// [`SupervisorError::Unreachable`], [`SupervisorError::Refused`].
pub fn ask(path: &Path, request: Request) -> Result<String> {
    let fail = |source| SupervisorError::Unreachable {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).map_err(fail)?;
    (&stream)
        .write_all(format!("{}\n", request.word()).as_bytes())
        .map_err(fail)?;
    // No bound: after a jump request the next line may only be read on another kernel.
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(fail)?;
    match line.trim_end().split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some((_, text)) => Err(SupervisorError::Refused(text.to_owned())),
        None => Err(SupervisorError::Refused(format!("`{}`", line.trim_end()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let dir = std::env::temp_dir().join(format!("kup-control-{}", std::process::id()));
        let path = dir.join("sock");
        let listener = listen(&path).unwrap();
        let server = std::thread::spawn(move || {
            answer(&listener, |request| Ok(format!("{request:?}")));
            answer(&listener, |_| Err("nothing is staged".to_owned()));
            answer(&listener, |_| Ok(String::new()));
        });
        assert_eq!(ask(&path, Request::Ping).unwrap(), "Ping");
        let refused = ask(&path, Request::Jump).unwrap_err().to_string();
        assert!(refused.contains("nothing is staged"), "{refused}");
        let stream = UnixStream::connect(&path).unwrap();
        (&stream).write_all(b"nonsense\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, "refused that is no request\n");
        server.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        assert!(matches!(
            ask(&path, Request::Ping),
            Err(SupervisorError::Unreachable { .. })
        ));
    }
}
