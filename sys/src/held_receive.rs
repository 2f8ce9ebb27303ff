//! A message that is off a socket's queue and not received yet.
//!
//! Its receiver waits for the page that the message is copied into, which userfaultfd(2) holds back. Until
//! then the message counts against the socket's buffer, and the queue is empty.

use crate::raw::syscall;
use crate::{Errno, PAGE_SIZE, Result};
use memmap2::MmapOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// How long the receiver may take to get to its page.
const WITHIN: Duration = Duration::from_secs(5);

/// Receives the next message of `socket` into nothing, and does something while it is on its way.
///
/// # Errors
/// `EPERM` without CAP_SYS_PTRACE, `EAGAIN` when there is no message, or no thread to be had, `ETIMEDOUT` when nobody came to the page,
/// and what `meanwhile` says.
pub fn hold(socket: BorrowedFd<'_>, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let io = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut page = MmapOptions::new().len(PAGE_SIZE).map_anon().map_err(io)?;
    let at = page.as_mut_ptr().addr() as u64;
    let faults = hold_back(at)?;
    std::thread::scope(|scope| {
        let number = socket.as_raw_fd() as u64;
        let receiver = std::thread::Builder::new().spawn_scoped(scope, move || {
            let flags = libc::MSG_DONTWAIT as u64;
            let args = [number, at, PAGE_SIZE as u64, flags, 0, 0];
            // SAFETY: the mapping lives longer than the scope; nobody else uses it.
            unsafe { syscall(libc::SYS_recvfrom, args) }
        });
        let receiver = receiver.map_err(io)?;
        let begun = Instant::now();
        let done = loop {
            if waits(&faults)? {
                break meanwhile();
            }
            if receiver.is_finished() {
                break Err(Errno::EAGAIN);
            }
            if begun.elapsed() > WITHIN {
                break Err(Errno::ETIMEDOUT);
            }
        };
        // Nothing is held back any more, and whoever waits goes on.
        drop(faults);
        let received = receiver.join().map_err(|_| Errno::EIO)?;
        done.and(received.map(drop))
    })
}

/// Has the first use of a page wait.
fn hold_back(at: u64) -> Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { syscall(libc::SYS_userfaultfd, [flags as u64, 0, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    let faults = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) };
    let number = faults.as_raw_fd() as u64;
    // struct uffdio_api: api, features, ioctls; struct uffdio_register: start, length, mode, ioctls.
    let mut api = [UFFD_API, 0, 0];
    let mut register = [at, PAGE_SIZE as u64, UFFDIO_REGISTER_MODE_MISSING, 0];
    for (request, argument) in [
        (UFFDIO_API, api.as_mut_ptr()),
        (UFFDIO_REGISTER, register.as_mut_ptr()),
    ] {
        let args = [number, request, argument as u64, 0, 0, 0];
        // SAFETY: the argument is as large as the request says.
        unsafe { syscall(libc::SYS_ioctl, args) }?;
    }
    Ok(faults)
}

/// Whether somebody waits for the page; asks for a moment.
fn waits(faults: &OwnedFd) -> Result<bool> {
    let mut asked = libc::pollfd {
        fd: faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    const MILLISECONDS: u64 = 5;
    let args = [(&raw mut asked) as u64, 1, MILLISECONDS, 0, 0, 0];
    // SAFETY: one pollfd, as stated.
    match unsafe { syscall(libc::SYS_poll, args) } {
        Err(Errno::EINTR) => Ok(false),
        ready => Ok(ready? != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_on_its_way_is_off_the_queue_and_still_counts() {
        let (a, b) = socket::pair(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        let message = socket::Outgoing {
            data: b"text",
            ..Default::default()
        };
        socket::send(a.as_fd(), &message, 0).unwrap();
        let mut seen = None;
        let held = hold(b.as_fd(), || {
            seen = Some((socket::events(b.as_fd())?, socket::unsent(a.as_fd())?));
            Ok(())
        });
        match held {
            Err(Errno::EPERM | Errno::ENOSYS) => return,
            held => held.unwrap(),
        }
        let (events, unsent) = seen.unwrap();
        assert_eq!(events & libc::POLLIN, 0);
        assert!(unsent > 0);
        assert_eq!(socket::unsent(a.as_fd()).unwrap(), 0);
        assert_eq!(hold(b.as_fd(), || Ok(())), Err(Errno::EAGAIN));
    }
}
