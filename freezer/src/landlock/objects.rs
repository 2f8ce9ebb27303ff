//! What rules of Landlock are about, as a new ruleset can name it.

use crate::files::paths_of;
use crate::kernel::{self, Object};
use persist_mem::manifest::LayerObject;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

const O_PATH: i32 = 0o10_000_000;
const O_NOFOLLOW: i32 = 0o400_000;

/// Inodes that were met, by their addresses.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<u64, Option<Vec<u8>>>);

impl Objects {
    /// The object, and what of the rights that a layer handles are about such. None for what nobody can reach any more.
    pub(super) fn name(
        &mut self,
        object: Object,
        [fs, net, _]: &[u64; 3],
    ) -> Result<Option<(LayerObject, u64)>, String> {
        let inode = match object {
            Object::Port(port) => return Ok(Some((LayerObject::Port(port), *net))),
            Object::Inode(0) => return Ok(None),
            Object::Inode(inode) => inode,
        };
        let path = match self.0.get(&inode) {
            Some(known) => known.clone(),
            None => path(inode)?,
        };
        self.0.insert(inode, path.clone());
        Ok(path.map(|path| (LayerObject::Path(path), *fs)))
    }
}

/// A path of an inode in the kernel. None when nobody has it open and it has no name.
fn path(inode: u64) -> Result<Option<Vec<u8>>, String> {
    let (names, number, links) = kernel::look(|kernel| {
        let names = kernel.known_names(inode)?;
        let found = kernel.fields(inode, "inode", &["i_ino", "i_nlink"])?;
        Ok((names, found[0], found[1]))
    })
    .map_err(|why| format!("what a rule of Landlock is about cannot be read: {why}"))?;
    if links == 0 && !names.open {
        return Ok(None);
    }
    let is = |path: &Vec<u8>| leads_to(path, inode);
    let path = paths_of(&names).into_iter().find(is);
    let missing =
        || format!("no path of what a rule of Landlock is about (inode {number}) was found");
    path.map(Some).ok_or_else(missing)
}

/// Whether a path leads to this inode and no other.
fn leads_to(path: &[u8], inode: u64) -> bool {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_PATH | O_NOFOLLOW)
        .open(OsStr::from_bytes(path));
    let Ok(file) = file else { return false };
    let found = kernel::look(|kernel| {
        let file = kernel.own_file(file.as_fd())?;
        kernel.inode(file)
    });
    found == Ok(inode)
}
