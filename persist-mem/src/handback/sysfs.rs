//! Files of sysfs that hold one value.

use super::{HandBackError, Result};
use std::path::Path;

pub(super) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> HandBackError {
    move |source| HandBackError::File {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map(|t| t.trim().to_owned())
        .map_err(file_error(path))
}

pub(super) fn read_hex(path: &Path) -> Result<u64> {
    let text = read(path)?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| HandBackError::Contents {
        path: path.to_owned(),
        text,
    })
}

pub(super) fn read_number<T: std::str::FromStr>(path: &Path) -> Result<T> {
    let text = read(path)?;
    text.parse().map_err(|_| HandBackError::Contents {
        path: path.to_owned(),
        text,
    })
}

/// One write(2), as sysfs wants it.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(file_error(path))
}
