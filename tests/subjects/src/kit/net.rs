//! The network of a subject.

use anyhow::Result;

use super::{fd, sys};

/// Switches the loopback interface on, should it be off: on one kernel every subject has a
/// network of its own.
pub(crate) fn loopback() -> Result<()> {
    // SAFETY: zeros are a valid structure; the name fits; the kernel fills the flags.
    unsafe {
        let socket = fd("socket", libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        sys(
            "SIOCGIFFLAGS",
            libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request),
        )?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        sys(
            "SIOCSIFFLAGS",
            libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request),
        )?;
        libc::close(socket);
    }
    Ok(())
}

/// Sets the largest packet of an interface, which tells of it.
pub(crate) fn set_mtu(interface: &str, size: i32) -> Result<()> {
    // SAFETY: zeros are a valid structure; the name fits.
    unsafe {
        let socket = fd("socket", libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_mtu = size;
        let done = libc::ioctl(socket, libc::SIOCSIFMTU, &raw mut request);
        libc::close(socket);
        sys("SIOCSIFMTU", done).map(drop)
    }
}

/// Room for a control message with one descriptor.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// A message of one byte with room for a descriptor.
fn with_message<T>(control: &mut Control, act: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut byte = *b"x";
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: zeros are a valid message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut *control).cast();
    message.msg_controllen = 24;
    act(&mut message)
}

/// Sends a descriptor over a unix socket, with a byte.
pub(crate) fn send_descriptor(over: i32, sent: i32) -> Result<()> {
    send_with(over, sent, 1)
}

/// Sends a descriptor over a unix socket that keeps boundaries of messages, in an empty one.
pub(crate) fn send_descriptor_alone(over: i32, sent: i32) -> Result<()> {
    send_with(over, sent, 0)
}

fn send_with(over: i32, sent: i32, parts: usize) -> Result<()> {
    let mut control = Control([0; 24]);
    // cmsg_len (20), SOL_SOCKET, SCM_RIGHTS, the descriptor.
    control.0[0] = 20;
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control.0[16..20].copy_from_slice(&sent.to_ne_bytes());
    // SAFETY: the message and what it points to are alive.
    let done = with_message(&mut control, |message| unsafe {
        message.msg_iovlen = parts;
        libc::sendmsg(over, message, 0)
    });
    sys("sendmsg", done).map(drop)
}

/// Receives one.
pub(crate) fn receive_descriptor(over: i32) -> Result<i32> {
    let mut control = Control([0; 24]);
    // SAFETY: as above.
    let done = with_message(&mut control, |message| unsafe {
        libc::recvmsg(over, message, 0)
    });
    sys("recvmsg", done)?;
    let [.., a, b, c, d, _, _, _, _] = control.0;
    match control.0[0] {
        20 => Ok(i32::from_ne_bytes([a, b, c, d])),
        _ => anyhow::bail!("no descriptor came"),
    }
}

/// Receives up to 100 bytes, and who sent them (SO_PASSCRED).
pub(crate) fn receive_with_sender(over: i32) -> Result<(Vec<u8>, i32)> {
    #[repr(C, align(8))]
    struct Room([u8; 64]);
    let (mut room, mut bytes) = (Room([0; 64]), vec![0_u8; 100]);
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zeros are a valid message; what it points to is alive.
    let got = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = 64;
        libc::recvmsg(over, &raw mut message, libc::MSG_DONTWAIT)
    };
    bytes.truncate(sys("recvmsg", got)? as usize);
    // cmsg_len, SOL_SOCKET, SCM_CREDENTIALS, struct ucred.
    let kind = i32::from_ne_bytes(room.0[12..16].try_into()?);
    if kind != libc::SCM_CREDENTIALS {
        anyhow::bail!("no sender is named");
    }
    Ok((bytes, i32::from_ne_bytes(room.0[16..20].try_into()?)))
}

/// An option of a socket, as many bytes as the kernel returns.
pub(crate) fn option(socket: i32, level: i32, name: i32) -> Result<Vec<u8>> {
    let mut bytes = vec![0_u8; 64];
    let mut len = 64;
    // SAFETY: the buffer has the length that is given.
    let done =
        unsafe { libc::getsockopt(socket, level, name, bytes.as_mut_ptr().cast(), &raw mut len) };
    sys("getsockopt", done)?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// Sets an option that is a number.
pub(crate) fn set_option(socket: i32, level: i32, name: i32, value: i32) -> Result<()> {
    set_option_bytes(socket, level, name, &value.to_ne_bytes())
}

/// Sets an option.
pub(crate) fn set_option_bytes(socket: i32, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: the buffer has the length that is given.
    let done = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    };
    sys("setsockopt", done).map(drop)
}

/// A pair of unix sockets.
pub(crate) fn pair(kind: i32) -> Result<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    sys("socketpair", unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    })?;
    Ok(ends)
}

/// A socket.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> Result<i32> {
    // SAFETY: takes numbers.
    fd("socket", unsafe { libc::socket(family, kind, protocol) })
}

/// The socket's own address, or its peer's.
pub(crate) fn name(socket: i32, peer: bool) -> Result<Vec<u8>> {
    let mut bytes = vec![0_u8; 128];
    let mut len = 128;
    let at = bytes.as_mut_ptr().cast();
    // SAFETY: the buffer has the length that is given.
    let done = unsafe {
        match peer {
            true => libc::getpeername(socket, at, &raw mut len),
            false => libc::getsockname(socket, at, &raw mut len),
        }
    };
    sys("getsockname", done)?;
    bytes.truncate(len as usize);
    Ok(bytes)
}
