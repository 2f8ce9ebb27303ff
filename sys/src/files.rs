//! Open file descriptions: what nix lacks of fcntl(2), inotify(7) and fanotify(7).

use crate::raw::syscall;
use crate::{Errno, Result};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

// include/uapi/asm-generic/fcntl.h and linux/fcntl.h
const F_NOTIFY: i32 = 1026;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;

/// Who gets signals about a description: `struct f_owner_ex`, and who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalOwner {
    /// `F_OWNER_TID` 0, `_PID` 1 or `_PGRP` 2.
    pub kind: i32,
    /// The id, 0 for none.
    pub id: i32,
    /// Real and effective user of who set it: kill(2)'s rules are applied to them.
    pub uids: [u32; 2],
    /// The signal instead of SIGIO (`F_SETSIG`), or 0.
    pub signal: i32,
}

fn fd_of(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// `F_GETOWN_EX`, `F_GETOWNER_UIDS` and `F_GETSIG`.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn owner(fd: &impl AsFd) -> Result<SignalOwner> {
    let (mut owner, mut uids) = ([0i32; 2], [0u32; 2]);
    // SAFETY: F_GETOWN_EX fills two ints.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), F_GETOWN_EX, &raw mut owner) })?;
    // SAFETY: no pointer.
    let signal = Errno::result(unsafe { libc::fcntl(fd_of(fd), F_GETSIG) })?;
    if owner[1] != 0 || signal != 0 {
        // SAFETY: F_GETOWNER_UIDS fills two uid_t.
        match Errno::result(unsafe { libc::fcntl(fd_of(fd), F_GETOWNER_UIDS, &raw mut uids) }) {
            // Only there with CONFIG_CHECKPOINT_RESTORE.
            Ok(_) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(SignalOwner {
        kind: owner[0],
        id: owner[1],
        uids,
        signal,
    })
}

/// `F_SETOWN_EX` and `F_SETSIG`, as the user that the calling thread is.
///
/// # Errors
/// `ESRCH` when there is no such thread, process or group.
pub fn set_owner(fd: &impl AsFd, owner: &SignalOwner) -> Result<()> {
    let pair = [owner.kind, owner.id];
    // SAFETY: F_SETOWN_EX reads two ints.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), F_SETOWN_EX, &raw const pair) })?;
    // SAFETY: no pointer.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), F_SETSIG, owner.signal) }).map(drop)
}

/// Runs `body` with real and effective user ids of this thread changed, and its saved id kept.
///
/// # Errors
/// `EPERM`, or what `body` returns.
pub fn as_user<T>(uids: [u32; 2], body: impl FnOnce() -> Result<T>) -> Result<T> {
    const KEEP: u64 = u32::MAX as u64;
    let set = |real: u64, effective: u64| {
        // SAFETY: the raw call changes this thread only; no pointers.
        unsafe { syscall(libc::SYS_setresuid, [real, effective, KEEP, 0, 0, 0]) }
    };
    // SAFETY: these two have no preconditions and cannot fail.
    let before = unsafe { [libc::getuid(), libc::geteuid()] };
    if uids == before {
        return body();
    }
    set(u64::from(uids[0]), u64::from(uids[1]))?;
    let result = body();
    set(u64::from(before[0]), u64::from(before[1]))?;
    // A change of the effective user makes a process unreadable for others of the same user.
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
    result
}

/// `struct flock` of one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// `F_RDLCK` 0 or `F_WRLCK` 1.
    pub kind: i16,
    /// First byte.
    pub start: i64,
    /// Bytes, 0 to the end of the file.
    pub len: i64,
}

impl Range {
    /// The structure's bytes, for a call made elsewhere.
    #[must_use]
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

/// Takes an open file description lock (`F_OFD_SETLK`).
///
/// # Errors
/// `EAGAIN` when another one holds it.
pub fn lock_range(fd: &impl AsFd, range: &Range) -> Result<()> {
    let flock = range.bytes();
    // SAFETY: the bytes are a `struct flock` of x86_64, which is read only.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), libc::F_OFD_SETLK, &raw const flock) }).map(drop)
}

/// Takes a lock of the whole file (flock(2)): `LOCK_SH` or `LOCK_EX`, without waiting.
///
/// # Errors
/// `EWOULDBLOCK` when another one holds it.
pub fn lock_whole(fd: &impl AsFd, exclusive: bool) -> Result<()> {
    let kind = if exclusive {
        libc::LOCK_EX
    } else {
        libc::LOCK_SH
    };
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::flock(fd_of(fd), kind | libc::LOCK_NB) }).map(drop)
}

/// Takes a lease (`F_SETLEASE`): `F_RDLCK` 0 or `F_WRLCK` 1.
///
/// # Errors
/// `EAGAIN` when the file is open in a way that contradicts it.
pub fn lease(fd: &impl AsFd, kind: i32) -> Result<()> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), libc::F_SETLEASE, kind) }).map(drop)
}

/// The lease held through a description (`F_GETLEASE`).
///
/// # Errors
/// `EBADF`.
pub fn lease_of(fd: &impl AsFd) -> Result<i32> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(fd_of(fd), libc::F_GETLEASE) })
}

/// Bytes that can be read now (`FIONREAD`).
///
/// # Errors
/// `ENOTTY` where the request means nothing.
pub fn readable(fd: &impl AsFd) -> Result<usize> {
    let mut count = 0i32;
    // SAFETY: FIONREAD fills an int.
    Errno::result(unsafe { libc::ioctl(fd_of(fd), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Flags of an inode (chattr(1), ioctl_iflags(2)).
///
/// # Errors
/// `ENOTTY` on file systems without any.
pub fn inode_flags(fd: &impl AsFd) -> Result<u32> {
    let mut flags = 0u32;
    // SAFETY: the request fills an int, whatever its number says.
    Errno::result(unsafe { libc::ioctl(fd_of(fd), libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(flags)
}

/// Sets them.
///
/// # Errors
/// `EPERM`; `EOPNOTSUPP` for flags that the file system does not have.
pub fn set_inode_flags(fd: &impl AsFd, flags: u32) -> Result<()> {
    // SAFETY: the request reads an int, whatever its number says.
    let done = unsafe { libc::ioctl(fd_of(fd), libc::FS_IOC_SETFLAGS, &raw const flags) };
    Errno::result(done).map(drop)
}

/// Whether it is the root of a mount (statx(2), `STATX_ATTR_MOUNT_ROOT`).
///
/// # Errors
/// As statx(2).
pub fn is_mount_root(fd: &impl AsFd) -> Result<bool> {
    let mut found = core::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a terminated string, and room for the structure.
    let done = unsafe {
        let empty = libc::AT_EMPTY_PATH;
        libc::statx(fd_of(fd), c"".as_ptr(), empty, 0, found.as_mut_ptr())
    };
    Errno::result(done)?;
    // SAFETY: the kernel has filled it, and zeros are valid too.
    let found = unsafe { found.assume_init() };
    Ok(found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// The number of the mount that a path leads to (statx(2), `STATX_MNT_ID`).
///
/// # Errors
/// As statx(2); `EINVAL` for a path with a zero byte.
pub fn mount_of(path: &std::path::Path) -> Result<u64> {
    let path =
        std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut found = core::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a terminated string, and room for the structure.
    let done = unsafe {
        let (here, wanted) = (libc::AT_FDCWD, libc::STATX_MNT_ID);
        libc::statx(here, path.as_ptr(), 0, wanted, found.as_mut_ptr())
    };
    Errno::result(done)?;
    // SAFETY: the kernel has filled it, and zeros are valid too.
    Ok(unsafe { found.assume_init() }.stx_mnt_id)
}

/// `inotify_init1(2)`; close-on-exec.
///
/// # Errors
/// `EMFILE`.
pub fn inotify(flags: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::inotify_init1(flags | libc::IN_CLOEXEC) })?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `INOTIFY_IOC_SETNEXTWD`: the number of the next watch, counting from 1.
///
/// # Errors
/// `EINVAL`; `ENOTTY` without CONFIG_CHECKPOINT_RESTORE.
pub fn next_watch(fd: &impl AsFd, watch: i32) -> Result<()> {
    const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
    // SAFETY: the request takes a number.
    let done = unsafe { libc::ioctl(fd_of(fd), INOTIFY_IOC_SETNEXTWD, watch) };
    Errno::result(done).map(drop)
}

/// inotify_add_watch(2).
///
/// # Errors
/// `ENOENT`, `ENOSPC`.
pub fn add_watch(fd: &impl AsFd, path: &CStr, mask: u32) -> Result<i32> {
    // SAFETY: a terminated string.
    Errno::result(unsafe { libc::inotify_add_watch(fd_of(fd), path.as_ptr(), mask) })
}

/// inotify_rm_watch(2).
///
/// # Errors
/// `EINVAL` when there is no such watch.
pub fn remove_watch(fd: &impl AsFd, watch: i32) -> Result<()> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::inotify_rm_watch(fd_of(fd), watch) }).map(drop)
}

/// Of fcntl(2): linux/fcntl.h.
const F_GET_RW_HINT: i32 = 1035;
const F_SET_RW_HINT: i32 = 1036;

/// How long data of a file is expected to live (fcntl(2), `F_GET_RW_HINT`).
///
/// # Errors
/// `EINVAL` where the kernel has none of it.
pub fn write_hint(file: impl AsFd) -> Result<u64> {
    let mut hint = 0u64;
    // SAFETY: `hint` has the eight bytes that are written.
    let done = unsafe { libc::fcntl(fd_of(&file), F_GET_RW_HINT, &raw mut hint) };
    Errno::result(done).map(|_| hint)
}

/// Says so (`F_SET_RW_HINT`).
///
/// # Errors
/// `EINVAL` for hints that the kernel does not know.
pub fn set_write_hint(file: impl AsFd, hint: u64) -> Result<()> {
    // SAFETY: eight bytes are read.
    let done = unsafe { libc::fcntl(fd_of(&file), F_SET_RW_HINT, &raw const hint) };
    Errno::result(done).map(drop)
}

/// fanotify_init(2), then close-on-exec: a flag for that would be kept with the group.
///
/// # Errors
/// `EPERM`, `EINVAL` for flags that the kernel does not know.
pub fn fanotify(flags: u32, event_flags: u32) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let cloexec = nix::fcntl::FdFlag::FD_CLOEXEC;
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(cloexec))?;
    Ok(fd)
}

/// fanotify_mark(2), `FAN_MARK_ADD` with more flags.
///
/// # Errors
/// `ENOENT`, `ENOSPC`, `EINVAL`.
pub fn add_mark(fd: &impl AsFd, path: &CStr, mask: u32, flags: u32) -> Result<()> {
    let flags = flags | libc::FAN_MARK_ADD;
    let here = libc::AT_FDCWD;
    // SAFETY: a terminated string.
    let done = unsafe { libc::fanotify_mark(fd_of(fd), flags, mask.into(), here, path.as_ptr()) };
    Errno::result(done).map(drop)
}

/// `F_NOTIFY`: asks to be told by a signal of what happens in a directory; `DN_*` bits.
///
/// # Errors
/// `ENOTDIR`; `EINVAL` where the kernel has none of it.
pub fn notify(directory: &impl AsFd, events: u32) -> Result<()> {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::fcntl(fd_of(directory), F_NOTIFY, events) }).map(drop)
}

/// `DN_*` bits by what the kernel keeps of them (fs/notify/dnotify/dnotify.c, `convert_arg`); None for what it would
/// not keep.
#[must_use]
pub fn notify_bits(kept: u32) -> Option<u32> {
    /// `FS_EVENT_ON_CHILD`
    const ALWAYS: u32 = 0x0800_0000;
    /// Of access, modification, attributes, creation, removal, renaming, and of more than the first of them.
    const BITS: [(u32, u32); 7] = [
        (0x1, 0x1),
        (0x2, 0x2),
        (0x4, 0x20),
        (0x180, 0x4),
        (0x240, 0x8),
        (0x1000_0000, 0x10),
        (0x2000_0000, 1 << 31),
    ];
    let has = |(bits, _): &&(u32, u32)| kept & bits == *bits;
    let (known, events) = BITS
        .iter()
        .filter(has)
        .fold((ALWAYS, 0), |(known, events), (bits, event)| {
            (known | bits, events | event)
        });
    (known == kept).then_some(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_locks() {
        let path = std::env::temp_dir().join(format!("locks-{}", std::process::id()));
        let open = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap()
        };
        let (one, two) = (open(), open());
        let range = Range {
            kind: 1,
            start: 5,
            len: 10,
        };
        lock_range(&one, &range).unwrap();
        assert_eq!(lock_range(&two, &range), Err(Errno::EAGAIN));
        lock_whole(&one, true).unwrap();
        assert_eq!(lock_whole(&two, false), Err(Errno::EWOULDBLOCK));
        let me = SignalOwner {
            kind: 1,
            id: std::process::id() as i32,
            uids: [0, 0],
            signal: 34,
        };
        set_owner(&one, &me).unwrap();
        assert_eq!(
            owner(&one).unwrap(),
            SignalOwner {
                uids: owner(&one).unwrap().uids,
                ..me
            }
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn watches_get_the_number_that_is_asked_for() {
        let fd = inotify(0).unwrap();
        next_watch(&fd, 41).unwrap();
        assert_eq!(add_watch(&fd, c"/", 0x2), Ok(41));
    }
}
