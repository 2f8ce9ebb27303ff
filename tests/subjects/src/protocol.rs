//! Ready, asked, answered: the protocol between a subject and the lab, by files.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a subject looks whether it is asked.
const TICK: Duration = Duration::from_millis(50);

/// Says that the state stands, then checks it whenever it is asked: `PREFIX.ask` holds a word,
/// the answer in `PREFIX.result` is that word and `PASS`, or `FAIL: reason`.
pub(crate) fn serve(prefix: &str, mut check: Box<dyn FnMut() -> Result<()>>) -> Result<()> {
    let file = |ending: &str| PathBuf::from(format!("{prefix}.{ending}"));
    put(&file("result"), "")?;
    put(&file("ready"), &format!("READY {}\n", std::process::id()))?;
    loop {
        if let Ok(word) = fs::read_to_string(file("ask")) {
            fs::remove_file(file("ask")).context("cannot remove the question")?;
            let verdict = match check() {
                Ok(()) => "PASS".to_owned(),
                Err(error) => format!("FAIL: {error:#}").replace('\n', " "),
            };
            put(&file("result"), &format!("{} {verdict}\n", word.trim()))?;
        }
        sleep(TICK);
    }
}

/// Writes a file in one step, so that nobody reads half of it.
fn put(path: &PathBuf, text: &str) -> Result<()> {
    let scratch = path.with_extension("tmp");
    fs::write(&scratch, text)
        .and_then(|()| fs::rename(&scratch, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Prints an error.
#[allow(clippy::print_stderr, reason = "a subject is a command")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

/// Prints text as it is.
#[allow(clippy::print_stdout, reason = "a subject is a command")]
pub(crate) fn say(text: &str) {
    print!("{text}");
}
