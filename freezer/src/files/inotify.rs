//! inotify(7).

use super::place::{self, Identity};
use super::{Open, path};
use crate::FreezerError;
use nix::sys::stat::makedev;
use persist_mem::manifest::{DescriptionKind, Watch};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use sys::handle::Handle;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let queued = sys::files::readable(open.copy).map_err(open.call("asking for its events"))?;
    if queued > 0 {
        return Err(open.refuse(format!(
            "{queued} bytes of events have not been read yet; they cannot be queued again"
        )));
    }
    let mut watches = Vec::new();
    for line in open.info.values("inotify wd") {
        let found = Line::parse(line).ok_or_else(|| open.format())?;
        watches.push(watch(open, found)?);
    }
    watches.sort_by_key(|watch| watch.number);
    Ok(DescriptionKind::Inotify { watches })
}

fn watch(open: &Open<'_>, line: Line) -> Result<Watch, FreezerError> {
    let Identity { dev, inode } = line.file;
    let refuse = |why: &str| open.refuse(format!("watch {}: inode {inode}: {why}", line.number));
    let mount =
        place::directory_on(dev, None).ok_or_else(|| refuse("its file system is not in reach"))?;
    let lasting = place::lasting(&mount);
    let handle = line.handle.filter(|handle| !handle.bytes.is_empty());
    let by_handle = handle
        .as_ref()
        .and_then(|handle| path_of(&mount, handle))
        .filter(|path| place::leads_to(path, line.file));
    let path = match by_handle {
        Some(path) => Some(path),
        // The inode is found by its handle later on.
        None if handle.is_some() && lasting => None,
        None => {
            let found = place::search(line.file, None, &mount);
            Some(found.ok_or_else(|| refuse("no path of what it watches was found"))?)
        }
    };
    Ok(Watch {
        number: line.number,
        mask: line.mask,
        path: path.map(|path| path.into_os_string().into_vec()),
        inode,
        handle: handle.filter(|_| lasting),
        mount: mount.into_os_string().into_vec(),
    })
}

/// The path of an inode, when the kernel knows one.
fn path_of(mount: &Path, handle: &Handle) -> Option<PathBuf> {
    const O_PATH: i32 = super::O_PATH as i32;
    let mount = std::fs::File::open(mount).ok()?;
    let file = sys::handle::open(&mount, handle, O_PATH).ok()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let bytes = path.as_os_str().as_encoded_bytes();
    (bytes.starts_with(b"/") && !bytes.ends_with(path::DELETED)).then_some(path)
}

struct Line {
    number: i32,
    mask: u32,
    file: Identity,
    handle: Option<Handle>,
}

impl Line {
    /// `WD ino:HEX sdev:HEX mask:HEX ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:HEX`, all
    /// in hexadecimal, behind `inotify wd:`.
    fn parse(line: &str) -> Option<Line> {
        let mut words = line.split_whitespace();
        let number = i32::from_str_radix(words.next()?, 16).ok()?;
        let words: Vec<(&str, &str)> = words.filter_map(|word| word.split_once(':')).collect();
        let text = |key: &str| words.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let hex = |key: &str| u64::from_str_radix(text(key)?, 16).ok();
        // As the kernel has it inside: 12 bits of major, 20 of minor.
        let dev = hex("sdev")?;
        let handle = text("f_handle").and_then(|bytes| {
            Some(Handle {
                kind: i32::try_from(hex("fhandle-type")?).ok()?,
                bytes: unhex(bytes)?,
            })
        });
        Some(Line {
            number,
            mask: u32::try_from(hex("mask")?).ok()?,
            file: Identity {
                dev: makedev(dev >> 20, dev & 0xf_ffff),
                inode: hex("ino")?,
            },
            handle,
        })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let line = "a7 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let found = Line::parse(line).unwrap();
        assert_eq!(
            (found.number, found.mask, found.file.inode),
            (0xa7, 0x0800_afce, 0x9e7e)
        );
        assert_eq!(found.file.dev, makedev(8, 0x13));
        let handle = found.handle.unwrap();
        assert_eq!(
            (handle.kind, handle.bytes.len(), handle.bytes[0]),
            (1, 8, 0x7e)
        );
        assert!(Line::parse("3 ino:").is_none());
    }
}
