//! What the libraries do not offer of epoll(7).

use crate::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

/// `EPIOCSPARAMS` and `EPIOCGPARAMS` (include/uapi/linux/eventpoll.h, Linux 6.9).
const SET_PARAMS: u64 = 0x4008_8a01;
const GET_PARAMS: u64 = 0x8008_8a02;

/// How it polls devices (`struct epoll_params`); None when nothing is set or the kernel does not know it.
///
/// # Errors
/// `EBADF`.
pub fn busy_poll(epoll: impl AsFd) -> Result<Option<[u8; 8]>> {
    let mut params = [0u8; 8];
    // SAFETY: the request fills 8 bytes.
    let done = unsafe { libc::ioctl(epoll.as_fd().as_raw_fd(), GET_PARAMS, params.as_mut_ptr()) };
    match Errno::result(done) {
        Ok(_) => Ok((params != [0; 8]).then_some(params)),
        Err(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets what [`busy_poll`] tells.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN for a budget above 64, `EINVAL` from a kernel that does not know it.
pub fn set_busy_poll(epoll: impl AsFd, params: &[u8; 8]) -> Result<()> {
    // SAFETY: the request reads 8 bytes.
    let done = unsafe { libc::ioctl(epoll.as_fd().as_raw_fd(), SET_PARAMS, params.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Which of these events a descriptor has now, errors and hang-ups too (poll(2)).
///
/// # Errors
/// `EBADF` for a number that is not open.
pub fn polled(fd: i32, events: i16) -> Result<i16> {
    let mut asked = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one entry, which is alive.
    Errno::result(unsafe { libc::poll(&raw mut asked, 1, 0) })?;
    if asked.revents & libc::POLLNVAL != 0 {
        return Err(Errno::EBADF);
    }
    Ok(asked.revents)
}
