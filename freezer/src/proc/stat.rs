//! `/proc/PID/stat`.

use super::read;
use crate::FreezerError;
use sys::Pid;

/// The fields of `/proc/PID/stat` by their number in proc(5).
#[derive(Clone, Debug)]
pub struct Stat {
    comm: Vec<u8>,
    /// From field 3 on.
    rest: String,
}

impl Stat {
    /// Reads `/proc/PID/stat`, or of one thread (`task/TID/stat`).
    ///
    /// # Errors
    /// [`FreezerError::Proc`], [`FreezerError::Format`].
    pub fn read(pid: Pid, what: &str) -> Result<Stat, FreezerError> {
        let bytes = read(pid, what)?;
        Stat::parse(&bytes).ok_or_else(|| FreezerError::Format {
            pid,
            what: what.into(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// Parses the line. The name may hold anything, blanks and parentheses included.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Stat> {
        let open = bytes.iter().position(|b| *b == b'(')?;
        let close = bytes.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
        (rest.split_ascii_whitespace().count() >= 50).then(|| Stat {
            comm: bytes[open + 1..close].to_vec(),
            rest: rest.trim_start().to_owned(),
        })
    }

    /// The name.
    #[must_use]
    pub fn comm(&self) -> &[u8] {
        &self.comm
    }

    /// The state letter (field 3).
    #[must_use]
    pub fn state(&self) -> char {
        self.rest.chars().next().unwrap_or('?')
    }

    /// Field `number` of proc(5), from 4 on; 0 when it is not a number.
    #[must_use]
    pub fn field(&self, number: usize) -> i64 {
        let mut fields = self.rest.split_ascii_whitespace();
        let text = fields.nth(number - 3).unwrap_or("0");
        text.parse::<i64>()
            .or_else(|_| text.parse::<u64>().map(u64::cast_signed))
            .unwrap_or(0)
    }

    /// Field `number` as a process id.
    #[must_use]
    pub fn pid(&self, number: usize) -> Pid {
        Pid(i32::try_from(self.field(number)).unwrap_or(0))
    }

    /// The signal its parent gets at its end (field 38), 0 for none.
    #[must_use]
    pub fn exit_signal(&self) -> i32 {
        i32::try_from(self.field(38)).unwrap_or(0).max(0)
    }

    /// Field `number` as an address.
    #[must_use]
    pub fn address(&self, number: usize) -> u64 {
        self.field(number).cast_unsigned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks() {
        let mut line = b"12 (a) (b c) S 1 12 12".to_vec();
        for n in 7..=52 {
            line.extend_from_slice(format!(" {n}").as_bytes());
        }
        let stat = Stat::parse(&line).unwrap();
        assert_eq!(stat.comm(), b"a) (b c");
        assert_eq!(
            (stat.state(), stat.pid(4), stat.field(26)),
            ('S', Pid(1), 26)
        );
        assert!(Stat::parse(b"12 (a) S 1").is_none());
    }
}
