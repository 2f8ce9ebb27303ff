//! Ready, asked, answered: the protocol between a subject and the lab, by files.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kit::{NotHere, Setting, Watch};

/// How often a subject looks whether it is asked, at first and when nobody has asked for long: hundreds of them wait
/// in one machine.
const TICK: Duration = Duration::from_millis(20);
const SLOW_TICK: Duration = Duration::from_millis(300);

/// The question for breaking what is watched over, see [`Watch::spoil`].
pub(crate) const SPOIL: &str = "spoil";

/// Says that the state stands, then checks it whenever it is asked: `PREFIX.ask` holds a word,
/// the answer in `PREFIX.result` is that word and `PASS`, or `FAIL: reason`.
pub(crate) fn serve(setting: &Setting, start: impl FnOnce() -> Result<Watch>) -> Result<()> {
    put(&setting.path("result"), "")?;
    let mut watch = match start() {
        Ok(watch) => watch,
        Err(error) if error.is::<NotHere>() => {
            return put(&setting.path("ready"), &format!("SKIP {error:#}\n"));
        }
        Err(error) => return Err(error),
    };
    put(
        &setting.path("ready"),
        &format!("READY {}\n", std::process::id()),
    )?;
    let ask = setting.path("ask");
    let mut tick = TICK;
    loop {
        sleep(tick);
        tick = SLOW_TICK.min(tick + TICK / 10);
        if let Ok(word) = fs::read_to_string(&ask) {
            fs::remove_file(&ask).context("cannot remove the question")?;
            let word = word.trim();
            let verdict = match word {
                SPOIL => watch.spoil().map(|()| "SPOILED"),
                _ => watch.check().map(|()| "PASS"),
            }
            .map_or_else(
                |error| format!("FAIL: {error:#}").replace('\n', " "),
                str::to_owned,
            );
            put(&setting.path("result"), &format!("{word} {verdict}\n"))?;
            tick = TICK;
        }
    }
}

/// Asks another subject, a child say, and waits for its answer.
pub(crate) fn ask(setting: &Setting, word: &str, patience: Duration) -> Result<()> {
    put(&setting.path("ask"), word)?;
    let text = wait_for(&setting.path("result"), &format!("{word} "), patience)?;
    match text.trim() {
        "PASS" | "SPOILED" => Ok(()),
        other => bail!("{other}"),
    }
}

/// Waits until a file begins with `start`; returns the rest.
pub(crate) fn wait_for(path: &Path, start: &str, patience: Duration) -> Result<String> {
    let end = std::time::Instant::now() + patience;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some(rest) = text.strip_prefix(start) {
            return Ok(rest.to_owned());
        }
        if std::time::Instant::now() > end {
            bail!("{} still says '{}'", path.display(), text.trim());
        }
        sleep(Duration::from_millis(5));
    }
}

/// Writes a file in one step, so that nobody reads half of it.
pub(crate) fn put(path: &Path, text: &str) -> Result<()> {
    let mut scratch = path.as_os_str().to_owned();
    scratch.push("~");
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
