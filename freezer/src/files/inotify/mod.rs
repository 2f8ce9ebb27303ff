//! inotify(7).

mod queue;

use super::located::{self, Fields, Finder, Located};
use super::{Open, creator};
use crate::{FreezerError, kernel};
use persist_mem::manifest::{DescriptionKind, Watch};
use queue::Kept;

/// Tries to read a queue that somebody takes from meanwhile.
const TRIES: usize = 20;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let finder = Finder::new(open);
    let mut watches = Vec::new();
    for line in open.info.values("inotify wd") {
        let found = Line::parse(line).ok_or_else(|| open.format())?;
        watches.push(watch(&finder, found)?);
    }
    watches.sort_by_key(|watch| watch.number);
    let kept = kept(open)?;
    let (next, unread) = kept.map_or((None, Vec::new()), |kept| (Some(kept.next), kept.events));
    Ok(DescriptionKind::Inotify {
        watches,
        next,
        unread,
        creator: creator::of(open)?,
    })
}

/// What only the kernel's memory shows. None when it cannot be read and is not needed.
fn kept(open: &Open<'_>) -> Result<Option<Kept>, FreezerError> {
    let size = || sys::files::readable(open.copy).map_err(open.call("asking for its events"));
    let mut last = None;
    for _ in 0..TRIES {
        let before = size()?;
        match kernel::look(|kernel| queue::read(kernel, open.copy)) {
            // What comes meanwhile comes behind the others.
            Ok(kept) if (before..=size()?).contains(&kept.size()) => {
                return match kept.obstacle() {
                    Some(why) => Err(open.refuse(format!("{why}, which cannot be queued again"))),
                    None => Ok(Some(kept)),
                };
            }
            Ok(_) => {}
            Err(_) if before == 0 => return Ok(None),
            Err(why) => last = Some(why),
        }
    }
    let why = last.map_or_else(|| "they come too fast".into(), |why| why.to_string());
    Err(open.refuse(format!("events have not been read yet: {why}")))
}

fn watch(finder: &Finder<'_>, line: Line) -> Result<Watch, FreezerError> {
    let what = format!("watch {}", line.number);
    Ok(Watch {
        number: line.number,
        mask: line.mask,
        place: located::find(finder, &what, line.located)?,
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
