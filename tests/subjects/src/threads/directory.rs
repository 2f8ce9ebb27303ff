//! Working directory, root directory, umask.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};

use crate::kit::{Crew, Kin, Setting, Watch, args, procfs, raw, same, sys, tid};

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

/// Threads that share directories, descriptors and lists of undo with each other, and not with the first one.
///
/// Before the first thread leaves the directories, so that two have them alone; of others one has made two more, which
/// have its directories, and one of these has left its descriptors and made one more.
pub(crate) fn of_others(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("others");
    fs::create_dir(&dir)?;
    let mut crew = Crew::default();
    let (tell, told) = std::sync::mpsc::channel();
    let teller = tell.clone();
    crew.add(move || member(&teller, 0o001))?;
    let teller = tell.clone();
    crew.add(move || member(&teller, 0o001))?;
    leave(libc::CLONE_FS)?;
    tell.send(tid())?;
    let teller = tell.clone();
    crew.add(move || {
        leave(libc::CLONE_FS)?;
        std::env::set_current_dir(&dir)?;
        let mut below = Crew::default();
        let own = member(&teller, 0o002)?;
        let with_it = teller.clone();
        below.add(move || member(&with_it, 0o002))?;
        let lists = teller.clone();
        below.add(move || {
            leave(libc::CLONE_SYSVSEM)?;
            let mut below = Crew::default();
            let one = lists.clone();
            below.add(move || member(&one, 0o002))?;
            Ok(member(&lists, 0o002)?.and(below.watch()))
        })?;
        below.add(move || {
            leave(libc::CLONE_FILES)?;
            let mut below = Crew::default();
            let one = teller.clone();
            below.add(move || member(&one, 0o002))?;
            Ok(member(&teller, 0o002)?.and(below.watch()))
        })?;
        Ok(own.and(below.watch()))
    })?;
    let all: Vec<i32> = told.try_iter().collect();
    same("threads", &9, &all.len())?;
    Ok(Watch::keep(move || Ok(shared(&all)))?.and(crew.watch()))
}

fn leave(what: i32) -> Result<()> {
    // SAFETY: takes a number.
    sys("unshare", unsafe { libc::unshare(what) }).map(drop)
}

/// A thread whose mask another one with the same directories sets as well.
fn member(tell: &std::sync::mpsc::Sender<i32>, mask: u32) -> Result<Watch> {
    // SAFETY: takes a number.
    unsafe { libc::umask(mask) };
    tell.send(tid())?;
    let here = || {
        Ok((
            std::env::current_dir()?,
            fs::read_link("/proc/thread-self/cwd")?,
        ))
    };
    let next = move || {
        // SAFETY: takes a number.
        let found = unsafe { libc::umask(mask) };
        same("the umask", &mask, &found)
    };
    Ok(Watch::keep(here)?.and(Watch::new(next)))
}

/// Which of these threads share descriptors, directories, and what `SEM_UNDO` will do.
fn shared(tids: &[i32]) -> Vec<(i32, i32, [bool; 3])> {
    /// KCMP_FILES, KCMP_FS, KCMP_SYSVSEM
    const KINDS: [u64; 3] = [2, 3, 6];
    let is = |one: i32, other: i32| {
        KINDS.map(|kind| raw(libc::SYS_kcmp, args([one as u64, other as u64, kind])) == 0)
    };
    let pairs = tids
        .iter()
        .flat_map(|one| tids.iter().map(move |other| (*one, *other)));
    pairs
        .map(|(one, other)| (one, other, is(one, other)))
        .collect()
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
