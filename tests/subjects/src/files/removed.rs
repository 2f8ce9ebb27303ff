//! Files without a name, or with another one.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use libc::{O_APPEND, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_RDONLY, O_RDWR, O_TMPFILE, O_WRONLY};

use super::fanotify::mounted;
use crate::kit::files::{open, place, read, seen, share, write};
use crate::kit::{PAGE, Setting, Watch, fd, not_here, same, sys};

/// Size, mode, owner, links.
fn stat(fd: i32) -> Result<(u64, u32, u32, u64)> {
    let found = fs::metadata(format!("/proc/self/fd/{fd}"))?;
    Ok((found.len(), found.mode(), found.uid(), found.nlink()))
}

/// Two descriptions and a dup of a file without a name: sizes, places, contents with a hole.
fn nameless(one: i32, other: i32) -> Result<Watch> {
    write(one, b"the beginning")?;
    place(one, Some(5 * PAGE as i64))?;
    write(one, b"the end")?;
    place(one, Some(4))?;
    // SAFETY: takes a number.
    let dup = fd("dup", unsafe { libc::dup(one) })?;
    let observe = move || {
        Ok((
            stat(one)?,
            stat(other)?,
            seen(one)?.0 & !O_TMPFILE,
            place(one, None)?,
            place(other, None)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || write(other, b"The"))
        .and(Watch::new(move || {
            same("what is read", b"beginning".as_slice(), &read(dup, 9)?)?;
            same("the place of the dup", &13, &place(one, None)?)?;
            place(one, Some(5 * PAGE as i64))?;
            same(
                "what is behind the hole",
                b"the end".as_slice(),
                &read(one, 100)?,
            )?;
            same("one file", &stat(one)?, &stat(other)?)?;
            place(one, Some(4))?;
            same(
                "what the other description reads",
                b"the".as_slice(),
                &read(other, 3)?,
            )?;
            place(other, Some(0))?;
            same(
                "two descriptions",
                &false,
                &share(one, std::process::id() as i32, other)?,
            )
        })))
}

/// An extended attribute, where the file system has any.
fn attribute(file: i32) -> Result<Watch> {
    let (name, value) = (c"user.subject", b"a value");
    let (at, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: the name is terminated, the value has the length that is given.
    let has = unsafe { libc::fsetxattr(file, name.as_ptr(), at, len, 0) } == 0;
    Watch::keep(move || {
        let mut found = [0_u8; 16];
        let at = found.as_mut_ptr().cast();
        // SAFETY: as above, with room for 16 bytes.
        let len = unsafe { libc::fgetxattr(file, name.as_ptr(), at, 16) };
        same("the attribute is there", &has, &(len == 7))?;
        Ok(found)
    })
}

fn removed_at(path: &std::path::Path) -> Result<Watch> {
    // As mkstemp(3) of some libraries opens it, and shm_open(3).
    let one = open(path, O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW)?;
    let other = open(path, O_RDWR)?;
    let attribute = attribute(one)?;
    fs::remove_file(path)?;
    let (gone, path) = (seen(one)?.2, path.to_path_buf());
    if !gone.ends_with("(deleted)") {
        bail!("it is still there: {gone}");
    }
    Ok(nameless(one, other)?
        .and(attribute)
        .and(Watch::new(move || {
            same("the name", &false, &fs::exists(&path)?)?;
            same("the link", &true, &seen(one)?.2.ends_with("(deleted)"))
        })))
}

/// In a directory that keeps each name that it is given (chattr(1), `a`), on a file system of its own.
pub(crate) fn kept(setting: &Setting) -> Result<Watch> {
    // `FS_APPEND_FL`
    let append: i32 = 0x20;
    let dir = setting.fresh("dir");
    mounted(&dir)?;
    let file = open(dir.join("file"), O_RDWR | libc::O_CREAT)?;
    fs::remove_file(dir.join("file"))?;
    let of_dir = open(&dir, O_RDONLY)?;
    // SAFETY: the kernel reads an int.
    if unsafe { libc::ioctl(of_dir, libc::FS_IOC_SETFLAGS, &raw const append) } != 0 {
        return not_here("the file system has no attributes");
    }
    Ok(Watch::keep(move || stat(file))?
        .spoiled_by(move || write(file, b"x"))
        .and(Watch::new(move || {
            same("names", &0, &fs::read_dir(&dir)?.count())?;
            same("the link", &true, &seen(file)?.2.ends_with("(deleted)"))
        })))
}

/// On the subject's own file system.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    removed_at(&setting.fresh("file"))
}

/// On tmpfs.
pub(crate) fn tmpfs(_: &Setting) -> Result<Watch> {
    if !fs::read_to_string("/proc/mounts")?.contains(" /dev/shm tmpfs") {
        return not_here("no tmpfs on /dev/shm");
    }
    let path = format!("/dev/shm/kupgrade-file-{}", std::process::id());
    removed_at(path.as_ref())
}

/// Never had a name; one can still be given to it.
pub(crate) fn tmpfile(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("named");
    let dir = path.parent().context("no folder")?;
    let Ok(one) = open(dir, O_RDWR | O_TMPFILE) else {
        return not_here("the file system knows no O_TMPFILE");
    };
    let other = open(format!("/proc/self/fd/{one}"), O_RDWR)?;
    nameless(one, other)
}

/// It had no name when it was opened, and has one now.
pub(crate) fn tmpfile_named(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("named");
    let dir = path.parent().context("no folder")?;
    let Ok(file) = open(dir, O_RDWR | O_TMPFILE) else {
        return not_here("the file system knows no O_TMPFILE");
    };
    write(file, b"contents")?;
    place(file, Some(3))?;
    let link = std::ffi::CString::new(format!("/proc/self/fd/{file}"))?;
    let name = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    let (name, here) = (std::ffi::CString::new(name)?, libc::AT_FDCWD);
    // SAFETY: terminated strings.
    crate::kit::sys("linkat", unsafe {
        let (from, to, follow) = (link.as_ptr(), name.as_ptr(), libc::AT_SYMLINK_FOLLOW);
        libc::linkat(here, from, here, to, follow)
    })?;
    Ok(Watch::keep(move || {
        let (inode, link) = (fs::metadata(&path)?.ino(), seen(file)?.2);
        Ok((stat(file)?, place(file, None)?, inode, link))
    })?
    .spoiled_by(move || write(file, b"x")))
}

/// Directories that were removed with what they were in: `..` leads up to what is still there. Nobody has the middle one open.
pub(crate) fn tree(setting: &Setting) -> Result<Watch> {
    let top = setting.fresh("top");
    let deepest = top.join("middle/deepest");
    fs::create_dir_all(&deepest)?;
    let dirs = [open(&top, O_RDONLY | O_DIRECTORY)?, open(&deepest, O_PATH)?];
    let above = fs::metadata(top.parent().context("no folder")?)?.ino();
    for path in [&deepest, &top.join("middle"), &top] {
        fs::remove_dir(path)?;
    }
    let number = move |dir: i32, path: &str| {
        let found = fs::metadata(format!("/proc/self/fd/{dir}/{path}"));
        anyhow::Ok(found.with_context(|| format!("{path} of fd {dir}"))?.ino())
    };
    let check = move || {
        let [top, deepest] = dirs;
        same("what all was in", &above, &number(top, "..")?)?;
        same("two above", &number(top, ".")?, &number(deepest, "../..")?)?;
        let (own, middle) = (number(deepest, ".")?, number(deepest, "..")?);
        same("a middle one", &true, &(middle != own && middle != above))?;
        same("its links", &0, &stat(deepest)?.3)
    };
    Ok(Watch::new(check)
        .and(Watch::keep(move || {
            Ok(dirs.map(|dir| seen(dir).ok().zip(stat(dir).ok())))
        })?)
        .spoiled_by(move || {
            crate::kit::files::close(dirs[0]);
            open("/", O_RDONLY | O_DIRECTORY).map(drop)
        }))
}

/// Another directory has the name of a removed one.
pub(crate) fn directory_replaced(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("dir");
    fs::create_dir(&path)?;
    let dir = open(&path, O_RDONLY | O_DIRECTORY)?;
    let reference = open(&path, libc::O_PATH)?;
    fs::remove_dir(&path)?;
    fs::create_dir(&path)?;
    fs::write(path.join("file"), "")?;
    let both = [dir, reference];
    Ok(Watch::keep(move || {
        let each = both.map(|fd| anyhow::Ok((stat(fd)?, seen(fd)?)));
        let [dir, reference] = each;
        let (dir, reference): (_, _) = (dir?, reference?);
        let entries = fs::read_dir(format!("/proc/self/fd/{}", both[1]))?.count();
        anyhow::Ok((dir, reference, entries, fs::exists(path.join("file"))?))
    })?
    .spoiled_by(move || {
        crate::kit::files::close(dir);
        open("/", O_RDONLY | O_DIRECTORY).map(drop)
    }))
}

/// Open for writing only.
pub(crate) fn tmpfile_written(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("named");
    let dir = path.parent().context("no folder")?;
    let Ok(file) = open(dir, libc::O_WRONLY | O_TMPFILE) else {
        return not_here("the file system knows no O_TMPFILE");
    };
    write(file, b"contents")?;
    place(file, Some(3))?;
    Ok(
        Watch::keep(move || Ok((seen(file)?.0, stat(file)?, place(file, None)?)))?
            .spoiled_by(move || write(file, b"x"))
            .and(Watch::new(move || {
                let found = fs::read_to_string(format!("/proc/self/fd/{file}"));
                same("the contents", "contents", &found?)
            })),
    )
}

/// The other name is the same file still.
pub(crate) fn linked(setting: &Setting) -> Result<Watch> {
    let (path, other) = (setting.fresh("one"), setting.fresh("other"));
    fs::write(&path, "contents")?;
    fs::hard_link(&path, &other)?;
    let file = open(&path, O_RDWR)?;
    place(file, Some(3))?;
    fs::remove_file(&path)?;
    let (inode, link) = (fs::metadata(&other)?.ino(), seen(file)?.2);
    Ok(Watch::new(move || {
        let same_file = fs::metadata(format!("/proc/self/fd/{file}"))?.ino();
        same(
            "the inode of the other name",
            &inode,
            &fs::metadata(&other)?.ino(),
        )?;
        same("the inode", &inode, &same_file)?;
        same("the place", &3, &place(file, None)?)?;
        same("the link", &link, &seen(file)?.2)?;
        same("links", &1, &stat(file)?.3)?;
        same("the removed name", &false, &fs::exists(&path)?)
    })
    .spoiled_by(move || place(file, Some(0)).map(drop)))
}

/// The name leads to another file now.
pub(crate) fn replaced(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, "old contents")?;
    let file = open(&path, O_RDWR)?;
    place(file, Some(4))?;
    let (next, kept) = (setting.fresh("next"), setting.fresh("kept"));
    fs::write(&next, "new contents!")?;
    fs::rename(&next, &path)?;
    let linked = setting.fresh("linked");
    fs::write(&linked, "of two names")?;
    fs::hard_link(&linked, &kept)?;
    let other = open(&linked, O_RDWR)?;
    fs::write(&next, "of another file")?;
    fs::rename(&next, &linked)?;
    let observe = move || {
        Ok((
            seen(file)?.2,
            seen(other)?.2,
            stat(other)?,
            fs::metadata(&kept)?.ino(),
        ))
    };
    let links = Watch::keep(observe)?;
    Ok(Watch::new(move || {
        same("the place", &4, &place(file, None)?)?;
        same("the old file", b"contents".as_slice(), &read(file, 100)?)?;
        place(file, Some(4))?;
        same("the new file", "new contents!", &fs::read_to_string(&path)?)
    })
    .spoiled_by(move || place(file, Some(0)).map(drop))
    .and(links))
}

/// Nothing can be made in it.
pub(crate) fn directory(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("dir");
    fs::create_dir(&path)?;
    let dir = open(&path, O_RDONLY | O_DIRECTORY)?;
    fs::remove_dir(&path)?;
    Ok(Watch::new(move || {
        let found = fs::metadata(format!("/proc/self/fd/{dir}"))?;
        same(
            "a directory without links",
            &(true, 0),
            &(found.is_dir(), found.nlink()),
        )?;
        same("the name", &false, &fs::exists(&path)?)?;
        same(
            "making a file",
            &true,
            &open(format!("/proc/self/fd/{dir}/file"), O_RDWR | libc::O_CREAT).is_err(),
        )
    })
    .spoiled_by(move || {
        crate::kit::files::close(dir);
        open("/", O_RDONLY | O_DIRECTORY).map(drop)
    }))
}

/// Read up to somewhere in the middle, then removed with all that was in it.
pub(crate) fn directory_read(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("dir");
    fs::create_dir(&path)?;
    let names: Vec<_> = (0..9)
        .map(|n| path.join(format!("entry number {n}")))
        .collect();
    for name in &names {
        fs::write(name, "")?;
    }
    let dir = open(&path, O_RDONLY | O_DIRECTORY)?;
    let mut some = [0_u8; 200];
    // SAFETY: the buffer has the length that is given.
    sys("getdents64", unsafe {
        libc::syscall(libc::SYS_getdents64, dir, some.as_mut_ptr(), some.len())
    })?;
    for name in &names {
        fs::remove_file(name)?;
    }
    fs::remove_dir(&path)?;
    let watch = Watch::keep(move || Ok((place(dir, None)?, seen(dir)?, stat(dir)?)))?;
    Ok(watch.spoiled_by(move || place(dir, Some(0)).map(drop)))
}

/// Gives a file without a name one, and takes it away again.
fn name_it(file: i32, path: &std::path::Path) -> Result<bool> {
    let link = std::ffi::CString::new(format!("/proc/self/fd/{file}"))?;
    let name = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    let (name, here) = (std::ffi::CString::new(name)?, libc::AT_FDCWD);
    // SAFETY: terminated strings.
    let done = unsafe {
        let (from, to, follow) = (link.as_ptr(), name.as_ptr(), libc::AT_SYMLINK_FOLLOW);
        libc::linkat(here, from, here, to, follow)
    };
    if done == 0 {
        fs::remove_file(path)?;
    }
    Ok(done == 0)
}

/// One that was made with `O_EXCL`, one that had a name for a moment, and at each check one that is given a name.
pub(crate) fn tmpfile_exclusive(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("named");
    let dir = path.parent().context("no folder")?.to_owned();
    let make = move |more: i32| open(&dir, O_RDWR | O_TMPFILE | more);
    let Ok(exclusive) = make(libc::O_EXCL) else {
        return not_here("the file system knows no O_TMPFILE");
    };
    let once = make(0)?;
    if !name_it(once, &path)? {
        bail!("it cannot be given a name");
    }
    let mut free = make(0)?;
    let again = path.clone();
    Ok(Watch::new(move || {
        for file in [exclusive, once] {
            same("it can be given a name", &false, &name_it(file, &path)?)?;
        }
        same("it can be given a name", &true, &name_it(free, &path)?)?;
        crate::kit::files::close(free);
        free = make(0)?;
        Ok(())
    })
    .spoiled_by(move || {
        crate::kit::files::close(exclusive);
        let dir = again.parent().context("no folder")?;
        same("the number", &exclusive, &open(dir, O_RDWR | O_TMPFILE)?)
    }))
}

/// Removed files and a directory that were opened with `O_NOFOLLOW`, in several ways.
pub(crate) fn nofollow(setting: &Setting) -> Result<Watch> {
    let (file, dir) = (setting.fresh("file"), setting.fresh("dir"));
    fs::write(&file, "contents")?;
    fs::create_dir(&dir)?;
    let of_file = [O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_APPEND, O_PATH];
    let of_dir = [O_RDONLY, O_PATH | O_DIRECTORY];
    let mut all = Vec::new();
    for flags in of_file {
        all.push(open(&file, flags | O_NOFOLLOW)?);
    }
    for flags in of_dir {
        all.push(open(&dir, flags | O_NOFOLLOW)?);
    }
    let plain = open(&file, O_RDONLY)?;
    fs::remove_file(&file)?;
    fs::remove_dir(&dir)?;
    let reader = all[0];
    let observe = move || {
        let one = |fd: &i32| Ok((seen(*fd)?, stat(*fd)?));
        all.iter().map(one).collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            place(reader, Some(0))?;
            same("contents", b"contents".as_slice(), &read(reader, 20)?)?;
            place(reader, Some(0)).map(drop)
        })
        // SAFETY: both are open.
        .spoiled_by(move || sys("dup2", unsafe { libc::dup2(plain, reader) }).map(drop)),
    ))
}
