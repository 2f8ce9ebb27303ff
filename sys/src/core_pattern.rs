//! Where cores go (core(5)).

use std::io;

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// The pattern of their names, with the end of its line.
///
/// # Errors
/// As of reading a file.
pub fn read() -> io::Result<String> {
    std::fs::read_to_string(PATTERN)
}

/// Sets it.
///
/// # Errors
/// As of writing a file.
pub fn write(pattern: &str) -> io::Result<()> {
    std::fs::write(PATTERN, pattern)
}

/// Whether cores go to files in the current directories of those who leave them: neither to a handler, nor to a
/// place of their own, nor nowhere.
#[must_use]
pub fn is_file(pattern: &str) -> bool {
    let pattern = pattern.trim_end();
    !pattern.is_empty() && !pattern.starts_with(['|', '@']) && !pattern.contains('/')
}

#[cfg(test)]
mod tests {
    use super::is_file;

    #[test]
    fn where_cores_go() {
        assert!(is_file("core\n") && is_file("core.%p"));
        for other in [
            "",
            "\n",
            "|/usr/bin/handler %p",
            "/var/crash/%p",
            "@/socket",
            "a/core",
        ] {
            assert!(!is_file(other), "{other}");
        }
    }
}
