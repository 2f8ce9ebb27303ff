//! What travels beside the bytes of unix sockets.

use std::fs;

use anyhow::{Result, bail};
use libc::{O_RDWR, SO_PASSCRED, SO_PEERCRED, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET};

use crate::kit::files::{close, open, place, read, seen, share, write};
use crate::kit::net::{option, pair, receive_descriptor, send_descriptor, set_option};
use crate::kit::{Kin, Setting, Watch, fd, fork, not_here, same, sys};

/// A file and a pipe that are in the message only, and one that the subject has as well.
pub(crate) fn rights(setting: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    let path = setting.fresh("file");
    fs::write(&path, "0123456789")?;
    let held = open(&path, O_RDWR)?;
    place(held, Some(2))?;
    let fill = move || {
        let file = open(&path, O_RDWR)?;
        place(file, Some(6))?;
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        sys("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) })?;
        write(ends[1], b"in flight")?;
        for sent in [file, ends[0], held] {
            send_descriptor(one, sent)?;
        }
        [file, ends[0], ends[1]].into_iter().for_each(close);
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::new(move || {
        let [file, pipe, ours] = [
            receive_descriptor(two)?,
            receive_descriptor(two)?,
            receive_descriptor(two)?,
        ];
        same("the file", b"6789".as_slice(), &read(file, 100)?)?;
        same("the pipe", b"in flight".as_slice(), &read(pipe, 100)?)?;
        let me = std::process::id() as i32;
        same("one description", &true, &share(ours, me, held)?)?;
        [file, pipe, ours].into_iter().for_each(close);
        fill()
    })
    .spoiled_by(move || receive_descriptor(two).map(drop)))
}

/// Descriptors that have more to them than a file: an epoll and a file with a lock, in the message only.
pub(crate) fn involved(setting: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    sys("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    // SAFETY: takes a number.
    let epoll = fd("epoll_create", unsafe { libc::epoll_create1(0) })?;
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET) as u32,
        u64: 77,
    };
    // SAFETY: the event is alive.
    sys("epoll_ctl", unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, ends[0], &raw mut event)
    })?;
    let path = setting.fresh("locked");
    let locked = open(&path, O_RDWR | libc::O_CREAT)?;
    let lock = move |file: i32| {
        // SAFETY: takes numbers.
        unsafe { libc::flock(file, libc::LOCK_EX | libc::LOCK_NB) == 0 }
    };
    same("the lock", &true, &lock(locked))?;
    for sent in [epoll, locked] {
        send_descriptor(one, sent)?;
        close(sent);
    }
    Ok(Watch::new(move || {
        let other = open(&path, O_RDWR)?;
        same("another one's lock", &false, &lock(other))?;
        close(other);
        write(ends[1], b"x")?;
        let [epoll, locked] = [receive_descriptor(two)?, receive_descriptor(two)?];
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for one event.
        let count = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) };
        same("what the epoll tells", &(1, 77), &(count, { event.u64 }))?;
        read(ends[0], 1)?;
        same("the own lock", &true, &lock(locked))?;
        for sent in [epoll, locked] {
            send_descriptor(one, sent)?;
            close(sent);
        }
        Ok(())
    })
    .spoiled_by(move || receive_descriptor(two).map(drop)))
}

/// The socket's own other end is in its queue and nowhere else.
pub(crate) fn cycle(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    let send = move |end: i32| {
        send_descriptor(end, end)?;
        close(end);
        anyhow::Ok(())
    };
    send(one)?;
    Ok(Watch::new(move || {
        let one = receive_descriptor(two)?;
        write(one, b"round")?;
        same("what came round", b"round".as_slice(), &read(two, 100)?)?;
        send(one)
    })
    .spoiled_by(move || receive_descriptor(two).map(drop)))
}

/// Both ends of a pair are in its queue, and a terminal: when the subject ends the kernel does not look for them.
pub(crate) fn unreached(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    let master = open("/dev/ptmx", O_RDWR | libc::O_NOCTTY)?;
    let number = |master: i32| {
        let mut number = 0_i32;
        // SAFETY: the kernel writes an int.
        let done = unsafe { libc::ioctl(master, libc::TIOCGPTN, &raw mut number) };
        sys("TIOCGPTN", done).map(|_| number)
    };
    let own = number(master)?;
    let send = move |master: i32| {
        for fd in [master, one, two] {
            send_descriptor(one, fd)?;
        }
        close(master);
        anyhow::Ok(())
    };
    send(master)?;
    Ok(Watch::new(move || {
        let master = receive_descriptor(two)?;
        same("the terminal's number", &own, &number(master)?)?;
        for _ in [one, two] {
            close(receive_descriptor(two)?);
        }
        send(master)
    })
    .spoiled_by(move || receive_descriptor(two).map(drop)))
}

/// Room for a control message: its length, its level, its kind at byte 12, its contents from byte 16 on.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// What comes with the message that comes next, eight bytes of it.
fn receive_control(socket: i32) -> Result<Control> {
    let (mut byte, mut control) = ([0_u8; 8], Control([0; 64]));
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 8,
    };
    // SAFETY: zeros are a valid message; what it points to is alive.
    let done = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = 64;
        libc::recvmsg(socket, &raw mut message, 0)
    };
    sys("recvmsg", done)?;
    Ok(control)
}

/// The credentials of the message that comes next.
fn credentials_of(socket: i32) -> Result<[u8; 12]> {
    let control = receive_control(socket)?;
    if control.0[12..16] != libc::SCM_CREDENTIALS.to_ne_bytes() {
        bail!("no credentials came");
    }
    let mut found = [0; 12];
    found.copy_from_slice(&control.0[16..28]);
    Ok(found)
}

/// Messages of a child, of which one sender has ended since.
pub(crate) fn credentials(setting: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    set_option(two, SOL_SOCKET, SO_PASSCRED, 1)?;
    let mut child = Kin::start(setting, "child", move |_| {
        write(one, b"child")?;
        Ok(Watch::new(move || write(one, b"child")))
    })?;
    write(one, b"self")?;
    let ids = |pid: i32| {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&pid.to_ne_bytes());
        bytes
    };
    let (me, pid) = (std::process::id() as i32, child.pid);
    Ok(Watch::new(move || {
        same("the child's", &ids(pid), &credentials_of(two)?)?;
        same("the subject's", &ids(me), &credentials_of(two)?)?;
        child.check()?;
        write(one, b"self")
    })
    .spoiled_by(move || read(two, 1).map(drop)))
}

/// Somebody else named as the sender, who is not part of the tree on one kernel.
pub(crate) fn named_sender(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    set_option(two, SOL_SOCKET, SO_PASSCRED, 1)?;
    let ids: [u8; 12] = {
        let mut bytes = [0; 12];
        for (place, id) in [1_i32, 12, 13].into_iter().enumerate() {
            bytes[4 * place..][..4].copy_from_slice(&id.to_ne_bytes());
        }
        bytes
    };
    let fill = move || send_as(one, ids);
    fill()?;
    Ok(Watch::new(move || {
        same("the sender", &ids, &credentials_of(two)?)?;
        fill()
    })
    .spoiled_by(move || read(two, 1).map(drop)))
}

/// Sends a byte with credentials.
fn send_as(over: i32, ids: [u8; 12]) -> Result<()> {
    #[repr(C, align(8))]
    struct Room([u8; 32]);
    let mut room = Room([0; 32]);
    // cmsg_len, SOL_SOCKET, SCM_CREDENTIALS, struct ucred.
    room.0[..8].copy_from_slice(&28_u64.to_ne_bytes());
    room.0[8..12].copy_from_slice(&SOL_SOCKET.to_ne_bytes());
    room.0[12..16].copy_from_slice(&libc::SCM_CREDENTIALS.to_ne_bytes());
    room.0[16..28].copy_from_slice(&ids);
    let mut byte = *b"x";
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: zeros are a valid message; what it points to is alive.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = 32;
        libc::sendmsg(over, &raw const message, 0)
    };
    sys("sendmsg", sent).map(drop)
}

/// Those of whoever made the pair: here a child that has ended and was another user.
pub(crate) fn peercred(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM)?;
    let [carrier, other] = pair(SOCK_DGRAM)?;
    let child = fork(move || {
        // SAFETY: takes numbers.
        unsafe { libc::setresuid(4321, 4321, 4321) };
        if let Ok([mine, theirs]) = pair(SOCK_STREAM) {
            let _ = send_descriptor(other, mine);
            let _ = send_descriptor(other, theirs);
        }
    })?;
    // SAFETY: reaps the child.
    sys("wait", unsafe {
        libc::waitpid(child, std::ptr::null_mut(), 0)
    })?;
    let theirs = [receive_descriptor(carrier)?, receive_descriptor(carrier)?];
    close(carrier);
    close(other);
    let observe = move || {
        let mut all = Vec::new();
        for end in [one, two, theirs[0], theirs[1]] {
            // The PID of a process that has ended is nobody's: it may read as anything.
            let found = option(end, SOL_SOCKET, SO_PEERCRED)?;
            let from = if end == one || end == two { 0 } else { 4 };
            all.push((found[from..].to_vec(), seen(end)?.0));
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        // SAFETY: both are descriptors of ours.
        sys("dup2", unsafe { libc::dup2(one, theirs[0]) }).map(drop)
    }))
}

/// include/uapi/asm-generic/socket.h
const SO_PASSPIDFD: i32 = 76;
const SCM_PIDFD: i32 = 4;

/// A child has written, and the subject.
pub(crate) fn pidfd(setting: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    if set_option(two, SOL_SOCKET, SO_PASSPIDFD, 1).is_err() {
        return not_here("no SO_PASSPIDFD");
    }
    let mut child = Kin::start(setting, "child", move |_| {
        write(one, b"child!!!")?;
        Ok(Watch::new(move || write(one, b"child!!!")))
    })?;
    write(one, b"subject!")?;
    let (me, pid) = (std::process::id().cast_signed(), child.pid);
    Ok(Watch::new(move || {
        for (what, pid) in [("the child", pid), ("the subject", me)] {
            let (kind, number) = control_of(two)?;
            same("what came", &SCM_PIDFD, &kind)?;
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
            close(number);
            let line = text.lines().find_map(|line| line.strip_prefix("Pid:\t"));
            same(what, &Some(pid.to_string().as_str()), &line)?;
        }
        child.check()?;
        write(one, b"subject!")
    })
    .spoiled_by(move || read(two, 8).map(drop)))
}

/// Kind and first word of the control message of what comes next.
fn control_of(socket: i32) -> Result<(i32, i32)> {
    let control = receive_control(socket)?;
    let word = |at: usize| control.0[at..at + 4].try_into().map(i32::from_ne_bytes);
    Ok((word(12)?, word(16)?))
}

/// Empty messages, one of which was peeked at.
pub(crate) fn empty(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    let fill = move || {
        for text in [&b""[..], b"one", b"", b"two"] {
            // SAFETY: the bytes are alive.
            let done = unsafe { libc::send(one, text.as_ptr().cast(), text.len(), 0) };
            sys("send", done)?;
        }
        // The kernel notes it of empty ones.
        // SAFETY: there is room for one byte.
        let peeked = unsafe { libc::recv(two, [0_u8].as_mut_ptr().cast(), 1, libc::MSG_PEEK) };
        sys("recv", peeked)?;
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::new(move || {
        for text in [&b""[..], b"one", b"", b"two"] {
            same("a message", text, &read(two, 9)?)?;
        }
        same("another", &true, &read(two, 9).is_err())?;
        fill()
    })
    .spoiled_by(move || read(two, 9).map(drop)))
}
