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
