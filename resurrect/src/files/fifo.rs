//! Named pipes: their nodes are there, what was in them is not.

use super::{Opening, brief, path, pipe};
use crate::ResurrectError;
use crate::error::Subject;
use crate::gone_path::Naming;
use crate::restore::Restore;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::linkat;
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind, FileRef, Pipe, PipeId};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::Errno;

const O_ACCMODE: u32 = 3;

/// Opens all descriptions of all FIFOs.
pub(super) fn open_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for pipe in &manifest.pipes {
        let of_it = |d: &&Description| of(d) == Some(pipe.id);
        let mut group: Vec<&Description> = manifest.descriptions.iter().filter(of_it).collect();
        // Who writes comes first, and with them the readers that have seen a writer.
        group.sort_by_key(|d| (d.flags & O_ACCMODE == 0, !hung_up(d)));
        if !group.is_empty() {
            let opened = open_group(restore, pipe, &group);
            let opened = opened.map_err(|error| error.about(Subject::Pipe(pipe.id)))?;
            restore.files.opened.extend(opened);
        }
    }
    Ok(())
}

/// The FIFO's pipe that a description is an end of.
pub(super) fn of(description: &Description) -> Option<PipeId> {
    match description.kind {
        DescriptionKind::Fifo { pipe, .. } => Some(pipe),
        _ => None,
    }
}

fn hung_up(description: &Description) -> bool {
    matches!(
        description.kind,
        DescriptionKind::Fifo { hung_up: true, .. }
    )
}

fn open_group(
    restore: &Restore<'_>,
    pipe: &Pipe,
    group: &[&Description],
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let mut opened = Vec::new();
    let Some(node) = Node::of(pipe, group)? else {
        return Ok(opened);
    };
    let has_writer = group.iter().any(|d| d.flags & O_ACCMODE != 0);
    let doing = "opening a named pipe";
    let open_end = |mode| open_node(&node.path, mode).map_err(ResurrectError::own(doing));
    let _reader = open_end(OFlag::O_RDONLY)?;
    let mut writer = Some(open_end(OFlag::O_WRONLY)?);
    if let Some(writer) = &writer {
        pipe::fill(pipe, writer)?;
    }
    for description in group {
        let opening = Opening {
            restore,
            description,
        };
        // A reader that has not seen any writer yet must not see ours go.
        if !has_writer && !hung_up(description) {
            drop(writer.take());
        }
        opened.push((description.id, open_one(&opening, &node)?));
    }
    Ok(opened)
}

/// The node of a FIFO, while its descriptions are opened.
struct Node {
    path: PathBuf,
    /// It was made for this time.
    _made: Option<brief::Node>,
}

impl Node {
    /// The one that is there, by any of the names that lead to it, or a new one for a node that was removed.
    fn of(pipe: &Pipe, group: &[&Description]) -> Result<Option<Node>, ResurrectError> {
        let names = group.iter().filter_map(|description| named(description));
        let Some(first) = names.clone().min_by_key(|named| named.other.is_some()) else {
            return Ok(None);
        };
        if let Some(mode) = first.removed {
            let node = brief::Node::make(at(&first.file.path), SFlag::S_IFIFO, 0)
                .map_err(ResurrectError::own("making a named pipe that was removed"))?;
            node.own(pipe.owner, mode)?;
            return Ok(Some(Node {
                path: node.path().to_owned(),
                _made: Some(node),
            }));
        }
        let path = first.other.unwrap_or(&first.file.path);
        path::check_same(&FileRef {
            path: path.clone(),
            ..first.file.clone()
        })?;
        Ok(Some(Node {
            path: at(path).to_owned(),
            _made: None,
        }))
    }
}

/// How a description's FIFO is called.
#[derive(Clone, Copy)]
struct Named<'a> {
    file: &'a FileRef,
    /// Permission bits of a node without any name.
    removed: Option<u32>,
    /// A name that leads to it, when that which it was opened by does not.
    other: Option<&'a Vec<u8>>,
}

fn named(description: &Description) -> Option<Named<'_>> {
    match &description.kind {
        DescriptionKind::Fifo {
            file,
            removed,
            other,
            ..
        } => Some(Named {
            file,
            removed: *removed,
            other: other.as_ref(),
        }),
        _ => None,
    }
}

/// Opens a description by the name that it was opened by, which the node has for so long where that is gone.
fn open_one(opening: &Opening<'_, '_>, node: &Node) -> Result<OwnedFd, ResurrectError> {
    let flags = OFlag::from_bits_retain(opening.description.flags.cast_signed());
    let kept = match flags.contains(OFlag::O_PATH) {
        true => flags & (OFlag::O_PATH | OFlag::O_NOFOLLOW),
        false => flags & (OFlag::O_ACCMODE | OFlag::O_SYNC | OFlag::O_NOFOLLOW),
    };
    let Some(named) = named(opening.description) else {
        return Err(opening.failed("opening it")(Errno::ENOENT));
    };
    let path = at(&named.file.path);
    let leads = named.removed.is_none() && named.other.is_none() || node.path == path;
    let opened = match leads {
        true => open_node(path, kept),
        false => by_gone_name(opening, node, path, kept).or_else(|_| open_node(&node.path, kept)),
    };
    opened.map_err(opening.failed("opening it"))
}

fn by_gone_name(
    opening: &Opening<'_, '_>,
    node: &Node,
    path: &Path,
    kept: OFlag,
) -> sys::Result<OwnedFd> {
    let flags = kept | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let naming = Naming {
        place: |name: &Path| {
            linkat(AT_FDCWD, &node.path, AT_FDCWD, name, AtFlags::empty()).map(|()| true)
        },
        open: |near: &OwnedFd, inside: &Path| openat(near, inside, flags, Mode::empty()),
    };
    naming.open_by(path, &format!("f{}", opening.description.id.0))
}

fn at(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn open_node(path: &Path, mode: OFlag) -> sys::Result<OwnedFd> {
    let flags = mode | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}
