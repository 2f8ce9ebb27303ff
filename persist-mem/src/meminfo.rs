//! How much memory the kernel has.

/// A line of /proc/meminfo, in bytes.
fn mem_info(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_mem_info(&text, key)
}

fn parse_mem_info(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// `MemTotal` of /proc/meminfo, in bytes.
#[must_use]
pub fn mem_total() -> Option<u64> {
    mem_info("MemTotal")
}

/// `MemAvailable` of /proc/meminfo, in bytes.
#[must_use]
pub fn mem_available() -> Option<u64> {
    mem_info("MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:        3012345 kB\nMemFree: 12 kB\n";
        assert_eq!(parse_mem_info(text, "MemTotal"), Some(3_012_345 * 1024));
        assert_eq!(parse_mem_info(text, "Mem"), None);
    }
}
