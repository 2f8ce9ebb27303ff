//! Files that the kernel makes up. Those about processes and threads are there, for these are.

use super::{Opening, path, vanished};
use crate::ResurrectError;
use crate::restore::Restore;
use nix::sys::stat::Mode;
use persist_mem::manifest::{DescriptionKind, PressureTrigger};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::{Errno, Pid};

/// How the kernel shows the path of what was gone when it was saved.
const GONE: &[u8] = b" (deleted)";

pub(super) fn open(
    opening: &Opening<'_, '_>,
    at: &[u8],
    trigger: Option<PressureTrigger>,
) -> Result<OwnedFd, ResurrectError> {
    let path = Path::new(OsStr::from_bytes(at));
    let stand_in = || vanished::open(opening.restore, opening.flags());
    let opened = if at.ends_with(GONE) {
        stand_in()
    } else {
        match nix::fcntl::open(path, opening.flags(), Mode::empty()) {
            Err(Errno::ENOENT) => of_nobody(opening, at),
            Ok(file) => {
                ask_for_pressure(opening, &file, trigger)?;
                Ok(file)
            }
            opened => opened,
        }
    };
    opened.map_err(|errno| {
        ResurrectError::changed(path.display().to_string(), format!("opening it: {errno}"))
    })
}

/// Writes what it is to tell of pressure. A kernel that does not measure it tells poll(2) of an error, as of a file that
/// nothing was written to.
fn ask_for_pressure(
    opening: &Opening<'_, '_>,
    file: &OwnedFd,
    trigger: Option<PressureTrigger>,
) -> Result<(), ResurrectError> {
    let Some(trigger) = trigger else {
        return Ok(());
    };
    let text = format!("{trigger}\n");
    // Where there are offsets, in control groups, it is left as it is.
    let written = match nix::sys::uio::pwrite(file, text.as_bytes(), 0) {
        Err(Errno::ESPIPE) => nix::unistd::write(file, text.as_bytes()),
        written => written,
    };
    match written {
        Err(errno) if opening.restore.is_upgrade() => {
            log::warn!("pressure is not told of: {trigger}: {errno}");
            Ok(())
        }
        done => done
            .map(drop)
            .map_err(opening.failed("asking it to tell of pressure")),
    }
}

/// A file about a process that had ended already: about a child of ours with its id, which ends; with another id
/// where somebody has it by now.
fn of_nobody(opening: &Opening<'_, '_>, at: &[u8]) -> sys::Result<OwnedFd> {
    let rest = at.strip_prefix(b"/proc/").ok_or(Errno::ENOENT)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    let number = std::str::from_utf8(number)
        .ok()
        .and_then(|number| number.parse().ok());
    let pid = number.map(Pid).ok_or(Errno::ENOENT)?;
    if opening.restore.tasks.contains_key(&pid) {
        return Err(Errno::ENOENT);
    }
    let (child, path) = match opening.restore.spawn_among(Some(pid), || 0) {
        Ok(child) => (child, at.to_vec()),
        Err(Errno::EEXIST) if !opening.restore.is_upgrade() => {
            let child = sys::process::spawn(0, &[], || 0)?;
            (child, [format!("/proc/{child}").as_bytes(), rest].concat())
        }
        Err(errno) => return Err(errno),
    };
    let opened = nix::fcntl::open(OsStr::from_bytes(&path), opening.flags(), Mode::empty());
    sys::wait::wait_for(child.leader())?;
    opened
}

/// Has them seen what their readers had, and sets the offsets. The kernel writes the text up to there when it is asked to, so everything that it
/// tells of must be as it was.
pub(crate) fn seek(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for description in &restore.manifest.descriptions {
        let DescriptionKind::Pseudo { seen, .. } = description.kind else {
            continue;
        };
        if let Some(fd) = restore.files.opened.get(&description.id) {
            if seen {
                // Also where it has nothing to read, or writes only.
                let _ = nix::sys::uio::pread(fd, &mut [0; 1], 0);
            }
            let opening = Opening {
                restore,
                description,
            };
            match path::seek(opening.description, fd) {
                // What stands in for it has nothing to read.
                Err(ResurrectError::Description {
                    errno: Errno::ENODEV | Errno::ESRCH,
                    ..
                }) => {}
                done => done?,
            }
        }
    }
    Ok(())
}
