//! Working directory, root directory, umask.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};

use crate::kit::{Kin, Setting, Watch, procfs, same, sys};

/// The mask of new files.
pub(crate) fn umask(_: &Setting) -> Result<Watch> {
    // SAFETY: takes a number.
    let set = |mask| unsafe { libc::umask(mask) };
    set(0o037);
    Ok(
        Watch::keep(|| procfs::status("self", "Umask"))?.spoiled_by(move || {
            set(0o022);
            Ok(())
        }),
    )
}

/// A directory of its own.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    std::env::set_current_dir(&dir)?;
    Ok(Watch::keep(|| {
        let here = fs::metadata(".")?;
        Ok((std::env::current_dir()?, here.dev(), here.ino()))
    })?
    .spoiled_by(|| Ok(std::env::set_current_dir("/")?)))
}

/// Removed since: it has no name, and nothing can be made in it.
pub(crate) fn removed(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("gone");
    fs::create_dir(&dir)?;
    std::env::set_current_dir(&dir)?;
    fs::remove_dir(&dir)?;
    Ok(Watch::new(move || {
        if fs::exists(&dir)? || fs::write("file", "").is_ok() {
            bail!("the directory is back");
        }
        let link = fs::read_link("/proc/self/cwd")?;
        same(
            "the link",
            &format!("{} (deleted)", dir.display()),
            &link.display().to_string(),
        )?;
        same("its links", &0, &fs::metadata(".")?.nlink())
    })
    .spoiled_by(|| Ok(std::env::set_current_dir("/")?)))
}

/// chroot(2), in a child with a file that only it sees under this name.
pub(crate) fn root(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("root");
    fs::create_dir(&dir)?;
    fs::write(dir.join("only-here"), "text")?;
    let name = std::ffi::CString::new(dir.to_string_lossy().as_bytes())?;
    // The child answers by files inside of its root.
    let inside = Setting::new(&dir.join("c").to_string_lossy());
    let seen = Setting::new("/c");
    let mut child = Kin::start_as(&inside, || {
        // SAFETY: the path is a C string.
        sys("chroot", unsafe { libc::chroot(name.as_ptr()) })?;
        std::env::set_current_dir("/")?;
        Ok((
            seen,
            Watch::new(|| {
                let text = fs::read_to_string("/only-here").context("/only-here")?;
                same("the file", "text", &text)?;
                same("what is above", &true, &fs::exists("/../only-here")?)
            }),
        ))
    })?;
    Ok(Watch::new(move || {
        same(
            "the link",
            &dir,
            &fs::read_link(format!("/proc/{}/root", child.pid))?,
        )?;
        child.check()
    }))
}
