//! `--external fd[NN]` and `--external unix:NAME`.

use std::str::FromStr;

/// What leads out of the tree and is not carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum External {
    /// A descriptor by its number in the tree's first process; at the restore this program's own
    /// descriptor with that number takes its place.
    Descriptor(i32),
    /// The unix socket of this name (its path, or an abstract name with its leading NUL): those
    /// connected to it are connected again.
    Unix(Vec<u8>),
}

impl FromStr for External {
    type Err = String;

    fn from_str(text: &str) -> Result<External, String> {
        match text.strip_prefix("unix:") {
            // As ss(8) and netstat(8) write abstract names.
            Some(name) if name.starts_with('@') => {
                return Ok(External::Unix([b"\0", &name.as_bytes()[1..]].concat()));
            }
            Some(name) if !name.is_empty() => return Ok(External::Unix(name.into())),
            _ => {}
        }
        let number = text
            .strip_prefix("fd[")
            .and_then(|rest| rest.strip_suffix(']'));
        number
            .and_then(|number| number.parse().ok())
            .filter(|number| *number >= 0)
            .map(External::Descriptor)
            .ok_or_else(|| format!("`{text}` is neither fd[NUMBER] nor unix:NAME"))
    }
}

impl External {
    /// The numbers and the names of a list.
    pub(crate) fn split(all: &[External]) -> (Vec<i32>, Vec<Vec<u8>>) {
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for external in all {
            match external {
                External::Descriptor(number) => numbers.push(*number),
                External::Unix(name) => names.push(name.clone()),
            }
        }
        (numbers, names)
    }
}

#[cfg(test)]
mod tests {
    use super::External;

    #[test]
    fn numbers_in_brackets_and_names() {
        assert_eq!("fd[12]".parse(), Ok(External::Descriptor(12)));
        assert_eq!("unix:/a".parse(), Ok(External::Unix(b"/a".to_vec())));
        assert_eq!("unix:@b".parse(), Ok(External::Unix(b"\0b".to_vec())));
        for bad in ["12", "fd[]", "fd[-1]", "fd[x]", "unix:"] {
            assert!(bad.parse::<External>().is_err(), "{bad}");
        }
    }
}
