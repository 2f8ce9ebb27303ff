//! `--external fd[NN]`.

use std::str::FromStr;

/// A descriptor that leads out of the tree, by its number in the tree's first process; at the restore this
/// program's own descriptor with that number takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct External(pub(crate) i32);

impl FromStr for External {
    type Err = String;

    fn from_str(text: &str) -> Result<External, String> {
        let number = text
            .strip_prefix("fd[")
            .and_then(|rest| rest.strip_suffix(']'));
        number
            .and_then(|number| number.parse().ok())
            .filter(|number| *number >= 0)
            .map(External)
            .ok_or_else(|| format!("`{text}` is not of the form fd[NUMBER]"))
    }
}

#[cfg(test)]
mod tests {
    use super::External;

    #[test]
    fn numbers_in_brackets() {
        assert_eq!("fd[12]".parse(), Ok(External(12)));
        for bad in ["12", "fd[]", "fd[-1]", "fd[x]"] {
            assert!(bad.parse::<External>().is_err(), "{bad}");
        }
    }
}
