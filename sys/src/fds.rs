//! Descriptors that the libraries make only in part: with any number, any signal, any clock.

use crate::raw::syscall;
use crate::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

fn owned(fd: u64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

fn number(fd: BorrowedFd<'_>) -> u64 {
    i64::from(fd.as_raw_fd()).cast_unsigned()
}

/// A copy with a number of at least `least`, closed on exec (fcntl(2), `F_DUPFD_CLOEXEC`).
///
/// # Errors
/// `EINVAL` for a number past the limit of open files, `EMFILE`.
pub fn duplicate(fd: impl AsFd, least: i32) -> Result<OwnedFd> {
    let args = [
        number(fd.as_fd()),
        libc::F_DUPFD_CLOEXEC as u64,
        u64::from(least.cast_unsigned()),
        0,
        0,
        0,
    ];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fcntl, args) }.map(owned)
}

/// Closes descriptors, those with numbers in a row at once (close_range(2)).
pub fn close_all(fds: impl IntoIterator<Item = OwnedFd>) {
    let numbers = fds.into_iter().map(IntoRawFd::into_raw_fd);
    let mut numbers: Vec<u64> = numbers.map(|fd| i64::from(fd).cast_unsigned()).collect();
    numbers.sort_unstable();
    for row in numbers.chunk_by(|one, next| one + 1 == *next) {
        let args = [row[0], row[row.len() - 1], 0, 0, 0, 0];
        // SAFETY: no pointers; whoever owned these numbers has given them up above.
        if unsafe { syscall(libc::SYS_close_range, args) }.is_err() {
            // A filter may not know the call.
            row.iter().for_each(|fd| drop(owned(*fd)));
        }
    }
}

/// Status flags (fcntl(2), `F_SETFL`).
///
/// # Errors
/// `EPERM` for flags that the file does not allow.
pub fn set_status_flags(fd: impl AsFd, flags: u32) -> Result<()> {
    let args = [
        number(fd.as_fd()),
        libc::F_SETFL as u64,
        u64::from(flags),
        0,
        0,
        0,
    ];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fcntl, args) }.map(drop)
}

/// signalfd(2) for signals 1 to 64 (bit n-1 for signal n).
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    let args = [
        u64::MAX,
        (&raw const mask) as u64,
        8,
        libc::SFD_CLOEXEC as u64,
        0,
        0,
    ];
    // SAFETY: `mask` is 8 bytes, as stated.
    unsafe { syscall(libc::SYS_signalfd4, args) }.map(owned)
}

/// timerfd_create(2).
///
/// # Errors
/// `EINVAL` for a clock the kernel does not know, `EPERM` for alarm clocks without CAP_WAKE_ALARM.
pub fn timerfd(clock: i32) -> Result<OwnedFd> {
    let args = [
        i64::from(clock).cast_unsigned(),
        libc::TFD_CLOEXEC as u64,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_timerfd_create, args) }.map(owned)
}

/// timerfd_settime(2), times in nanoseconds.
///
/// # Errors
/// `EINVAL` for unknown flags, `ECANCELED` when a clock set by hand cancels it.
pub fn timerfd_settime(fd: impl AsFd, flags: i32, value: u64, interval: u64) -> Result<()> {
    let time = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
    let spec = [time(interval), time(value)];
    let args = [
        number(fd.as_fd()),
        i64::from(flags).cast_unsigned(),
        (&raw const spec) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: `spec` is laid out as struct itimerspec.
    unsafe { syscall(libc::SYS_timerfd_settime, args) }.map(drop)
}

/// timerfd_gettime(2): time to the next expiry and period in nanoseconds. A periodic timer that has
/// expired is wound on to now, its expirations counted.
///
/// # Errors
/// `EINVAL` for what is no timerfd.
pub fn timerfd_gettime(fd: impl AsFd) -> Result<(u64, u64)> {
    let mut spec = [[0u64; 2]; 2];
    let args = [number(fd.as_fd()), (&raw mut spec) as u64, 0, 0, 0, 0];
    // SAFETY: `spec` is laid out as struct itimerspec, which the call fills.
    unsafe { syscall(libc::SYS_timerfd_gettime, args) }?;
    let time = |[seconds, nanoseconds]: [u64; 2]| seconds * 1_000_000_000 + nanoseconds;
    Ok((time(spec[1]), time(spec[0])))
}

/// Sets the expirations not read yet (`TFD_IOC_SET_TICKS`, fs/timerfd.c).
///
/// # Errors
/// `EINVAL` for 0, `ENOTTY` without CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: impl AsFd, ticks: u64) -> Result<()> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    let args = [
        number(fd.as_fd()),
        TFD_IOC_SET_TICKS,
        (&raw const ticks) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the request reads 8 bytes.
    unsafe { syscall(libc::SYS_ioctl, args) }.map(drop)
}

/// Opens what a descriptor of this process is open on once more, as a description of its own
/// (`/proc/PID/fd/FD`). The way there is a link that must be followed, so `O_NOFOLLOW` is left out where the file has no
/// handle.
///
/// # Errors
/// As open(2).
pub fn reopen(fd: impl AsFd, flags: nix::fcntl::OFlag) -> Result<OwnedFd> {
    let me = crate::Pid(nix::unistd::getpid().as_raw());
    let what = format!("fd/{}", fd.as_fd().as_raw_fd());
    if flags.contains(nix::fcntl::OFlag::O_NOFOLLOW)
        && let Ok(opened) = reopen_by_handle(&fd.as_fd(), flags)
    {
        return Ok(opened);
    }
    let flags = flags - nix::fcntl::OFlag::O_NOFOLLOW;
    crate::procdir::open(me, &what, flags).map(OwnedFd::from)
}

/// The same by the file's handle (open_by_handle_at(2)), on which no link lies.
fn reopen_by_handle(fd: &impl AsFd, flags: nix::fcntl::OFlag) -> Result<OwnedFd> {
    let flags = flags | nix::fcntl::OFlag::O_CLOEXEC;
    let handle = crate::handle::of(fd)?;
    // One that refers to a file only shows whether the handle leads to it by its name, before anything is opened.
    let seen = crate::handle::open(fd, &handle, libc::O_PATH | libc::O_CLOEXEC)?;
    let link = |fd: BorrowedFd<'_>| {
        let me = crate::Pid(nix::unistd::getpid().as_raw());
        crate::procdir::link(me, &format!("fd/{}", fd.as_raw_fd()))
    };
    match link(seen.as_fd())? == link(fd.as_fd())? {
        true => crate::handle::open(fd, &handle, flags.bits()),
        false => Err(Errno::ESTALE),
    }
}

/// lseek(2) from the start; files of memory (`/proc/PID/mem`) have offsets up to the last address.
///
/// # Errors
/// `ESPIPE` for what has no offset, `EINVAL`.
pub fn seek(fd: impl AsFd, offset: u64) -> Result<()> {
    let offset = offset.cast_signed();
    nix::unistd::lseek64(fd, offset, nix::unistd::Whence::SeekSet).map(drop)
}
