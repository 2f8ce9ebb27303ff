//! Signals about directories (fcntl(2), `F_NOTIFY`)

use std::fs;

use anyhow::Result;

use crate::kit::files::{F_SETSIG, fcntl, open};
use crate::kit::{Kin, Setting, Watch, same};

/// Signals about a directory (`F_NOTIFY`): again and again by one description, once by another, and by one that a
/// child shares, who asks too.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    const DN_CREATE: i32 = 0x4;
    const DN_DELETE: i32 = 0x8;
    const DN_MULTISHOT: i32 = i32::MIN;
    let signal = libc::SIGRTMIN() + 7;
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    let [often, once, shared] = [(); 3].map(|()| open(&dir, libc::O_RDONLY));
    let (often, once, shared) = (often?, once?, shared?);
    // SAFETY: a set of signals is filled and read.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    let ask = move |fd: i32, events: i32| {
        fcntl(fd, F_SETSIG, signal)?;
        fcntl(fd, libc::F_NOTIFY, events)
    };
    // The descriptors that are told of within a moment, in order of their numbers.
    let told = move || {
        let mut found = Vec::new();
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            // SAFETY: zeros are a valid structure, which the kernel fills; the rest is read.
            let (got, number) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let got = libc::sigtimedwait(&raw const set, &raw mut info, &raw const now);
                // `si_fd` is behind the `long` of `si_band`.
                (got, (&raw const info).cast::<i32>().add(6).read())
            };
            match got {
                -1 => break,
                _ => found.push(number),
            }
        }
        found.sort_unstable();
        found
    };
    let made = dir.join("made");
    ask(often, DN_CREATE | DN_MULTISHOT)?;
    ask(once, DN_CREATE | DN_DELETE)?;
    ask(shared, DN_CREATE | DN_MULTISHOT)?;
    let child = Kin::start(setting, "child", |_| {
        ask(shared, DN_DELETE | DN_MULTISHOT)?;
        Ok(Watch::new(|| Ok(())))
    })?;
    Ok(Watch::new(move || {
        let _ = &child;
        same("nothing yet", &Vec::new(), &told())?;
        fs::write(&made, "")?;
        same(
            "all are told of what is made",
            &vec![often, once, shared],
            &told(),
        )?;
        fs::remove_file(&made)?;
        // The child's question, whose answers come to who asked first.
        same("of what is removed", &vec![shared], &told())?;
        ask(once, DN_CREATE | DN_DELETE).map(drop)
    })
    .spoiled_by(move || fcntl(often, libc::F_NOTIFY, 0).map(drop)))
}
