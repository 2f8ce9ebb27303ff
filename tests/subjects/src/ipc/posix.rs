//! POSIX message queues.

use std::ffi::CString;

use anyhow::{Result, bail};
use libc::{O_CREAT, O_NONBLOCK, O_RDWR};

use crate::kit::files::seen;
use crate::kit::{Setting, Watch, args, raw, same, sys};

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
            O_RDWR | O_CREAT | O_NONBLOCK,
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

/// A signal at the first message of an empty queue.
pub(crate) fn notify(_: &Setting) -> Result<Watch> {
    let queue = create(&name("notify")?)?;
    let mask = 1_u64 << 45;
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let register = move || {
        // SAFETY: zeros are a valid structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = 46;
        event.sigev_value.sival_ptr = 0x77 as *mut _;
        sys(
            "mq_notify",
            raw(
                libc::SYS_mq_notify,
                args([queue as u64, &raw const event as u64]),
            ),
        )
        .map(drop)
    };
    register()?;
    Ok(Watch::new(move || {
        send(queue, b"x", 0)?;
        receive(queue)?;
        let (none, mut info) = ([0_u64; 2], [0_u64; 16]);
        let arguments = [
            &raw const mask as u64,
            info.as_mut_ptr() as u64,
            none.as_ptr() as u64,
            8,
        ];
        same(
            "the signal",
            &46,
            &raw(libc::SYS_rt_sigtimedwait, args(arguments)),
        )?;
        same("its value", &0x77, &info[3])?;
        register()
    })
    .spoiled_by(move || sys("mq_notify", raw(libc::SYS_mq_notify, args([queue as u64]))).map(drop)))
}
