//! Putting a tree up.

use super::make::{dress, make, set_time};
use super::numbers::Numbers;
use super::{Result, TreeError, fail};
use persist_mem::mounts::{DeviceNumber, InodeKind, Name, Tree};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What to do with names that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// There are none: the file system is a new one.
    Refuse,
    /// They stay and only get the recorded owner, mode and attributes, and device nodes without a number are not
    /// made: for `/dev`, where the new kernel makes its own nodes.
    Keep,
}

/// Puts a tree up below `root`, an existing directory.
///
/// # Errors
/// [`TreeError`], at the first failure.
pub fn unpack(tree: &Tree, root: &Path, existing: Existing) -> Result<()> {
    let paths = match existing {
        Existing::Refuse => fill(tree, root)?,
        Existing::Keep => add(tree, root)?,
    };
    for (inode, path) in tree.inodes.iter().zip(&paths) {
        if let Some(path) = path {
            dress(inode, path, existing)?;
        }
    }
    // Filling a directory changes its time, so times come last.
    for (inode, path) in tree.inodes.iter().zip(&paths) {
        if let Some(path) = path {
            set_time(inode, path)?;
        }
    }
    Ok(())
}

/// Makes everything in a new file system: inodes in the order of their numbers, and then their names, so that
/// directories list them in the order that they were in.
fn fill(tree: &Tree, root: &Path) -> Result<Vec<Option<PathBuf>>> {
    let mut order: Vec<usize> = (1..tree.inodes.len()).collect();
    order.sort_by_key(|at| tree.inodes[*at].number);
    let last = order.last().map_or(0, |at| tree.inodes[*at].number);
    let mut numbers = Numbers::of(root, last);
    for at in &order {
        let inode = &tree.inodes[*at];
        numbers.approach(inode.number);
        make(inode, &unplaced(root, *at))?;
        numbers.made();
    }
    name_all(tree, root, newest_first(root, &order)?)
}

/// Where an inode is until it has a name.
fn unplaced(root: &Path, at: usize) -> PathBuf {
    root.join(format!(".kupgrade-{at}"))
}

/// Whether a directory of this file system lists what was added last first (tmpfs, but for some kernels), as far as
/// the inodes that wait in its root tell.
fn newest_first(root: &Path, made: &[usize]) -> Result<bool> {
    let [.., before, last] = made else {
        return Ok(true);
    };
    let (before, last) = (unplaced(root, *before), unplaced(root, *last));
    let entries = std::fs::read_dir(root).map_err(fail(root, "list"))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.find(|path| *path == before || *path == last) == Some(last))
}

/// Gives all inodes their names.
fn name_all(tree: &Tree, root: &Path, newest_first: bool) -> Result<Vec<Option<PathBuf>>> {
    // What each directory lists, by its place there.
    let mut lists: Vec<Vec<(&Name, usize)>> = vec![Vec::new(); tree.inodes.len()];
    for (at, inode) in tree.inodes.iter().enumerate().skip(1) {
        for name in &inode.names {
            let list = lists.get_mut(name.parent as usize);
            list.ok_or(TreeError::Damaged(at))?.push((name, at));
        }
    }
    let mut paths: Vec<Option<PathBuf>> = vec![None; tree.inodes.len()];
    if let Some(first) = paths.first_mut() {
        *first = Some(root.to_owned());
    }
    for mut list in lists {
        list.sort_by_key(|(name, _)| name.position);
        if newest_first {
            list.reverse();
        }
        for (name, at) in list {
            let path = place(&paths, name).ok_or(TreeError::Damaged(at))?;
            match &paths[at] {
                Some(named) => std::fs::hard_link(named, &path).map_err(fail(&path, "link"))?,
                None => {
                    let from = unplaced(root, at);
                    std::fs::rename(from, &path).map_err(fail(&path, "name"))?;
                    paths[at] = Some(path);
                }
            }
        }
    }
    match paths.iter().position(Option::is_none) {
        Some(nowhere) => Err(TreeError::Damaged(nowhere)),
        None => Ok(paths),
    }
}

/// Makes what is missing; None for what is deliberately not there.
fn add(tree: &Tree, root: &Path) -> Result<Vec<Option<PathBuf>>> {
    let mut paths: Vec<Option<PathBuf>> = vec![None; tree.inodes.len()];
    let there = |path: &Path| std::fs::symlink_metadata(path).is_ok();
    for (at, inode) in tree.inodes.iter().enumerate() {
        let path = match inode.names.first() {
            None if at == 0 => root.to_owned(),
            None => return Err(TreeError::Damaged(at)),
            Some(name) => place(&paths, name).ok_or(TreeError::Damaged(at))?,
        };
        let nameless = DeviceNumber::default();
        let kernels = [InodeKind::Char(nameless), InodeKind::Block(nameless)];
        if !there(&path) {
            if kernels.contains(&inode.kind) {
                continue;
            }
            make(inode, &path)?;
        }
        paths[at] = Some(path);
    }
    // A further name may be in a directory that comes later.
    for (at, inode) in tree.inodes.iter().enumerate() {
        let Some(path) = &paths[at] else { continue };
        for name in inode.names.iter().skip(1) {
            let other = place(&paths, name).ok_or(TreeError::Damaged(at))?;
            if !there(&other) {
                std::fs::hard_link(path, &other).map_err(fail(&other, "link"))?;
            }
        }
    }
    Ok(paths)
}

/// Path of a name; `None` when it is no plain name or its directory comes later.
fn place(paths: &[Option<PathBuf>], name: &Name) -> Option<PathBuf> {
    let plain = !name.name.is_empty()
        && !name.name.contains(&b'/')
        && name.name != b"."
        && name.name != b"..";
    let parent = paths.get(name.parent as usize)?.as_ref()?;
    plain.then(|| parent.join(OsStr::from_bytes(&name.name)))
}
