//! inotify(7) and fanotify(7)

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Result;
use libc::{IN_CREATE, IN_DELETE, IN_MODIFY, IN_NONBLOCK, IN_ONESHOT};

use crate::kit::files::{read, seen};
use crate::kit::{Setting, Watch, fd, not_here, same, sys};

fn init() -> Result<i32> {
    // SAFETY: takes numbers.
    fd("inotify_init", unsafe {
        libc::inotify_init1(IN_NONBLOCK | libc::IN_CLOEXEC)
    })
}

fn watch(notify: i32, path: &Path, mask: u32) -> Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    fd("inotify_add_watch", unsafe {
        libc::inotify_add_watch(notify, path.as_ptr(), mask)
    })
}

/// Watch and mask of every event that waits.
fn events(notify: i32) -> Vec<(i32, u32)> {
    let bytes = read(notify, 65536).unwrap_or_default();
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        found.push((word(at) as i32, word(at + 4)));
        at += 16 + word(at + 12) as usize;
    }
    found
}

/// The file has no name any more, and the subject has it open.
pub(crate) fn removed(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("removed");
    let file = crate::kit::files::open(&path, libc::O_RDWR | libc::O_CREAT)?;
    let notify = init()?;
    watch(notify, &path, IN_MODIFY)?;
    fs::remove_file(&path)?;
    Ok(Watch::new(move || {
        same("no events", &Vec::new(), &events(notify))?;
        crate::kit::files::write(file, b"more")?;
        same("an event", &vec![(1, IN_MODIFY)], &events(notify))
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("inotify_rm_watch", unsafe {
            libc::inotify_rm_watch(notify, 1)
        })
        .map(drop)
    }))
}

/// Watches 1, 3 and 4; number 2 was removed. The next one is 5.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    for name in ["one", "two", "three"] {
        fs::write(dir.join(name), "")?;
    }
    let notify = init()?;
    watch(notify, &dir, IN_CREATE | IN_DELETE)?;
    let second = watch(notify, &dir.join("one"), IN_MODIFY)?;
    watch(notify, &dir.join("two"), IN_MODIFY)?;
    watch(notify, &dir.join("three"), IN_MODIFY | IN_ONESHOT)?;
    // SAFETY: takes numbers.
    sys("inotify_rm_watch", unsafe {
        libc::inotify_rm_watch(notify, second)
    })?;
    events(notify);
    let observe = move || {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{notify}"))?;
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("inotify"))
            .map(str::to_owned)
            .collect();
        lines.sort_unstable();
        let (description, descriptor, _) = seen(notify)?;
        Ok((lines, description, descriptor))
    };
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            same("no events", &Vec::new(), &events(notify))?;
            fs::write(dir.join("new"), "")?;
            fs::remove_file(dir.join("new"))?;
            fs::write(dir.join("one"), "x")?;
            fs::write(dir.join("two"), "x")?;
            let mut came = events(notify);
            came.dedup();
            same(
                "events",
                &vec![(1, IN_CREATE), (1, IN_DELETE), (3, IN_MODIFY)],
                &came,
            )
        })
        .spoiled_by(move || {
            // SAFETY: takes numbers.
            sys("inotify_rm_watch", unsafe {
                libc::inotify_rm_watch(notify, 3)
            })
            .map(drop)
        }),
    ))
}

/// Three events wait.
pub(crate) fn queue(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    let notify = init()?;
    watch(notify, &dir, IN_CREATE | IN_DELETE)?;
    let fill = move || {
        fs::write(dir.join("a"), "")?;
        fs::remove_file(dir.join("a"))?;
        Ok(fs::write(dir.join("b"), "").and_then(|()| fs::remove_file(dir.join("b")))?)
    };
    fill()?;
    let expected = vec![
        (1, IN_CREATE),
        (1, IN_DELETE),
        (1, IN_CREATE),
        (1, IN_DELETE),
    ];
    Ok(Watch::new(move || {
        same("events", &expected, &events(notify))?;
        fill()
    })
    .spoiled_by(move || {
        events(notify);
        Ok(())
    }))
}

/// A mark on a directory.
pub(crate) fn fanotify(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    // SAFETY: takes numbers.
    let notify = unsafe {
        libc::fanotify_init(
            libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK,
            libc::O_RDONLY as u32,
        )
    };
    if notify < 0 {
        return not_here("no fanotify");
    }
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mask = libc::FAN_CLOSE_WRITE | libc::FAN_EVENT_ON_CHILD;
    // SAFETY: the path is a C string.
    sys("fanotify_mark", unsafe {
        libc::fanotify_mark(
            notify,
            libc::FAN_MARK_ADD,
            mask,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    })?;
    Ok(Watch::new(move || {
        same("no events", &true, &read(notify, 4096).is_err())?;
        fs::write(dir.join("file"), "x")?;
        let event = read(notify, 24)?;
        same("an event's mask", &8, &event[8])?;
        crate::kit::files::close(i32::from_ne_bytes([
            event[16], event[17], event[18], event[19],
        ]));
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("flush", unsafe {
            libc::fanotify_mark(
                notify,
                libc::FAN_MARK_FLUSH,
                0,
                libc::AT_FDCWD,
                std::ptr::null(),
            )
        })
        .map(drop)
    }))
}
