//! TCP with signatures (TCP_MD5SIG, tcp(7)).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use anyhow::Result;
use libc::{AF_INET, IPPROTO_TCP, POLLOUT, SOCK_NONBLOCK, SOCK_STREAM};

use crate::kit::files::{close, ready};
use crate::kit::net::{name, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, loopback, not_here, same, sys, until};

const TCP_MD5SIG_EXT: i32 = 32;
/// One that is not answered would be tried again after a second.
const UNANSWERED: Duration = Duration::from_millis(300);

/// Gives a key for an address and those that begin alike: `struct tcp_md5sig`.
fn key(fd: RawFd, address: Ipv4Addr, prefix: u8, secret: &str) -> Result<()> {
    let mut value = (AF_INET as u16).to_ne_bytes().to_vec();
    value.extend([0, 0]);
    value.extend(address.octets());
    value.resize(128, 0);
    value.extend([1, prefix]);
    value.extend((secret.len() as u16).to_ne_bytes());
    value.extend([0; 4]);
    value.extend(secret.as_bytes());
    value.resize(216, 0);
    set_option_bytes(fd, IPPROTO_TCP, TCP_MD5SIG_EXT, &value)
}

/// Whether a client is taken that comes from an address with a key.
fn taken(from: Ipv4Addr, secret: Option<&str>, to: SocketAddr) -> Result<bool> {
    let client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    if let Some(secret) = secret {
        key(client, Ipv4Addr::LOCALHOST, 32, secret)?;
    }
    let address = |ip: Ipv4Addr, port: u16| {
        let family = (AF_INET as u16).to_ne_bytes();
        [&family[..], &port.to_be_bytes(), &ip.octets(), &[0; 8]].concat()
    };
    let (own, peer) = (address(from, 0), address(Ipv4Addr::LOCALHOST, to.port()));
    // SAFETY: the addresses have the lengths that are given.
    unsafe {
        sys("bind", libc::bind(client, own.as_ptr().cast(), 16))?;
        libc::connect(client, peer.as_ptr().cast(), 16);
    }
    let made = || ready(client, POLLOUT).is_ok_and(|events| events & POLLOUT != 0);
    let patience = if secret.is_some() { SOON } else { UNANSWERED };
    let done = until("a connection", patience, made).is_ok() && name(client, true).is_ok();
    close(client);
    Ok(done)
}

/// Two keys, one for a whole net: clients with theirs are taken, those without are not.
pub(crate) fn listening(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let fd = listener.as_raw_fd();
    if key(fd, Ipv4Addr::new(127, 7, 0, 0), 16, "of a net").is_err() {
        return not_here("no TCP_MD5SIG");
    }
    key(fd, Ipv4Addr::new(127, 7, 0, 1), 32, "its own")?;
    let to = listener.local_addr()?;
    Ok(Watch::new(move || {
        let (one, other) = (Ipv4Addr::new(127, 7, 0, 1), Ipv4Addr::new(127, 7, 9, 9));
        same("its own key", &true, &taken(one, Some("its own"), to)?)?;
        same("a net's key", &true, &taken(other, Some("of a net"), to)?)?;
        same("no key", &false, &taken(other, None, to)?)?;
        while listener.accept().is_ok() {}
        Ok(())
    })
    .spoiled_by(move || key(fd, Ipv4Addr::new(127, 7, 0, 0), 16, "")))
}
