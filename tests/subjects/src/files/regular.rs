//! Regular files.

use std::fs;

use anyhow::{Result, bail};
use libc::{
    O_APPEND, O_CLOEXEC, O_DIRECT, O_NOATIME, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_SYNC,
    O_WRONLY,
};

use crate::kit::files::{close, fcntl, open, place, read, seen, write};
use crate::kit::{Setting, Watch, args, not_here, raw, same};

const TEXT: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

fn file(setting: &Setting, name: &str) -> Result<std::path::PathBuf> {
    let path = setting.fresh(name);
    fs::write(&path, TEXT)?;
    Ok(path)
}

/// Flags, name and place of descriptors.
fn kept(descriptors: Vec<i32>) -> Result<Watch> {
    let first = descriptors[0];
    let observe = move || {
        let all = descriptors
            .iter()
            .map(|fd| Ok((seen(*fd)?, place(*fd, None)?)));
        all.collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || place(first, Some(1)).map(drop)))
}

/// Three access modes.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let reader = open(&path, O_RDONLY | O_CLOEXEC)?;
    let writer = open(&path, O_WRONLY)?;
    let both = open(&path, O_RDWR | O_NONBLOCK)?;
    place(reader, Some(10))?;
    place(writer, Some(1 << 40))?;
    place(both, Some(20))?;
    Ok(kept(vec![reader, writer, both])?.and(Watch::new(move || {
        same("what is read", &TEXT[10..13], &read(reader, 3)?)?;
        place(reader, Some(10))?;
        if write(reader, b"x").is_ok() || read(writer, 1).is_ok() {
            bail!("the access mode is another one");
        }
        Ok(())
    })))
}

/// Every write goes to the end.
pub(crate) fn append(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let fd = open(&path, O_RDWR | O_APPEND)?;
    place(fd, Some(5))?;
    let mut len = TEXT.len();
    Ok(kept(vec![fd])?.and(Watch::new(move || {
        write(fd, b"more")?;
        len += 4;
        same("the length", &(len as u64), &fs::metadata(&path)?.len())?;
        place(fd, Some(5)).map(drop)
    })))
}

/// Flags that are rarely used; some file systems know no O_DIRECT.
pub(crate) fn flags(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let Ok(direct) = open(&path, O_RDONLY | O_DIRECT) else {
        return not_here("the file system knows no O_DIRECT");
    };
    let synced = open(&path, O_RDWR | O_SYNC)?;
    let quiet = open(&path, O_RDONLY | O_NOATIME)?;
    kept(vec![direct, synced, quiet])
}

/// A file and a directory by O_PATH: they cannot be read.
pub(crate) fn path(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let descriptors = [
        open(&path, O_PATH | O_CLOEXEC)?,
        open("/usr", O_PATH | libc::O_DIRECTORY)?,
    ];
    let observe = move || {
        descriptors
            .iter()
            .map(|fd| seen(*fd))
            .collect::<Result<Vec<_>>>()
    };
    let first = descriptors[0];
    Ok(Watch::keep(observe)?
        .spoiled_by(move || fcntl(first, libc::F_SETFD, 0).map(drop))
        .and(Watch::new(move || match read(first, 1) {
            Err(_) => Ok(()),
            Ok(_) => bail!("it can be read now"),
        })))
}

/// A symbolic link itself.
pub(crate) fn symlink(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("link");
    std::os::unix::fs::symlink("/somewhere", &path)?;
    let link = open(&path, O_PATH | libc::O_NOFOLLOW)?;
    Ok(Watch::keep(move || {
        let mut target = [0_u8; 32];
        let at = target.as_mut_ptr() as u64;
        // An empty path: the link that the descriptor is.
        let got = raw(
            libc::SYS_readlinkat,
            args([link as u64, c"".as_ptr() as u64, at, 32]),
        );
        Ok((seen(link)?, got, target))
    })?
    .spoiled_by(move || {
        close(link);
        open("/", O_PATH).map(drop)
    }))
}

/// Nobody may write to it any more, but those who have it open.
pub(crate) fn mode(setting: &Setting) -> Result<Watch> {
    use std::os::unix::fs::PermissionsExt;
    let path = file(setting, "file")?;
    let fd = open(&path, O_RDWR)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000))?;
    place(fd, Some(3))?;
    Ok(kept(vec![fd])?.and(Watch::new(move || {
        same(
            "its mode",
            &0o100000,
            &fs::metadata(&path)?.permissions().mode(),
        )?;
        write(fd, b"345")?;
        place(fd, Some(3)).map(drop)
    })))
}

/// By its new name.
pub(crate) fn renamed(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "before")?;
    let fd = open(&path, O_RDWR)?;
    place(fd, Some(7))?;
    fs::rename(&path, setting.fresh("after"))?;
    kept(vec![fd])
}

/// Sets the flags of an inode; false where the file system has none.
fn protect(file: i32, flags: i32) -> bool {
    // SAFETY: the kernel reads an int.
    unsafe { libc::ioctl(file, libc::FS_IOC_SETFLAGS, &raw const flags) == 0 }
}

fn protection(file: i32) -> Result<i32> {
    let mut flags = 0;
    // SAFETY: the kernel writes an int.
    crate::kit::sys("FS_IOC_GETFLAGS", unsafe {
        libc::ioctl(file, libc::FS_IOC_GETFLAGS, &raw mut flags)
    })?;
    Ok(flags)
}

/// Open for writing, and not to be opened so again: but for the moments in which nobody looks.
pub(crate) fn protected(setting: &Setting) -> Result<Watch> {
    const APPEND: i32 = 0x20;
    const IMMUTABLE: i32 = 0x10;
    let mut files = Vec::new();
    for (name, flag) in [("append", APPEND), ("immutable", IMMUTABLE)] {
        let path = file(setting, name)?;
        let file = open(&path, O_RDWR)?;
        let Ok(own) = protection(file) else {
            return not_here("the file system has no attributes");
        };
        if !protect(file, own | flag) {
            return not_here("the file system has no attributes");
        }
        // Nobody could remove it otherwise.
        protect(file, own);
        files.push((path, file, own, flag));
    }
    for (_, file, own, flag) in &files {
        protect(*file, own | flag);
    }
    let all: Vec<(i32, i32)> = files
        .iter()
        .map(|(_, file, own, _)| (*file, *own))
        .collect();
    let flags = seen(all[0].0)?.0;
    Ok(Watch::new(move || {
        for (path, file, own, flag) in &files {
            same("its flags", &(own | flag), &protection(*file)?)?;
            same("opening it", &true, &open(path, O_RDWR).is_err())?;
            same("what it reads", &TEXT[..3], &read(*file, 3)?)?;
            place(*file, Some(0))?;
            same("its access mode", &flags, &seen(*file)?.0)?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        for (file, own) in &all {
            protect(*file, *own);
        }
        Ok(())
    }))
}

/// Of a bound socket, which its node leads to.
pub(crate) fn socket(setting: &Setting) -> Result<Watch> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let path = setting.fresh("socket");
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let node = open(&path, O_PATH)?;
    let flags = seen(node)?;
    let observe = {
        let path = path.clone();
        move || {
            let (one, two) = (
                fs::metadata(format!("/proc/self/fd/{node}"))?,
                fs::symlink_metadata(&path)?,
            );
            use std::os::unix::fs::MetadataExt;
            Ok((seen(node)?, one.nlink(), one.ino() == two.ino()))
        }
    };
    Ok(Watch::keep(observe)?
        .and(Watch::new(move || {
            same("what it is", &flags, &seen(node)?)?;
            let client = UnixStream::connect(format!("/proc/self/fd/{node}"))?;
            listener.accept()?;
            drop(client);
            Ok(())
        }))
        .spoiled_by(move || fs::rename(&path, path.with_extension("moved")).map_err(Into::into)))
}

/// How long data is expected to live (`F_SET_RW_HINT`), of a file with a name and of one without.
pub(crate) fn hints(setting: &Setting) -> Result<Watch> {
    // linux/fcntl.h
    const GET: i32 = 1035;
    const SET: i32 = 1036;
    let (named, gone) = (setting.fresh("named"), setting.fresh("gone"));
    let flags = libc::O_RDWR | libc::O_CREAT;
    let fds = [open(&named, flags)?, open(&gone, flags)?];
    std::fs::remove_file(&gone)?;
    let set = move |fd: i32, hint: u64| {
        // SAFETY: eight bytes are read.
        crate::kit::sys("F_SET_RW_HINT", unsafe {
            libc::fcntl(fd, SET, &raw const hint)
        })
    };
    if set(fds[0], 3).is_err() {
        return crate::kit::not_here("no hints about data");
    }
    set(fds[1], 5)?;
    let observe = move || {
        let mut found = [0_u64; 2];
        for (fd, hint) in fds.into_iter().zip(&mut found) {
            // SAFETY: eight bytes are written.
            crate::kit::sys("F_GET_RW_HINT", unsafe {
                libc::fcntl(fd, GET, &raw mut *hint)
            })?;
        }
        Ok(found)
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set(fds[1], 1).map(drop)))
}
