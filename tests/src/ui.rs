//! What the lab tells on the terminal.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints one line of progress with the seconds since the lab started.
pub(crate) fn step(text: &str) {
    let start = START.get_or_init(Instant::now);
    println!("[{:6.1} s] {text}", start.elapsed().as_secs_f64());
    flush();
}

/// Prints text as it is.
pub(crate) fn say(text: &str) {
    println!("{text}");
    flush();
}

/// Prints a warning or error on standard error.
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

fn flush() {
    // A closed pipe behind us is no reason to stop a run half-way.
    let _ = std::io::stdout().flush();
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_for_people() {
        assert_eq!(super::bytes(17), "17 B");
        assert_eq!(super::bytes(1536), "1.5 KiB");
        assert_eq!(super::bytes(3 << 30), "3.0 GiB");
    }
}
