//! FIFOs.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Result;
use libc::{O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_SYNC, O_WRONLY};

use crate::kit::files::{open, read, seen, write};
use crate::kit::{Setting, Watch, same, sys};

fn make(setting: &Setting, name: &str) -> Result<PathBuf> {
    let path = setting.fresh(name);
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    sys("mkfifo", unsafe { libc::mkfifo(text.as_ptr(), 0o600) })?;
    Ok(path)
}

/// A reader, a writer and data; a second reader shares the data.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = make(setting, "fifo")?;
    let from = open(&path, O_RDONLY | O_NONBLOCK)?;
    let to = open(&path, O_WRONLY | O_SYNC | O_NOFOLLOW)?;
    let second = open(&path, O_RDONLY | O_NONBLOCK)?;
    write(to, b"waiting here")?;
    let flags = Watch::keep(move || Ok([seen(from)?, seen(to)?, seen(second)?]))?;
    Ok(flags.and(
        Watch::new(move || {
            same("the data", b"waiting".as_slice(), &read(from, 7)?)?;
            same("the rest", b" here".as_slice(), &read(second, 100)?)?;
            write(to, b"waiting here")?;
            // Whoever opens it by name gets the same pipe.
            let third = open(&path, O_RDONLY | O_NONBLOCK)?;
            let got = read(third, 100)?;
            crate::kit::files::close(third);
            same("what the name leads to", b"waiting here".as_slice(), &got)?;
            write(to, b"waiting here")
        })
        .spoiled_by(move || read(from, 1).map(drop)),
    ))
}

/// One description for both sides.
pub(crate) fn both(setting: &Setting) -> Result<Watch> {
    let path = make(setting, "both")?;
    let end = open(&path, O_RDWR | O_NONBLOCK)?;
    write(end, b"to myself")?;
    let flags = Watch::keep(move || seen(end))?;
    Ok(flags.and(
        Watch::new(move || {
            same("the data", b"to myself".as_slice(), &read(end, 100)?)?;
            write(end, b"to myself")
        })
        .spoiled_by(move || read(end, 1).map(drop)),
    ))
}

/// Its node is gone, and another file has the name.
pub(crate) fn removed(setting: &Setting) -> Result<Watch> {
    let path = make(setting, "removed")?;
    let to = open(&path, O_RDWR | O_NONBLOCK)?;
    let from = open(&path, O_RDONLY | O_NONBLOCK)?;
    std::fs::remove_file(&path)?;
    std::fs::write(&path, "another file")?;
    write(to, b"still here")?;
    let kept = Watch::keep(move || {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(format!("/proc/self/fd/{from}"))?;
        Ok((found.mode(), found.nlink(), seen(from)?.0, seen(to)?.0))
    })?;
    Ok(kept.and(
        Watch::new(move || {
            same("the data", b"still here".as_slice(), &read(from, 100)?)?;
            same(
                "the other file",
                "another file",
                &std::fs::read_to_string(&path)?,
            )?;
            write(to, b"still here")
        })
        .spoiled_by(move || read(from, 1).map(drop)),
    ))
}

/// References (`O_PATH`) to FIFOs that are removed: one that is open as well, with data, and one that is not.
pub(crate) fn reference(setting: &Setting) -> Result<Watch> {
    let (held, alone) = (make(setting, "held")?, make(setting, "alone")?);
    let end = open(&held, O_RDWR | O_NONBLOCK)?;
    let to_held = open(&held, libc::O_PATH)?;
    let to_alone = open(&alone, libc::O_PATH | libc::O_NOFOLLOW)?;
    std::fs::remove_file(&held)?;
    std::fs::remove_file(&alone)?;
    write(end, b"held")?;
    let kept = Watch::keep(move || {
        use std::os::unix::fs::MetadataExt;
        let found = |fd| std::fs::metadata(format!("/proc/self/fd/{fd}"));
        let alone = found(to_alone)?;
        Ok((
            found(end)?.ino() == found(to_held)?.ino(),
            (alone.mode(), alone.nlink()),
            (seen(to_held)?.0, seen(to_alone)?.0),
            std::fs::read_link(format!("/proc/self/fd/{to_alone}"))?,
        ))
    })?;
    Ok(kept.and(
        Watch::new(move || {
            let again = open(format!("/proc/self/fd/{to_held}"), O_RDONLY | O_NONBLOCK)?;
            same("the data", b"held".as_slice(), &read(again, 100)?)?;
            crate::kit::files::close(again);
            write(end, b"held")?;
            let first = open(format!("/proc/self/fd/{to_alone}"), O_RDWR | O_NONBLOCK)?;
            write(first, b"alone")?;
            same("the other", b"alone".as_slice(), &read(first, 100)?)?;
            crate::kit::files::close(first);
            Ok(())
        })
        .spoiled_by(move || read(end, 1).map(drop)),
    ))
}

/// It was opened by two names, of which one is gone; of others the directory is gone, or another FIFO has the name.
pub(crate) fn names(setting: &Setting) -> Result<Watch> {
    let (first, second) = (make(setting, "by-one-name")?, setting.fresh("by-another"));
    std::fs::hard_link(&first, &second)?;
    let from = open(&first, O_RDONLY | O_NONBLOCK)?;
    let to = open(&second, O_WRONLY)?;
    std::fs::remove_file(&first)?;
    let directory = setting.fresh("directory");
    std::fs::create_dir(&directory)?;
    let inside = Setting::new(&directory.join("inside").display().to_string());
    let gone = open(make(&inside, "fifo")?, O_RDWR | O_NONBLOCK)?;
    std::fs::remove_dir_all(&directory)?;
    let path = make(setting, "taken")?;
    let old = open(&path, O_RDWR | O_NONBLOCK)?;
    std::fs::remove_file(&path)?;
    let path = make(setting, "taken")?;
    let new = open(&path, O_RDWR | O_NONBLOCK)?;
    let fill = move || {
        for (end, text) in [(to, b"one"), (gone, b"two"), (old, b"old"), (new, b"new")] {
            write(end, text)?;
        }
        anyhow::Ok(())
    };
    fill()?;
    let seen_all = move || {
        let seen = [from, to, gone, old, new].map(seen);
        seen.into_iter().collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(seen_all)?.and(
        Watch::new(move || {
            for (end, text) in [(from, b"one"), (gone, b"two"), (old, b"old"), (new, b"new")] {
                same("what is in it", text.as_slice(), &read(end, 100)?)?;
            }
            fill()
        })
        .spoiled_by(move || read(old, 1).map(drop)),
    ))
}

/// Its node has another name by now, and nothing has the old one.
pub(crate) fn renamed(setting: &Setting) -> Result<Watch> {
    let (path, other) = (make(setting, "first-name")?, setting.fresh("second-name"));
    let to = open(&path, O_RDWR | O_NONBLOCK)?;
    let from = open(&path, O_RDONLY | O_NONBLOCK)?;
    std::fs::hard_link(&path, &other)?;
    std::fs::remove_file(&path)?;
    write(to, b"by another name")?;
    let kept = Watch::keep(move || {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(format!("/proc/self/fd/{from}"))?;
        let link = std::fs::read_link(format!("/proc/self/fd/{to}"))?;
        let there = path.symlink_metadata().is_ok();
        Ok((found.mode(), found.nlink(), link, there, seen(from)?.0))
    })?;
    Ok(kept.and(
        Watch::new(move || {
            let again = open(&other, O_RDONLY | O_NONBLOCK)?;
            same(
                "the data",
                b"by another name".as_slice(),
                &read(again, 100)?,
            )?;
            crate::kit::files::close(again);
            write(to, b"by another name")
        })
        .spoiled_by(move || read(from, 1).map(drop)),
    ))
}
