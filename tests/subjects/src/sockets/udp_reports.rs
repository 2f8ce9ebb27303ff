//! What waits for `MSG_ERRQUEUE` (ip(7), `IP_RECVERR`).

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Result, bail};
use libc::{
    ECONNREFUSED, IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE, POLLERR, POLLIN, SOL_IP, SOL_IPV6,
};

use crate::kit::files::ready;
use crate::kit::net::{option, set_option};
use crate::kit::{SOON, Setting, Watch, loopback, same, until};

/// The next report: the datagram, where it went, and `struct sock_extended_err` with who refused it.
#[derive(Debug, PartialEq)]
struct Report {
    data: Vec<u8>,
    to: Vec<u8>,
    what: Vec<u8>,
}

/// Takes a report.
fn report(fd: RawFd) -> Option<Report> {
    #[repr(C, align(8))]
    struct Room([u8; 256]);
    let (mut room, mut data, mut to) = (Room([0; 256]), vec![0_u8; 2000], vec![0_u8; 28]);
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: zeros are a valid message; what it points to is alive.
    let (got, len, used) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = to.as_mut_ptr().cast();
        message.msg_namelen = 28;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = 256;
        let got = libc::recvmsg(fd, &raw mut message, MSG_ERRQUEUE | libc::MSG_DONTWAIT);
        (got, message.msg_namelen, message.msg_controllen)
    };
    data.truncate(usize::try_from(got).ok()?);
    to.truncate(len as usize);
    Some(Report {
        data,
        to,
        what: room.0[..used].to_vec(),
    })
}

/// A port where nobody is, and that nobody is given who asks for any.
const NOBODY: u16 = 9;

/// A socket that keeps reports.
fn asking(host: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(host)?;
    socket.set_nonblocking(true)?;
    let fd = socket.as_raw_fd();
    set_option(fd, SOL_IP, IP_RECVERR, 1)?;
    if host.starts_with('[') {
        set_option(fd, SOL_IPV6, IPV6_RECVERR, 1)?;
    }
    Ok(socket)
}

/// Ends a connection, if there is one (connect(2), AF_UNSPEC).
fn disconnect(socket: &UdpSocket) -> Result<()> {
    let nobody = [0_u8; 28];
    // SAFETY: the address is as long as it is said to be.
    let done = unsafe { libc::connect(socket.as_raw_fd(), nobody.as_ptr().cast(), 28) };
    same("disconnected", &0, &done)
}

/// Sends one that is refused; `told` takes the error off, so that the report alone is left.
fn refuse(from: &UdpSocket, to: SocketAddr, text: &[u8], told: bool) -> Result<()> {
    let fd = from.as_raw_fd();
    let waiting = || option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO).map(|info| info[..4].to_vec());
    let before = waiting()?;
    from.send_to(text, to)?;
    if !told {
        // Reports that wait already hide from poll(2) whether this one has come: it takes room (SK_MEMINFO_RMEM_ALLOC).
        until("a report", SOON / 4, || {
            waiting().is_ok_and(|now| now != before)
        })?;
        let events = ready(fd, POLLIN)?;
        return same("a refusal", &POLLERR, &(events & POLLERR));
    }
    until("a refusal", SOON / 4, || {
        let error = option(fd, libc::SOL_SOCKET, libc::SO_ERROR);
        error.is_ok_and(|error| error[..4] == ECONNREFUSED.to_ne_bytes())
    })
}

/// A socket that is refused.
struct Asking {
    socket: UdpSocket,
    /// Where it sends.
    to: SocketAddr,
    /// It was told of the last refusal.
    told: bool,
    /// It has connected to this one since.
    since: Option<SocketAddr>,
}

/// All reports of each.
fn take(all: &[Asking]) -> Vec<Vec<Report>> {
    let mut found = Vec::new();
    for Asking { socket, .. } in all {
        found.push(std::iter::from_fn(|| report(socket.as_raw_fd())).collect());
    }
    found
}

/// Several on sockets of IPv4, of IPv6, and of both, and of some that have connected elsewhere since; one of each was not
/// told of the error either.
pub(crate) fn refused(_: &Setting) -> Result<Watch> {
    loopback()?;
    let long = vec![7_u8; 1200];
    let texts = [b"is anybody there?".as_slice(), b"", &long].map(<[u8]>::to_vec);
    let mut all = Vec::new();
    let elsewhere = Some(SocketAddr::from(([127, 0, 0, 3], NOBODY)));
    for (own, other, told, since) in [
        ("127.0.0.1:0", "127.0.0.1", true, None),
        ("127.0.0.1:0", "127.0.0.1", false, None),
        ("[::1]:0", "::1", true, None),
        ("[::]:0", "127.0.0.9", true, None),
        ("127.0.0.1:0", "127.0.0.1", true, elsewhere),
        ("127.0.0.2:0", "127.0.0.1", false, elsewhere),
    ] {
        let Ok(socket) = asking(own) else { continue };
        let to = SocketAddr::new(other.parse()?, NOBODY);
        let mapped = match to {
            SocketAddr::V4(v4) if own.starts_with('[') => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            to => to,
        };
        all.push(Asking {
            socket,
            to: mapped,
            told,
            since,
        });
    }
    if all.is_empty() {
        bail!("no socket");
    }
    let fill = move |all: &[Asking]| -> Result<()> {
        for one in all {
            disconnect(&one.socket)?;
            for (at, text) in texts.iter().enumerate() {
                // An error that waits is told to the next call.
                refuse(&one.socket, one.to, text, one.told || at + 1 < texts.len())?;
            }
            if let Some(since) = one.since {
                one.socket.connect(since)?;
            }
        }
        Ok(())
    };
    fill(&all)?;
    let before = take(&all);
    same(
        "reports",
        &vec![3; all.len()],
        &before.iter().map(Vec::len).collect::<Vec<_>>(),
    )?;
    fill(&all)?;
    let spoilt = all[0].socket.try_clone()?;
    Ok(Watch::new(move || {
        for Asking { socket, told, .. } in &all {
            let error = option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR)?;
            let expected = if *told { 0 } else { ECONNREFUSED };
            same(
                "the error that waits",
                &expected.to_ne_bytes()[..],
                &error[..4],
            )?;
        }
        same("reports", &before, &take(&all))?;
        fill(&all)
    })
    .spoiled_by(move || {
        report(spoilt.as_raw_fd());
        Ok(())
    }))
}
