//! `/proc/PID/fdinfo/FD`.

use super::read_text;
use crate::FreezerError;
use sys::Pid;

/// The lines of an fdinfo file.
#[derive(Clone, Debug)]
pub struct FdInfo {
    text: String,
}

impl FdInfo {
    /// Reads it.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn read(pid: Pid, fd: i32) -> Result<FdInfo, FreezerError> {
        read_text(pid, &format!("fdinfo/{fd}")).map(|text| FdInfo { text })
    }

    /// Whether there is such a text in it.
    #[must_use]
    pub(crate) fn has(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// That of a file of which there is nothing more to tell, with `O_CLOEXEC` among its flags when its
    /// descriptor has that.
    #[must_use]
    pub(crate) fn plain(pos: u64, flags: u64) -> FdInfo {
        let pos = pos.cast_signed();
        FdInfo {
            text: format!("pos:\t{pos}\nflags:\t0{flags:o}\n"),
        }
    }

    /// From its text, for tests.
    #[must_use]
    pub fn from_text(text: &str) -> FdInfo {
        FdInfo { text: text.into() }
    }

    /// The value of the first line with this key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    /// All lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }

    /// The values of all lines with this key.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(move |line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim())
        })
    }

    /// The file position. It is told as a signed number, and that of a file of memory (`/proc/PID/mem`) may be any address.
    #[must_use]
    pub fn position(&self) -> u64 {
        let told = self.value("pos").and_then(|pos| pos.parse::<i64>().ok());
        told.map_or(0, i64::cast_unsigned)
    }

    /// A number in the given base; None when missing or not a number.
    #[must_use]
    pub fn number(&self, key: &str, base: u32) -> Option<u64> {
        u64::from_str_radix(self.value(key)?, base).ok()
    }
}
