//! POSIX message queues.

use std::ffi::CString;
use std::fs;
use std::os::fd::IntoRawFd;
use std::path::Path;

use anyhow::{Result, bail};
use libc::{O_CREAT, O_NONBLOCK, O_RDWR};

use crate::kit::files::seen;
use crate::kit::{Setting, Watch, args, not_here, raw, same, sys, take_signal};

/// A new queue for four messages of up to 100 bytes.
fn create(name: &CString) -> Result<i32> {
    // SAFETY: zeros are a valid structure; the name is a C string.
    let queue = unsafe {
        libc::mq_unlink(name.as_ptr());
        let mut sizes: libc::mq_attr = std::mem::zeroed();
        sizes.mq_maxmsg = 4;
        sizes.mq_msgsize = 100;
        libc::mq_open(
            name.as_ptr(),
            // Which stays among the flags of a queue.
            O_RDWR | O_CREAT | O_NONBLOCK | libc::O_CLOEXEC,
            0o620,
            &raw const sizes,
        )
    };
    if queue < 0 {
        bail!("mq_open: {}", std::io::Error::last_os_error());
    }
    Ok(queue)
}

fn send(queue: i32, text: &[u8], priority: u64) -> Result<()> {
    let arguments = [
        queue as u64,
        text.as_ptr() as u64,
        text.len() as u64,
        priority,
    ];
    let done = raw(libc::SYS_mq_timedsend, args(arguments));
    if done < 0 {
        bail!("mq_send: error {}", -done);
    }
    Ok(())
}

fn receive(queue: i32) -> Result<(Vec<u8>, u32)> {
    let (mut text, mut priority) = (vec![0_u8; 100], 0_u32);
    let at = text.as_mut_ptr() as u64;
    let got = raw(
        libc::SYS_mq_timedreceive,
        args([queue as u64, at, 100, &raw mut priority as u64]),
    );
    if got < 0 {
        bail!("mq_receive: error {}", -got);
    }
    text.truncate(got as usize);
    Ok((text, priority))
}

/// Flags, sizes and count.
fn attributes(queue: i32) -> Result<[i64; 4]> {
    // SAFETY: zeros are a valid structure, and the kernel fills it.
    unsafe {
        let mut now: libc::mq_attr = std::mem::zeroed();
        sys("mq_getattr", libc::mq_getattr(queue, &raw mut now))?;
        Ok([now.mq_flags, now.mq_maxmsg, now.mq_msgsize, now.mq_curmsgs])
    }
}

/// Four messages of three priorities come out by priority, then in order.
fn filled(queue: i32) -> Result<Watch> {
    let fill = move || {
        send(queue, b"low", 1)?;
        send(queue, b"high one", 9)?;
        send(queue, b"", 5)?;
        send(queue, b"high two", 9)
    };
    fill()?;
    Ok(
        Watch::keep(move || Ok((attributes(queue)?, seen(queue)?)))?.and(
            Watch::new(move || {
                same("room for a fifth", &true, &send(queue, b"x", 0).is_err())?;
                for (text, priority) in [
                    (b"high one".as_slice(), 9),
                    (b"high two", 9),
                    (b"", 5),
                    (b"low", 1),
                ] {
                    same("a message", &(text.to_vec(), priority), &receive(queue)?)?;
                }
                fill()
            })
            .spoiled_by(move || receive(queue).map(drop)),
        ),
    )
}

fn name(kind: &str) -> Result<CString> {
    Ok(CString::new(format!(
        "/kupgrade-{kind}-{}",
        std::process::id()
    ))?)
}

/// With a name: whoever opens it has the same queue.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let name = name("named")?;
    let queue = create(&name)?;
    Ok(filled(queue)?.and(Watch::new(move || {
        // SAFETY: the name is a C string.
        let again = unsafe { libc::mq_open(name.as_ptr(), O_RDWR) };
        sys("mq_open", again)?;
        let count = attributes(again)?[3];
        crate::kit::files::close(again);
        same("messages by its name", &4, &count)
    })))
}

/// The name is gone.
pub(crate) fn unlinked(_: &Setting) -> Result<Watch> {
    let name = name("gone")?;
    let queue = create(&name)?;
    // SAFETY: the name is a C string.
    sys("mq_unlink", unsafe { libc::mq_unlink(name.as_ptr()) })?;
    filled(queue)
}

/// Opened by the path that the queue has in the file system of queues.
pub(crate) fn by_path(_: &Setting) -> Result<Watch> {
    let name = name("path")?;
    let queue = create(&name)?;
    let path = Path::new("/dev/mqueue").join(name.to_str()?.trim_start_matches('/'));
    let Ok(opened) = fs::File::open(&path) else {
        return not_here("no /dev/mqueue");
    };
    let opened = opened.into_raw_fd();
    let link = move || {
        anyhow::Ok((
            fs::read_link(format!("/proc/self/fd/{opened}"))?,
            seen(opened)?,
        ))
    };
    same("its path", &path, &link()?.0)?;
    Ok(filled(queue)?.and(Watch::keep(link)?))
}

/// The name is gone, and another queue has it.
pub(crate) fn taken(_: &Setting) -> Result<Watch> {
    let name = name("taken")?;
    let old = create(&name)?;
    let new = create(&name)?;
    let fill = move || {
        send(old, b"old low", 1)?;
        send(old, b"old high", 9)?;
        send(new, b"new", 3)
    };
    fill()?;
    Ok(Watch::new(move || {
        for (text, priority) in [(b"old high".as_slice(), 9), (b"old low", 1)] {
            same("of the old one", &(text.to_vec(), priority), &receive(old)?)?;
        }
        // SAFETY: the name is a C string.
        let again = unsafe { libc::mq_open(name.as_ptr(), O_RDWR) };
        sys("mq_open", again)?;
        let found = receive(again);
        crate::kit::files::close(again);
        same("by the name", &(b"new".to_vec(), 3), &found?)?;
        fill()
    })
    .spoiled_by(move || receive(old).map(drop)))
}

/// Asks to be told of a message by signal 46, which stays blocked, with a value.
fn register(queue: i32) -> Result<()> {
    // SAFETY: zeros are a valid structure.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = 46;
    event.sigev_value.sival_ptr = 0x77 as *mut _;
    ask(queue, &raw const event as u64)
}

fn ask(queue: i32, event: u64) -> Result<()> {
    let done = raw(libc::SYS_mq_notify, args([queue as u64, event]));
    sys("mq_notify", done).map(drop)
}

static MASK: u64 = 1 << 45;

fn block_signal() {
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const MASK as u64, 0, 8]),
    );
}

/// The signal that waits: its number, or an error, and its value.
fn signal() -> (i64, u64) {
    let (got, info) = take_signal(MASK);
    (got, info[3])
}

const NO_SIGNAL: i64 = -(libc::EAGAIN as i64);

/// A signal at the first message of an empty queue.
pub(crate) fn notify(_: &Setting) -> Result<Watch> {
    let queue = create(&name("notify")?)?;
    block_signal();
    register(queue)?;
    Ok(Watch::new(move || {
        same("a signal too early", &NO_SIGNAL, &signal().0)?;
        send(queue, b"x", 0)?;
        receive(queue)?;
        same("the signal and its value", &(46, 0x77), &signal())?;
        register(queue)
    })
    .spoiled_by(move || ask(queue, 0)))
}

/// The same while there are messages: it comes when the queue has been empty.
pub(crate) fn notify_filled(_: &Setting) -> Result<Watch> {
    let queue = create(&name("notify-filled")?)?;
    block_signal();
    let fill = move || {
        send(queue, b"one", 3)?;
        send(queue, b"two", 4)?;
        register(queue)
    };
    fill()?;
    Ok(Watch::new(move || {
        same("a signal too early", &NO_SIGNAL, &signal().0)?;
        same("the first", &(b"two".to_vec(), 4), &receive(queue)?)?;
        same("the second", &(b"one".to_vec(), 3), &receive(queue)?)?;
        send(queue, b"x", 0)?;
        receive(queue)?;
        same("the signal and its value", &(46, 0x77), &signal())?;
        fill()
    })
    .spoiled_by(move || ask(queue, 0)))
}

/// A message to a netlink socket, as the C library asks for to start a thread.
pub(crate) fn notify_thread(_: &Setting) -> Result<Watch> {
    let queue = create(&name("notify-thread")?)?;
    // Two sockets: it must be the right one.
    let socket = || {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes numbers.
        crate::kit::fd("socket", unsafe {
            libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE)
        })
    };
    let [other, told] = [socket()?, socket()?];
    let mut cookie: [u8; 32] = std::array::from_fn(|at| at as u8 * 3);
    let register = move |cookie: &[u8; 32]| {
        // SAFETY: zeros are a valid structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD;
        event.sigev_signo = told;
        event.sigev_value.sival_ptr = cookie.as_ptr() as *mut _;
        ask(queue, &raw const event as u64)
    };
    register(&cookie)?;
    let get = |socket: i32| {
        let mut got = [0_u8; 64];
        let arguments = [socket as u64, got.as_mut_ptr() as u64, 64];
        let len = raw(libc::SYS_recvfrom, args(arguments));
        (len, got[..len.max(0) as usize].to_vec())
    };
    Ok(Watch::new(move || {
        same("a message too early", &NO_SIGNAL, &get(told).0)?;
        send(queue, b"x", 0)?;
        receive(queue)?;
        // NOTIFY_WOKENUP
        let mut expected = cookie;
        expected[31] = 1;
        same("what is told", &(32, expected.to_vec()), &get(told))?;
        same("what others are told", &NO_SIGNAL, &get(other).0)?;
        cookie[0] = cookie[0].wrapping_add(1);
        register(&cookie)
    })
    .spoiled_by(move || {
        ask(queue, 0)?;
        // That it is removed is told, too.
        get(told);
        Ok(())
    }))
}

/// One that nobody has open: it belongs to the host.
pub(crate) fn unheld(_: &Setting) -> Result<Watch> {
    let name = name("unheld")?;
    let queue = create(&name)?;
    for (text, priority) in [(&b"first"[..], 3), (b"second", 1)] {
        send(queue, text, priority)?;
    }
    // SAFETY: opened above.
    sys("close", unsafe { libc::close(queue) })?;
    let gone = name.clone();
    // SAFETY: a C string.
    let remove = move || sys("mq_unlink", unsafe { libc::mq_unlink(gone.as_ptr()) }).map(drop);
    let look = move || {
        // SAFETY: a C string.
        let queue = unsafe { libc::mq_open(name.as_ptr(), O_RDWR | O_NONBLOCK) };
        sys("mq_open", queue)?;
        let found = attributes(queue)?;
        let all = (0..found[3]).map(|_| receive(queue));
        let all = all.collect::<Result<Vec<_>>>()?;
        for (text, priority) in &all {
            send(queue, text, u64::from(*priority))?;
        }
        // SAFETY: zeros are a valid structure, and the kernel fills it.
        let mut file: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: room for the structure.
        sys("fstat", unsafe { libc::fstat(queue, &raw mut file) })?;
        // SAFETY: opened above.
        sys("close", unsafe { libc::close(queue) })?;
        Ok((found, all, file.st_mode, file.st_uid))
    };
    Ok(Watch::keep(look)?.spoiled_by(remove))
}
