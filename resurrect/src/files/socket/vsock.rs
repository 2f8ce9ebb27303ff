//! Sockets of virtual machines (vsock(7)) without a connection.

use super::Making;
use super::options::{self, When};
use crate::ResurrectError;
use persist_mem::manifest::VsockSocket;
use std::os::fd::{AsFd, OwnedFd};
use sys::socket;

/// Made, bound, and listening.
pub(super) fn make(making: &Making<'_>, state: &VsockSocket) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    options::set(making, fd.as_fd(), When::Early)?;
    if !state.name.is_empty() {
        socket::bind(fd.as_fd(), &state.name).map_err(making.failed("binding it"))?;
    }
    if let Some(backlog) = state.backlog {
        socket::listen(fd.as_fd(), backlog).map_err(making.failed("having it listen"))?;
    }
    Ok(fd)
}
