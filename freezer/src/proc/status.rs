//! `/proc/PID/status`.

use super::read_text;
use crate::FreezerError;
use sys::Pid;

/// The lines of `/proc/PID/status`.
#[derive(Clone, Debug)]
pub struct Status {
    text: String,
}

impl Status {
    /// Reads `/proc/PID/status`, or of one thread (`task/TID/status`).
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn read(pid: Pid, what: &str) -> Result<Status, FreezerError> {
        read_text(pid, what).map(|text| Status { text })
    }

    /// From its text, for tests.
    #[must_use]
    pub fn from_text(text: &str) -> Status {
        Status { text: text.into() }
    }

    /// The value of a line, None when the kernel does not print it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.text.lines();
        lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// A hexadecimal mask; 0 when it is missing.
    #[must_use]
    pub fn mask(&self, key: &str) -> u64 {
        self.value(key)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or(0)
    }

    /// The file mode creation mask.
    #[must_use]
    pub fn umask(&self) -> u32 {
        let text = self.value("Umask").unwrap_or_default();
        u32::from_str_radix(text, 8).unwrap_or(0o22)
    }

    /// Numbers separated by white space.
    #[must_use]
    pub fn numbers(&self, key: &str) -> Vec<u32> {
        let text = self.value(key).unwrap_or("");
        text.split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect()
    }

    /// A comma-separated hexadecimal CPU mask as bytes, lowest CPU first.
    #[must_use]
    pub fn cpu_mask(&self, key: &str) -> Vec<u8> {
        let text = self.value(key).unwrap_or("");
        let mut bytes = Vec::new();
        for word in text.rsplit(',') {
            let word = u32::from_str_radix(word, 16).unwrap_or(0);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_masks() {
        let text = "Umask:\t0022\nUid:\t1\t2\t3\t4\nSigBlk:\t00000000000000ff\nCpus_allowed:\t1,00000003\n";
        let status = Status { text: text.into() };
        assert_eq!(status.value("Umask"), Some("0022"));
        assert_eq!(status.numbers("Uid"), [1, 2, 3, 4]);
        assert_eq!(status.mask("SigBlk"), 0xff);
        assert_eq!(status.cpu_mask("Cpus_allowed"), [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(status.value("Nothing"), None);
    }
}
