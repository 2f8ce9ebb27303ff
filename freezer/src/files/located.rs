//! Inodes that inotify and fanotify watch, by what fdinfo tells of them (fs/notify/fdinfo.c).

use super::place::{self, Identity};
use super::{Open, Table, path};
use crate::kernel::{self, Watched};
use crate::{FreezerError, proc};
use core::cell::OnceCell;
use nix::sys::stat::makedev;
use persist_mem::manifest::{DescriptionKind, Place};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use sys::Pid;
use sys::handle::Handle;

/// An inode.
pub(super) struct Located {
    file: Identity,
    handle: Option<Handle>,
}

/// `KEY:HEX` fields of a line.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    pub(super) fn parse(words: impl Iterator<Item = &'a str>) -> Fields<'a> {
        Fields(words.filter_map(|word| word.split_once(':')).collect())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(found, _)| *found == key);
        found.map(|(_, value)| *value)
    }

    pub(super) fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.text(key)?, 16).ok()
    }

    /// The inode; None where the line is about none.
    pub(super) fn located(&self) -> Option<Located> {
        // As the kernel has it inside: 12 bits of major, 20 of minor.
        let dev = self.hex("sdev")?;
        let handle = self.text("f_handle").and_then(|bytes| {
            Some(Handle {
                kind: i32::try_from(self.hex("fhandle-type")?).ok()?,
                bytes: unhex(bytes)?,
            })
        });
        Some(Located {
            file: Identity {
                dev: makedev(dev >> 20, dev & 0xf_ffff),
                inode: self.hex("ino")?,
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

/// What the names by which the kernel knows an inode tell.
enum Known {
    At(PathBuf),
    /// It has none, or they lead elsewhere.
    Nowhere,
    Unreadable,
}

/// Who looks for what a group of inotify or fanotify watches.
pub(super) struct Finder<'a> {
    open: &'a Open<'a>,
    /// What the kernel has of it, asked when it is needed.
    watched: OnceCell<HashMap<Identity, u64>>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(open: &'a Open<'a>) -> Finder<'a> {
        Finder {
            open,
            watched: OnceCell::new(),
        }
    }

    /// A path of a file that is watched, by the names that the kernel knows it by.
    fn known(&self, file: Identity) -> Known {
        let watched = self.watched.get_or_init(|| watched(self.open));
        let Some(inode) = watched.get(&file).copied() else {
            return Known::Unreadable;
        };
        let Ok(names) = kernel::look(|kernel| kernel.known_names(inode)) else {
            return Known::Unreadable;
        };
        let paths = place::paths_of(&names).into_iter();
        let mut paths = paths.map(|path| PathBuf::from(OsString::from_vec(path)));
        let found = paths.find(|path| place::leads_to(path, file));
        found.map_or(Known::Nowhere, Known::At)
    }
}

/// The inodes that a group watches: where the kernel has them.
fn watched(open: &Open<'_>) -> HashMap<Identity, u64> {
    let found = kernel::look(|kernel| kernel.watched(open.copy.as_fd()));
    let found = found.unwrap_or_else(|why| {
        log::debug!("fd {}: what it watches: {why}", open.fd);
        Vec::new()
    });
    let identity = |one: &Watched| Identity {
        dev: makedev((one.device >> 20).into(), (one.device & 0xf_ffff).into()),
        inode: one.number,
    };
    found.iter().map(|one| (identity(one), one.inode)).collect()
}

/// How the inode can be found again. `what` names the watch in a refusal.
pub(super) fn find(
    finder: &Finder<'_>,
    what: &str,
    located: Located,
) -> Result<Place, FreezerError> {
    let open = finder.open;
    let Identity { dev, inode } = located.file;
    let refuse = |why: &str| open.refuse(format!("{what}: inode {inode}: {why}"));
    let mount =
        place::directory_on(dev, None).ok_or_else(|| refuse("its file system is not in reach"))?;
    let lasting = place::lasting(&mount);
    // Some tell an inode, and lead to nothing.
    let handle = located
        .handle
        .filter(|handle| !handle.bytes.is_empty() && opens(&mount, handle));
    if handle
        .as_ref()
        .is_some_and(|handle| removed(&mount, handle))
    {
        if !held(open.pid, located.file) {
            return Err(refuse(
                "it has been removed, and its watcher does not have it open",
            ));
        }
        return Ok(Place {
            path: None,
            inode,
            handle: None,
            mount: mount.into_os_string().into_vec(),
            open: None,
            forgotten: false,
        });
    }
    let by_handle = handle
        .as_ref()
        .and_then(|handle| path_of(&mount, handle))
        .filter(|path| place::leads_to(path, located.file));
    let (path, forgotten) = match by_handle {
        Some(path) => (Some(path), false),
        // The inode is found by its handle later on.
        None if handle.is_some() && lasting => (None, false),
        None => match finder.known(located.file) {
            Known::At(path) => (Some(path), false),
            Known::Nowhere if place::is_procfs(&mount) => (None, true),
            Known::Nowhere | Known::Unreadable => {
                let found = place::search(located.file, None, &mount);
                let found = found.ok_or_else(|| refuse("no path of what it watches was found"))?;
                (Some(found), false)
            }
        },
    };
    Ok(Place {
        path: path.map(|path| path.into_os_string().into_vec()),
        inode,
        handle: handle.filter(|_| lasting),
        mount: mount.into_os_string().into_vec(),
        open: None,
        forgotten,
    })
}

/// Whether a handle leads to its inode.
fn opens(mount: &Path, handle: &Handle) -> bool {
    const O_PATH: i32 = super::O_PATH as i32;
    std::fs::File::open(mount).is_ok_and(|mount| sys::handle::open(&mount, handle, O_PATH).is_ok())
}

/// Whether an inode has no name any more.
fn removed(mount: &Path, handle: &Handle) -> bool {
    const O_PATH: i32 = super::O_PATH as i32;
    std::fs::File::open(mount).is_ok_and(|mount| {
        let file = sys::handle::open(&mount, handle, O_PATH);
        file.and_then(|file| nix::sys::stat::fstat(&file))
            .is_ok_and(|found| found.st_nlink == 0)
    })
}

/// Whether a process has a file open.
fn held(pid: Pid, file: Identity) -> bool {
    // The id of a table.
    let fds = proc::numbers(pid, "fd").unwrap_or_default();
    fds.into_iter().any(|fd| {
        let found = std::fs::metadata(proc::path(pid, &format!("fd/{fd}")));
        found.is_ok_and(|found| (found.dev(), found.ino()) == (file.dev, file.inode))
    })
}

/// Finds what is open of the removed files that are watched, when all descriptions are known.
pub(super) fn resolve(table: &mut Table) -> Result<(), FreezerError> {
    let all = &mut table.descriptions;
    for description in all.iter_mut() {
        let places: Vec<&mut Place> = match &mut description.kind {
            DescriptionKind::Inotify { watches, .. } => {
                watches.iter_mut().map(|watch| &mut watch.place).collect()
            }
            DescriptionKind::Fanotify { marks, .. } => {
                marks.iter_mut().map(|mark| &mut mark.place).collect()
            }
            _ => continue,
        };
        for place in places.into_iter().filter(|place| place.removed()) {
            let mount = std::fs::metadata(OsStr::from_bytes(&place.mount));
            let dev = mount.map_or(0, |mount| mount.dev());
            let is = |copy: &OwnedFd| {
                let found = nix::sys::stat::fstat(copy);
                found.is_ok_and(|found| (found.st_dev, found.st_ino) == (dev, place.inode))
            };
            let open = table
                .copies
                .iter()
                .find(|(_, copy)| is(copy))
                .map(|(id, _)| *id);
            if open.is_none() {
                let text = format!("inode {}, which is watched, has been removed", place.inode);
                let at = table.numbers.iter().find(|(_, id)| **id == description.id);
                let (pid, fd) = at.map_or((Pid(0), -1), |(at, _)| *at);
                return Err(FreezerError::refuse(pid, format!("fd {fd}"), text));
            }
            place.open = open;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_line() {
        let line = "ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let found = Fields::parse(line.split(' ')).located().unwrap();
        assert_eq!(
            (found.file.inode, found.file.dev),
            (0x9e7e, makedev(8, 0x13))
        );
        let handle = found.handle.unwrap();
        assert_eq!(
            (handle.kind, handle.bytes.len(), handle.bytes[0]),
            (1, 8, 0x7e)
        );
        assert!(
            Fields::parse("sdev:800013 mflags:0".split(' '))
                .located()
                .is_none()
        );
    }
}
