//! The kernel command line (Documentation/admin-guide/kernel-parameters.rst).

use super::{EarlyError, Result};
use std::path::Path;

/// Words of `/proc/cmdline`, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    words: Vec<String>,
}

impl CommandLine {
    /// Reads `/proc/cmdline` (or a file like it).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<CommandLine> {
        std::fs::read(path)
            .map(|bytes| CommandLine::parse(&String::from_utf8_lossy(&bytes)))
            .map_err(|source| EarlyError::File {
                path: path.to_owned(),
                source,
            })
    }

    /// Splits at white space outside of double quotes; the quotes go.
    #[must_use]
    pub fn parse(text: &str) -> CommandLine {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quoted = false;
        for c in text.chars() {
            match c {
                '"' => quoted = !quoted,
                c if c.is_whitespace() && !quoted => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                c => word.push(c),
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
        CommandLine { words }
    }

    /// Value of the last `key=value`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether the bare word is there.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }

    /// Words after a lone `--`, and the ones without `=` or `.` that the kernel hands to init.
    #[must_use]
    pub fn init_arguments(&self) -> Vec<String> {
        match self.words.iter().position(|w| w == "--") {
            Some(at) => self.words[at + 1..].to_vec(),
            None => self
                .words
                .iter()
                .filter(|w| matches!(w.as_str(), "single" | "emergency" | "rescue") || runlevel(w))
                .cloned()
                .collect(),
        }
    }
}

fn runlevel(word: &str) -> bool {
    matches!(word.as_bytes(), [b'0'..=b'6' | b's' | b'S'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_values_and_quotes() {
        let line = CommandLine::parse(
            "console=tty0 root=UUID=ab quiet dyndbg=\"file a +p\" console=ttyS0 kupgrade.manifest=0x1000\n",
        );
        assert_eq!(line.get("root"), Some("UUID=ab"));
        assert_eq!(line.get("console"), Some("ttyS0"));
        assert_eq!(line.get("dyndbg"), Some("file a +p"));
        assert_eq!(line.get("kupgrade.manifest"), Some("0x1000"));
        assert_eq!(line.get("roo"), None);
        assert!(line.has("quiet") && !line.has("root"));
    }

    #[test]
    fn init_gets_its_words() {
        assert_eq!(
            CommandLine::parse("a=1 ro single 3").init_arguments(),
            ["single", "3"]
        );
        assert_eq!(
            CommandLine::parse("single -- -x y").init_arguments(),
            ["-x", "y"]
        );
    }
}
