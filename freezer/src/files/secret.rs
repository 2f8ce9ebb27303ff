//! Secret memory (memfd_secret(2)): the description here, what is in it with the objects.

use super::{Open, apart};
use crate::FreezerError;
use crate::objects::{self, ObjectError, Objects};
use crate::proc::{self, Mapping};
use persist_mem::manifest::DescriptionKind;
use std::fs::File;
use std::os::fd::AsFd;
use sys::{Pid, process};

/// What the kernel calls all of it.
const NAME: &[u8] = b"/secretmem (deleted)";

pub(super) fn is_one(open: &Open<'_>) -> bool {
    open.link == NAME && sys::secret::is_one(open.copy.as_fd())
}

pub(super) fn capture(
    open: &Open<'_>,
    objects: &mut Objects,
) -> Result<DescriptionKind, FreezerError> {
    let copy = open.copy.try_clone();
    let found = copy
        .map_err(ObjectError::from)
        .and_then(|copy| objects.find_open(open.pid, File::from(copy), objects::secret));
    let object = found.map_err(|e| open.refuse(e.reason()))?;
    Ok(DescriptionKind::Memfd { object })
}

/// The object of a mapping, which leads to it only through a descriptor. None when it is not secret memory.
pub(crate) fn mapped(
    pid: Pid,
    map: &Mapping,
    objects: &mut Objects,
) -> Result<Option<u32>, ObjectError> {
    if map.name != NAME || !map.shared() {
        return Ok(None);
    }
    if let Some(known) = objects.known(map.device, map.inode) {
        return Ok(Some(known));
    }
    let is = |table: Pid, fd: i32| {
        let found = proc::metadata(table, &format!("fd/{fd}")).ok()?;
        use std::os::unix::fs::MetadataExt;
        ((found.dev(), found.ino()) == (map.device, map.inode)).then_some(fd)
    };
    let copy = apart::tables_of(pid).into_iter().find_map(|table| {
        let fds = proc::numbers(table, "fd").ok()?;
        let fd = fds.into_iter().find_map(|fd| is(table, fd))?;
        let pidfd = proc::pidfd(table).ok()?;
        process::pidfd_getfd(pidfd.as_fd(), fd).ok()
    });
    match copy {
        Some(copy) if sys::secret::is_one(copy.as_fd()) => {
            let found = objects.find_open(pid, File::from(copy), objects::secret);
            found.map(Some)
        }
        // A removed file that is called so.
        None if std::fs::File::open(proc::path(pid, &map.map_file())).is_ok() => Ok(None),
        Some(_) => Ok(None),
        None => Err(ObjectError::Refused(
            "secret memory (memfd_secret) whose descriptor is closed is not carried: nobody else can read it".into(),
        )),
    }
}
