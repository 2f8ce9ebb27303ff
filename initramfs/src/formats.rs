//! Interpreters of foreign formats of programs (binfmt_misc, Documentation/admin-guide/binfmt-misc.rst): recorded
//! before the jump, registered again before the processes run.

use crate::mounts::support::show;
use persist_mem::manifest::Formats;
use persist_mem::mounts::MountTable;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const KIND: &CStr = c"binfmt_misc";
/// Switches one of them, or all, off.
const OFF: &str = "0";

/// Reads what is registered, as far as the file system that shows it is mounted anywhere.
#[must_use]
pub fn capture(table: &MountTable) -> Formats {
    let shown = table
        .mounts
        .iter()
        .find(|mount| mount.kind.as_bytes() == KIND.to_bytes());
    let point = shown.map(|mount| Path::new(OsStr::from_bytes(&mount.point)));
    point.map(capture_at).unwrap_or_default()
}

fn capture_at(point: &Path) -> Formats {
    let mut formats = Formats::default();
    for entry in std::fs::read_dir(point).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(text) = std::fs::read(entry.path()) else {
            // `register` cannot be read.
            continue;
        };
        let on = text.starts_with(b"enabled");
        if name == "status" {
            formats.off = !on;
        } else if let Some(line) = registration(name.as_bytes(), &text) {
            formats.registered.push((line, on));
        }
    }
    formats
}

/// What has to be written to `register` for an entry that reads like this.
fn registration(name: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let field = |key: &[u8]| {
        let line = text
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(key));
        line.map(<[u8]>::to_vec)
    };
    let interpreter = field(b"interpreter ")?;
    let flags = field(b"flags: ").unwrap_or_default();
    let (kind, offset, magic, mask) = match field(b"extension .") {
        Some(extension) => (b"E", Vec::new(), extension, Vec::new()),
        None => (
            b"M",
            field(b"offset ")?,
            escaped(&field(b"magic ")?)?,
            escaped(&field(b"mask ").unwrap_or_default())?,
        ),
    };
    // A delimiter that nothing of it contains.
    let parts: [&[u8]; 7] = [name, kind, &offset, &magic, &mask, &interpreter, &flags];
    let free = |byte: &u8| !parts.iter().any(|part| part.contains(byte));
    let delimiter = b":,;|/!%+=".iter().copied().find(free)?;
    let mut line = vec![delimiter];
    line.extend(parts.join(&delimiter));
    Some(line)
}

/// Hexadecimal digits as `\xNN`.
fn escaped(digits: &[u8]) -> Option<Vec<u8>> {
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some([b'\\', b'x', *high, *low]),
        _ => None,
    });
    Some(pairs.collect::<Option<Vec<_>>>()?.concat())
}

/// Registers them. Returns what could not be done, in words, and the file system: since Linux 6.7 they end with the
/// last use of it, so it is to be kept until it is mounted where it was.
#[must_use]
pub fn restore(formats: &Formats) -> (Vec<String>, Option<OwnedFd>) {
    if formats.registered.is_empty() && !formats.off {
        return (Vec::new(), None);
    }
    match sys::mountapi::detached(KIND) {
        Ok(kept) => {
            let point = format!("/proc/self/fd/{}", kept.as_raw_fd());
            (register(Path::new(&point), formats), Some(kept))
        }
        Err(errno) => (vec![format!("the formats of programs: {errno}")], None),
    }
}

fn register(point: &Path, formats: &Formats) -> Vec<String> {
    let mut failed = Vec::new();
    let mut write = |name: &OsStr, text: &[u8]| {
        if let Err(error) = std::fs::write(point.join(name), text) {
            failed.push(format!("the format of programs {}: {error}", show(text)));
        }
    };
    // The one that came last is the first in the directory, and the first that is tried.
    for (line, on) in formats.registered.iter().rev() {
        write(OsStr::new("register"), line);
        let name = line.split(|byte| Some(byte) == line.first()).nth(1);
        if let (Some(name), false) = (name, on) {
            write(OsStr::from_bytes(name), OFF.as_bytes());
        }
    }
    if formats.off {
        write(OsStr::new("status"), OFF.as_bytes());
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn entries_are_registered_as_they_read() {
        let tmp = TestDir::new("formats");
        tmp.write("status", "disabled\n");
        tmp.write(
            "jar",
            "enabled\ninterpreter /usr/bin/java:x\nflags: \nextension .jar\n",
        );
        let formats = capture_at(tmp.path());
        assert!(formats.off);
        let jar = (b",jar,E,,jar,,/usr/bin/java:x,".to_vec(), true);
        assert_eq!(formats.registered, [jar]);
        let magic = b"disabled\ninterpreter /q\nflags: OCF\noffset 2\nmagic 7f45\nmask ff0f\n";
        let line = registration(b"arm", magic).unwrap();
        assert_eq!(line, br":arm:M:2:\x7f\x45:\xff\x0f:/q:OCF");
        let unmasked = b"enabled\ninterpreter /q\nflags: \noffset 0\nmagic 7f\n";
        assert_eq!(registration(b"n", unmasked).unwrap(), br":n:M:0:\x7f::/q:");
        tmp.write("register", "");
        let none = register(tmp.path(), &formats);
        assert!(none.is_empty(), "{none:?}");
        let written = |name: &str| std::fs::read(tmp.path().join(name)).unwrap();
        assert_eq!(written("register"), b",jar,E,,jar,,/usr/bin/java:x,");
        assert_eq!(written("status"), b"0");
    }
}
