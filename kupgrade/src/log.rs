//! Messages of the libraries to stderr; `KUPGRADE_LOG` sets the level (default `warn`).

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("kupgrade: {}: {}", record.target(), record.args());
        }
    }
    fn flush(&self) {}
}

/// Installs it.
pub(crate) fn init() {
    let level = std::env::var("KUPGRADE_LOG")
        .ok()
        .and_then(|text| text.parse().ok());
    log::set_max_level(level.unwrap_or(log::LevelFilter::Warn));
    // Fails only when a logger is installed already; this is the only place that does.
    let _ = log::set_logger(&Stderr);
}
