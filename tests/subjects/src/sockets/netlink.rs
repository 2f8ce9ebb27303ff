//! netlink(7)

use anyhow::Result;
use libc::{
    AF_NETLINK, NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE, SOCK_NONBLOCK, SOCK_RAW, SOL_NETLINK,
};

use crate::kit::files::read;
use crate::kit::net::{name, option, set_option, socket};
use crate::kit::{SOON, Setting, Watch, args, loopback, raw, same, sys, until};

/// Bound to a port and groups.
fn bound(protocol: i32, port: u32, groups: u32) -> Result<i32> {
    let socket = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, protocol)?;
    let mut address = [0_u8; 12];
    address[..2].copy_from_slice(&(AF_NETLINK as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&port.to_ne_bytes());
    address[8..].copy_from_slice(&groups.to_ne_bytes());
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, address.as_ptr() as u64, 12]),
        ),
    )?;
    Ok(socket)
}

/// Routing: answers questions, and has joined a group that has no bit in the address.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    loopback()?;
    let port = std::process::id();
    let socket = bound(NETLINK_ROUTE, port, 1 | 1 << 4)?;
    // NETLINK_ADD_MEMBERSHIP of group 36, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK.
    set_option(socket, SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, 36)?;
    for name in [11, 12] {
        set_option(socket, SOL_NETLINK, name, 1)?;
    }
    let observe = move || {
        Ok((
            name(socket, false)?,
            // NETLINK_LIST_MEMBERSHIPS
            option(socket, SOL_NETLINK, 9)?,
            option(socket, SOL_NETLINK, 11)?,
            option(socket, SOL_NETLINK, 12)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, 36))
        .and(Watch::new(move || {
            while read(socket, 65536).is_ok() {}
            // RTM_GETLINK, a dump, of struct ifinfomsg.
            let mut question = [0_u8; 32];
            question[0] = 32;
            question[4..8].copy_from_slice(&[18, 0, 1, 3]);
            question[8] = 42;
            sys(
                "send",
                raw(
                    libc::SYS_write,
                    args([socket as u64, question.as_ptr() as u64, 32]),
                ),
            )?;
            let mut answer = Vec::new();
            until("an answer", SOON / 4, || {
                read(socket, 65536).is_ok_and(|got| {
                    answer = got;
                    true
                })
            })?;
            same(
                "RTM_NEWLINK with our number",
                &(16, 42),
                &(answer[4], answer[8]),
            )
        })))
}

/// Of devices: only its group can be seen.
pub(crate) fn uevent(_: &Setting) -> Result<Watch> {
    let socket = bound(NETLINK_KOBJECT_UEVENT, 0, 1)?;
    let observe = move || Ok((name(socket, false)?, option(socket, SOL_NETLINK, 9)?));
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, 1)))
}
