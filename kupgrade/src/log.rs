//! Messages of the libraries to stderr, `KUPGRADE_LOG` sets the level (default `warn`); those of an
//! upgrade to a file as well.

use crate::say;
use log::LevelFilter;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

/// What goes to the file.
const KEPT: LevelFilter = LevelFilter::Info;

#[derive(Debug, Default)]
struct Logger {
    /// Level of stderr.
    level: OnceLock<LevelFilter>,
    file: OnceLock<File>,
}

static LOGGER: Logger = Logger {
    level: OnceLock::new(),
    file: OnceLock::new(),
};

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }
    fn log(&self, record: &log::Record<'_>) {
        if self
            .level
            .get()
            .is_some_and(|level| record.level() <= *level)
        {
            say::aside(&format!("{}: {}", record.target(), record.args()));
        }
        if let Some(mut file) = self.file.get().filter(|_| record.level() <= KEPT) {
            // A full disk must not stop an upgrade.
            let _ = writeln!(file, "{}: {}", record.target(), record.args());
        }
    }
    fn flush(&self) {}
}

/// Installs it.
pub(crate) fn init() {
    let level = std::env::var("KUPGRADE_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(LevelFilter::Warn);
    let _ = LOGGER.level.set(level);
    log::set_max_level(level);
    // Fails only when a logger is installed already; this is the only place that does.
    let _ = log::set_logger(&LOGGER);
}

/// Keeps messages from now on in a file, too, a new one each time.
pub(crate) fn keep(path: &Path) {
    let made = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| File::create(path));
    match made {
        Ok(file) => {
            let _ = LOGGER.file.set(file);
            log::set_max_level(log::max_level().max(KEPT));
        }
        Err(error) => log::warn!("{}: {error}", path.display()),
    }
}
