//! inotify(7).

use super::Open;
use super::located::{self, Fields, Located};
use crate::FreezerError;
use persist_mem::manifest::{DescriptionKind, Watch};

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let queued = sys::files::readable(open.copy).map_err(open.call("asking for its events"))?;
    // An event has the number of the watch of an inode, and only what is done to that inode makes one: files
    // would have to be made, renamed and removed again. A watch of that number on a directory of ours would
    // leave IN_IGNORED behind its events when it makes room.
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
    let what = format!("watch {}", line.number);
    Ok(Watch {
        number: line.number,
        mask: line.mask,
        place: located::find(open, &what, line.located)?,
    })
}

struct Line {
    number: i32,
    mask: u32,
    located: Located,
}

impl Line {
    /// `WD ino:HEX sdev:HEX mask:HEX ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:HEX`, all
    /// in hexadecimal, behind `inotify wd:`.
    fn parse(line: &str) -> Option<Line> {
        let mut words = line.split_whitespace();
        let number = i32::from_str_radix(words.next()?, 16).ok()?;
        let fields = Fields::parse(words);
        Some(Line {
            number,
            mask: u32::try_from(fields.hex("mask")?).ok()?,
            located: fields.located()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let line = "a7 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let found = Line::parse(line).unwrap();
        assert_eq!((found.number, found.mask), (0xa7, 0x0800_afce));
        assert!(Line::parse("3 ino:").is_none());
    }
}
