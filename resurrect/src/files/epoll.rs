//! epoll_create(2). What it watches is registered inside a process that has it: the kernel remembers the
//! descriptor's number, and a signalfd is bound to the signals of who registers it.

use super::Opening;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use persist_mem::manifest::EpollTarget;
use std::os::fd::OwnedFd;

const EPOLL_CTL_ADD: i32 = 1;

pub(super) fn open(opening: &Opening<'_, '_>) -> Result<OwnedFd, ResurrectError> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(opening.failed("making it"))?;
    Ok(epoll.0)
}

/// Registers what the epoll with number `fd` watches.
pub(super) fn watch(
    calls: &mut Calls<'_>,
    fd: i32,
    targets: &[EpollTarget],
) -> Result<(), ResurrectError> {
    for target in targets {
        // struct epoll_event is packed on x86_64.
        let mut event = [0; 12];
        event[..4].copy_from_slice(&target.events.to_le_bytes());
        event[4..].copy_from_slice(&target.data.to_le_bytes());
        let event = calls.batch().data(&event);
        let args = [
            fd.into(),
            EPOLL_CTL_ADD.into(),
            target.fd.into(),
            event.into(),
        ];
        calls
            .batch()
            .call("watching a descriptor", nr::EPOLL_CTL, args);
        calls.breathe()?;
    }
    Ok(())
}
