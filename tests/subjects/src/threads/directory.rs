//! Working directory, root directory, umask.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};

use crate::kit::{Crew, Kin, Setting, Watch, procfs, same, sys};

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

/// Of threads (unshare(2), CLONE_FS): a directory and a mask, a directory that is gone, a root directory. The others
/// have that of the process.
pub(crate) fn of_threads(setting: &Setting) -> Result<Watch> {
    let dirs = ["own", "away", "below"].map(|name| setting.fresh(name));
    let mut crew = Crew::default();
    crew.add(|| Ok(observed()?.and(Watch::new(|| same_umask(0o022)))))?;
    for (number, dir) in dirs.iter().cloned().enumerate() {
        fs::create_dir(&dir)?;
        fs::write(setting.path("own").join("here"), "file")?;
        crew.add(move || {
            // SAFETY: takes a number.
            sys("unshare", unsafe { libc::unshare(libc::CLONE_FS) })?;
            std::env::set_current_dir(&dir)?;
            match number {
                0 => {
                    // SAFETY: takes a number.
                    unsafe { libc::umask(0o071) };
                }
                1 => fs::remove_dir(&dir)?,
                _ => std::os::unix::fs::chroot(&dir)?,
            }
            let mask = if number == 0 { 0o071 } else { 0o022 };
            let watch = observed()?.and(Watch::new(move || same_umask(mask)));
            Ok(watch.spoiled_by(|| {
                // SAFETY: takes a number.
                unsafe { libc::umask(0o777) };
                Ok(())
            }))
        })?;
    }
    Ok(crew.watch())
}

/// What a thread finds at `.`, `/` and `here`.
fn observed() -> Result<Watch> {
    Watch::keep(|| {
        let ids = |path| fs::metadata(path).map(|found| (found.dev(), found.ino(), found.nlink()));
        let ends = fs::read("here").ok();
        // The number of a removed directory is another one afterwards.
        let (dev, ino, links) = ids(".")?;
        let root = ids("/")?;
        Ok((
            (dev, if links == 0 { 0 } else { ino }),
            (root.0, root.1),
            ends,
        ))
    })
}

fn same_umask(expected: u32) -> Result<()> {
    // SAFETY: takes a number.
    let found = unsafe { libc::umask(expected) };
    same("the umask", &expected, &found)
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
