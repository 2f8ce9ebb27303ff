//! Sockets of virtual machines (vsock(7)).

use anyhow::Result;
use libc::{AF_VSOCK, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, VMADDR_CID_ANY, VMADDR_PORT_ANY};

use crate::kit::files::{close, seen};
use crate::kit::{Setting, Watch, not_here, sys};

fn bind(fd: i32, port: u32) -> Result<()> {
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = AF_VSOCK as u16;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = port;
    let len = size_of_val(&address) as u32;
    // SAFETY: the address has this length.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    sys("bind", bound).map(drop)
}

/// Port and context id.
fn name(fd: i32) -> Result<(u32, u32)> {
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&address) as u32;
    // SAFETY: the kernel writes up to `len` bytes.
    let told = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
    sys("getsockname", told)?;
    Ok((address.svm_port, address.svm_cid))
}

/// `SO_VM_SOCKETS_BUFFER_SIZE` and its bounds, and whether it listens.
fn options(fd: i32) -> Result<[u64; 4]> {
    let mut found = [0_u64; 4];
    let asked = [
        (AF_VSOCK, 0),
        (AF_VSOCK, 1),
        (AF_VSOCK, 2),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
    ];
    for ((level, option), value) in asked.into_iter().zip(&mut found) {
        let mut len = 8;
        // SAFETY: eight bytes.
        let told = unsafe {
            libc::getsockopt(fd, level, option, (value as *mut u64).cast(), &raw mut len)
        };
        sys("getsockopt", told)?;
    }
    Ok(found)
}

/// One that listens, one that is bound to a port of the kernel's choice, one that is neither.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let kind = SOCK_STREAM | SOCK_CLOEXEC;
    // SAFETY: takes numbers.
    let made =
        [kind, kind, kind | SOCK_NONBLOCK].map(|kind| unsafe { libc::socket(AF_VSOCK, kind, 0) });
    if made.iter().any(|fd| *fd < 0) || bind(made[0], 0x6b_7570).is_err() {
        return not_here("no sockets of virtual machines");
    }
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(made[0], 7) })?;
    bind(made[1], VMADDR_PORT_ANY)?;
    let size = 100_000_u64;
    // SAFETY: eight bytes.
    let set = unsafe { libc::setsockopt(made[2], AF_VSOCK, 0, (&raw const size).cast(), 8) };
    sys("SO_VM_SOCKETS_BUFFER_SIZE", set)?;
    let one = |fd: i32| Ok((name(fd)?, options(fd)?, seen(fd)?.0, seen(fd)?.1));
    Ok(
        Watch::keep(move || made.map(one).into_iter().collect::<Result<Vec<_>>>())?.spoiled_by(
            move || {
                close(made[1]);
                // SAFETY: takes numbers.
                sys("socket", unsafe { libc::socket(AF_VSOCK, kind, 0) }).map(drop)
            },
        ),
    )
}
