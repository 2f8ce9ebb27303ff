//! Named pipes: their nodes are there, what was in them is not.

use super::{Opening, brief, path, pipe};
use crate::ResurrectError;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind, FileRef, Pipe, PipeId};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
            let opened = open_group(restore, pipe, &group)?;
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
    let mut ends: Option<(OwnedFd, Option<OwnedFd>)> = None;
    let node = match linked_again(group)? {
        None => removed_node(pipe, group)?,
        linked => linked,
    };
    let has_writer = group.iter().any(|d| d.flags & O_ACCMODE != 0);
    for description in group {
        let opening = Opening {
            restore,
            description,
        };
        let DescriptionKind::Fifo { file, .. } = &description.kind else {
            continue;
        };
        let path = node
            .as_ref()
            .map_or(Path::new(OsStr::from_bytes(&file.path)), brief::Node::path);
        let (_, writer) = match &mut ends {
            Some(ends) => ends,
            None => {
                if node.is_none() {
                    path::check_same(file)?;
                }
                let reader =
                    open_node(path, OFlag::O_RDONLY).map_err(opening.failed("opening it"))?;
                let writer =
                    open_node(path, OFlag::O_WRONLY).map_err(opening.failed("opening it"))?;
                pipe::fill(pipe, &writer)?;
                ends.insert((reader, Some(writer)))
            }
        };
        // A reader that has not seen any writer yet must not see ours go.
        if !has_writer && !hung_up(description) {
            *writer = None;
        }
        let flags = OFlag::from_bits_retain(description.flags.cast_signed());
        let kept = match flags.contains(OFlag::O_PATH) {
            true => flags & (OFlag::O_PATH | OFlag::O_NOFOLLOW),
            false => flags & OFlag::O_ACCMODE,
        };
        let fd = open_node(path, kept).map_err(opening.failed("opening it"))?;
        opened.push((description.id, fd));
    }
    Ok(opened)
}

/// The old name of a FIFO that has another one, until all its descriptions are open.
fn linked_again(group: &[&Description]) -> Result<Option<brief::Node>, ResurrectError> {
    let mut names = group.iter().filter_map(|found| match &found.kind {
        DescriptionKind::Fifo { file, other, .. } => Some((file, other.as_ref()?)),
        _ => None,
    });
    let Some((file, other)) = names.next() else {
        return Ok(None);
    };
    path::check_same(&FileRef {
        path: other.clone(),
        ..file.clone()
    })?;
    let at = |path: &[u8]| Path::new(OsStr::from_bytes(path)).to_owned();
    let node = brief::Node::link(&at(other), &at(&file.path));
    let doing = "giving a named pipe its old name";
    node.map(Some).map_err(ResurrectError::own(doing))
}

/// A node for a FIFO whose own has been removed, until all its descriptions are open.
fn removed_node(
    pipe: &Pipe,
    group: &[&Description],
) -> Result<Option<brief::Node>, ResurrectError> {
    let gone = group
        .iter()
        .find_map(|description| match &description.kind {
            DescriptionKind::Fifo {
                file,
                removed: Some(mode),
                ..
            } => Some((file, *mode)),
            _ => None,
        });
    let Some((file, mode)) = gone else {
        return Ok(None);
    };
    let node = brief::Node::make(Path::new(OsStr::from_bytes(&file.path)), SFlag::S_IFIFO, 0)
        .map_err(ResurrectError::own("making a named pipe that was removed"))?;
    node.own(pipe.owner, mode)?;
    Ok(Some(node))
}

fn open_node(path: &Path, mode: OFlag) -> sys::Result<OwnedFd> {
    let flags = mode | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}
