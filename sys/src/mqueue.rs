//! POSIX message queues (mq_overview(7)).

use crate::raw::syscall;
use crate::{Errno, Result};
use nix::fcntl::{FcntlArg, FdFlag};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes that are sent to a process that is told of a message (`NOTIFY_COOKIE_LEN`, include/uapi/linux/mqueue.h).
pub const COOKIE: usize = 32;

/// `struct mq_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attributes {
    /// `O_NONBLOCK` of the description.
    pub flags: i64,
    /// Most messages.
    pub max_messages: i64,
    /// Most bytes of a message.
    pub message_size: i64,
    /// Messages now.
    pub messages: i64,
    reserved: [i64; 4],
}

fn fd(queue: BorrowedFd<'_>) -> u64 {
    i64::from(queue.as_raw_fd()).cast_unsigned()
}

/// mq_open(3). The name has no leading slash here. The descriptor is closed on exec; `O_CLOEXEC` would stay among the
/// status flags besides (do_mq_open, ipc/mqueue.c). With sizes (messages, bytes of one) a new queue is
/// made, which must not exist.
///
/// # Errors
/// As mq_open(3).
pub fn open(name: &CStr, flags: i32, new: Option<(i64, i64)>) -> Result<OwnedFd> {
    let attributes = new.map(|(max_messages, message_size)| Attributes {
        max_messages,
        message_size,
        ..Attributes::default()
    });
    let create = libc::O_CREAT | libc::O_EXCL;
    let flags = flags | if new.is_some() { create } else { 0 };
    let sizes = attributes
        .as_ref()
        .map_or(0, |a| core::ptr::from_ref(a) as u64);
    let args = [
        name.as_ptr() as u64,
        i64::from(flags).cast_unsigned(),
        0o600,
        sizes,
        0,
        0,
    ];
    // SAFETY: the name is a terminated string, the sizes are a structure or nothing; both live through
    // the call.
    let fd = unsafe { syscall(libc::SYS_mq_open, args) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) };
    nix::fcntl::fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// mq_unlink(3), name without slash.
///
/// # Errors
/// As mq_unlink(3).
pub fn unlink(name: &CStr) -> Result<()> {
    // SAFETY: a terminated string.
    unsafe { syscall(libc::SYS_mq_unlink, [name.as_ptr() as u64, 0, 0, 0, 0, 0]) }.map(drop)
}

/// mq_getattr(3).
///
/// # Errors
/// `EBADF` for what is no queue.
pub fn attributes(queue: impl AsFd) -> Result<Attributes> {
    let mut found = Attributes::default();
    let args = [fd(queue.as_fd()), 0, (&raw mut found) as u64, 0, 0, 0];
    // SAFETY: the kernel fills the structure.
    unsafe { syscall(libc::SYS_mq_getsetattr, args) }?;
    Ok(found)
}

/// Takes the first message out: priority and text. None when there is none. The queue must be open
/// for reading, without waiting.
///
/// # Errors
/// As mq_receive(3).
pub fn receive(queue: impl AsFd, longest: usize) -> Result<Option<(u32, Vec<u8>)>> {
    let mut text = vec![0; longest];
    let mut priority = 0_u32;
    let args = [
        fd(queue.as_fd()),
        text.as_mut_ptr() as u64,
        longest as u64,
        (&raw mut priority) as u64,
        0,
        0,
    ];
    // SAFETY: the buffer has as many bytes as are told, the priority four.
    let got = match unsafe { syscall(libc::SYS_mq_timedreceive, args) } {
        Err(Errno::EAGAIN) => return Ok(None),
        got => usize::try_from(got?).unwrap_or(0),
    };
    text.truncate(got);
    Ok(Some((priority, text)))
}

/// Adds a message.
///
/// # Errors
/// As mq_send(3).
pub fn send(queue: impl AsFd, priority: u32, text: &[u8]) -> Result<()> {
    let args = [
        fd(queue.as_fd()),
        text.as_ptr() as u64,
        text.len() as u64,
        u64::from(priority),
        0,
        0,
    ];
    // SAFETY: the text is read only.
    unsafe { syscall(libc::SYS_mq_timedsend, args) }.map(drop)
}
