//! The new kernel's command line: the present one with our words in place of older ones.

/// Why no command line can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// A word that changes the memory map in a way that cannot be carried on.
    #[error("the kernel command line has `{word}`, which changes the memory map; boot without it")]
    MemoryMap {
        /// The word.
        word: String,
    },
    /// It became too long for the new kernel.
    #[error("the kernel command line would be {len} bytes long, the new kernel takes {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest the kernel takes.
        max: usize,
    },
}

/// Words of ours and of boot loaders that belong to one boot only.
const FORMER: [&str; 4] = [
    "kupgrade.",
    "BOOT_IMAGE=",
    "initrd=",
    // It would take the memory out of the window, at every start of a small kernel.
    "crashkernel=",
];
const MEMORY_MAP: [&str; 3] = ["mem=", "memmap=", "efi_fake_mem="];

/// `old` without former words and without those that `more` gives another value, with `more` before
/// a lone `--` (what follows is init's).
///
/// # Errors
/// [`CmdlineError`].
pub fn build(old: &str, more: &[String], max: usize) -> Result<String, CmdlineError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut tail: &[&str] = &[];
    let words = split(old);
    for (index, word) in words.iter().enumerate() {
        if *word == "--" {
            tail = &words[index..];
            break;
        }
        if MEMORY_MAP.iter().any(|start| word.starts_with(start)) {
            return Err(CmdlineError::MemoryMap {
                word: (*word).to_owned(),
            });
        }
        let former = FORMER.iter().any(|start| word.starts_with(start));
        if !former && !more.iter().any(|new| key(new) == key(word)) {
            kept.push(word);
        }
    }
    kept.extend(more.iter().map(String::as_str));
    kept.extend(tail);
    let line = kept.join(" ");
    if line.len() > max {
        return Err(CmdlineError::TooLong {
            len: line.len(),
            max,
        });
    }
    Ok(line)
}

/// What comes before the value; all of a word without one.
fn key(word: &str) -> &str {
    word.split_once('=').map_or(word, |(key, _)| key)
}

/// Words, quotes left in, blanks inside of double quotes not splitting.
fn split(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.trim()
        .split(|c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        })
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(old: &str) -> String {
        build(old, &["kupgrade.manifest=0x2000".into()], 2047).unwrap()
    }

    #[test]
    fn former_words_go_and_quotes_stay() {
        let table = [
            ("", "kupgrade.manifest=0x2000"),
            (
                "BOOT_IMAGE=/vmlinuz root=UUID=1  quiet\n",
                "root=UUID=1 quiet kupgrade.manifest=0x2000",
            ),
            (
                "kupgrade.manifest=0x9 a=\"b  c\" kupgrade.x ro",
                "a=\"b  c\" ro kupgrade.manifest=0x2000",
            ),
            (
                "a -- single kupgrade.y",
                "a kupgrade.manifest=0x2000 -- single kupgrade.y",
            ),
        ];
        for (old, want) in table {
            assert_eq!(made(old), want);
        }
        let once = made("root=/dev/vda ro");
        assert_eq!(made(&once), once, "the second upgrade adds nothing");
    }

    #[test]
    fn a_new_value_takes_the_place_of_the_old_one() {
        let more = ["root=UUID=1".to_owned()];
        assert_eq!(
            build("root=/dev/sda rootflags=x ro", &more, 99).unwrap(),
            "rootflags=x ro root=UUID=1"
        );
    }

    #[test]
    fn what_cannot_go_on_is_named() {
        let error = build("ro memmap=1G!4G", &[], 2047).unwrap_err();
        assert!(error.to_string().contains("memmap=1G!4G"));
        let error = build("word", &[], 3).unwrap_err();
        assert_eq!(error, CmdlineError::TooLong { len: 4, max: 3 });
    }
}
