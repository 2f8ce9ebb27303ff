//! Logging before there is a log: `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg).
//!
//! Each record is one write(2). The kernel cuts records at about 1 KiB and drops many of them
//! unless its command line says `printk.devkmsg=on`.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Before every line, so that both kernels' logs can be searched for it.
pub const PREFIX: &str = "kupgrade: ";
/// Bytes of text in one record, well below the kernel's bound.
const LINE: usize = 900;

/// Writes log records to the kernel's log, and to a file once there is a file system for it.
#[derive(Debug)]
struct KmsgLogger {
    outputs: Mutex<Outputs>,
}

#[derive(Debug)]
struct Outputs {
    kernel: File,
    copy: Copied,
}

/// The second place.
#[derive(Debug)]
enum Copied {
    /// Lines that wait for it.
    Kept(String),
    /// It is there. It is not kept open: a file system can be made read-only only when nobody writes to it.
    File(PathBuf),
}

static LOGGER: OnceLock<KmsgLogger> = OnceLock::new();

/// Sends the `log` crate's records of `level` and above to `path` (`/dev/kmsg`).
///
/// # Errors
/// The file cannot be opened. A logger that was installed before stays.
pub fn install(path: &Path, level: LevelFilter) -> std::io::Result<()> {
    let kernel = OpenOptions::new().write(true).open(path)?;
    let logger = LOGGER.get_or_init(|| KmsgLogger {
        outputs: Mutex::new(Outputs {
            kernel,
            copy: Copied::Kept(String::new()),
        }),
    });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Writes all lines logged since [`install`] to the file `path`, and every later one.
///
/// # Errors
/// The directory or the file cannot be made.
pub fn copy_to(path: &Path) -> std::io::Result<()> {
    let Some(logger) = LOGGER.get() else {
        return Ok(());
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut outputs = logger.lock();
    if let Copied::Kept(text) = &outputs.copy {
        file.write_all(text.as_bytes())?;
    }
    outputs.copy = Copied::File(path.to_owned());
    Ok(())
}

impl KmsgLogger {
    fn lock(&self) -> MutexGuard<'_, Outputs> {
        // A poisoned lock only means that another thread panicked while writing.
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outputs {
    fn line(&mut self, level: Level, line: &str) {
        // Nobody could be told of a failure.
        let _ = self
            .kernel
            .write_all(format!("<{}>{PREFIX}{line}\n", priority(level)).as_bytes());
        match &mut self.copy {
            Copied::Kept(text) => {
                text.push_str(line);
                text.push('\n');
            }
            Copied::File(path) => {
                let opened = OpenOptions::new().append(true).open(path);
                let _ = opened.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            }
        }
    }
}

/// syslog(3) levels; the facility is "user", as the kernel wants for what is not its own.
fn priority(level: Level) -> u8 {
    let level = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    8 | level
}

/// Cuts text into records: at line ends, and where a line is too long.
fn records(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut rest = line;
        while rest.len() > LINE {
            let cut = (0..=LINE)
                .rev()
                .find(|at| rest.is_char_boundary(*at))
                .unwrap_or(rest.len());
            let (now, later) = rest.split_at(cut);
            out.push(now);
            rest = later;
        }
        if !rest.is_empty() {
            out.push(rest);
        }
    }
    out
}

impl Log for KmsgLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let mut outputs = self.lock();
        for line in records(&text) {
            outputs.line(record.level(), line);
        }
    }

    fn flush(&self) {}
}

/// Says something that must be seen: an error in the kernel's log, and straight on the console
/// when the kernel is told to keep errors off it (`loglevel=3` and less).
pub fn announce(text: &str) {
    log::error!("{text}");
    let levels = std::fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    if console_shows_errors(&levels) {
        return;
    }
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        for line in text.lines() {
            let _ = console.write_all(format!("{PREFIX}{line}\r\n").as_bytes());
        }
    }
}

/// Whether records of level 3 (error) reach the console; the first number of
/// /proc/sys/kernel/printk is the level from which on they do not.
fn console_shows_errors(levels: &str) -> bool {
    levels
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<u8>().ok())
        .is_some_and(|n| n > 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_into_records_without_loss() {
        let long = "é".repeat(1000);
        let text = format!("first\n\n{long}\nlast");
        let parts = records(&text);
        assert_eq!(parts.first(), Some(&"first"));
        assert_eq!(parts.last(), Some(&"last"));
        assert!(parts.iter().all(|p| p.len() <= LINE));
        assert_eq!(parts[1..parts.len() - 1].concat(), long);
    }

    #[test]
    fn the_console_level_is_understood() {
        assert!(console_shows_errors("4\t4\t1\t7\n"));
        assert!(!console_shows_errors("3\t4\t1\t7\n"));
        assert!(!console_shows_errors(""));
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        assert_eq!(
            [Level::Error, Level::Warn, Level::Info].map(priority),
            [11, 12, 14]
        );
    }
}
