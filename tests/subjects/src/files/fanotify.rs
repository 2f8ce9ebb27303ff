//! fanotify(7)

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Result;

use crate::kit::files::{close, read};
use crate::kit::{Setting, Watch, fd, not_here, same, sys};

fn init() -> Result<i32> {
    // SAFETY: takes numbers.
    fd("fanotify_init", unsafe {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK;
        libc::fanotify_init(flags, libc::O_RDONLY as u32)
    })
}

fn mark(group: i32, flags: u32, mask: u64, path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = flags | libc::FAN_MARK_ADD;
    // SAFETY: the path is a C string.
    sys("fanotify_mark", unsafe {
        libc::fanotify_mark(group, flags, mask, libc::AT_FDCWD, path.as_ptr())
    })
    .map(drop)
}

/// Takes away all marks, those on file systems with `FAN_MARK_FILESYSTEM`.
fn flush(group: i32, flags: u32) -> Result<()> {
    let flags = libc::FAN_MARK_FLUSH | flags;
    // SAFETY: takes numbers.
    sys("flush", unsafe {
        libc::fanotify_mark(group, flags, 0, libc::AT_FDCWD, std::ptr::null())
    })
    .map(drop)
}

/// Reads one event, which this process has caused.
fn event(group: i32, mask: u8) -> Result<()> {
    let event = read(group, 24)?;
    let word = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|n| event[at + n]));
    close(word(16));
    same("an event's mask", &mask, &event[8])?;
    same("whose it is", &std::process::id().cast_signed(), &word(20))
}

/// A mark on a directory.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    let Ok(group) = init() else {
        return not_here("no fanotify");
    };
    let mask = libc::FAN_CLOSE_WRITE | libc::FAN_EVENT_ON_CHILD;
    mark(group, 0, mask, &dir)?;
    Ok(Watch::new(move || {
        same("no events", &true, &read(group, 4096).is_err())?;
        fs::write(dir.join("file"), "x")?;
        event(group, 8)
    })
    .spoiled_by(move || flush(group, 0)))
}

/// Groups of the classes that may be asked for leave, which nobody does.
pub(crate) fn classes(setting: &Setting) -> Result<Watch> {
    let mut watch = Watch::new(|| Ok(()));
    for class in [libc::FAN_CLASS_CONTENT, libc::FAN_CLASS_PRE_CONTENT] {
        let dir = setting.fresh(&format!("class-{class}"));
        fs::create_dir(&dir)?;
        // SAFETY: takes numbers.
        let made =
            unsafe { libc::fanotify_init(class | libc::FAN_NONBLOCK, libc::O_RDONLY as u32) };
        let Ok(group) = fd("fanotify_init", made) else {
            return not_here("no fanotify of these classes");
        };
        let mask = libc::FAN_CLOSE_WRITE | libc::FAN_EVENT_ON_CHILD;
        mark(group, 0, mask, &dir)?;
        let kept = Watch::keep(move || {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{group}"))?;
            let line = info.lines().find(|line| line.starts_with("fanotify flags"));
            Ok(line.map(str::to_owned))
        })?;
        let one = Watch::new(move || {
            same("no events", &true, &read(group, 4096).is_err())?;
            fs::write(dir.join("file"), "x")?;
            event(group, 8)
        });
        watch = watch.and(kept).and(one.spoiled_by(move || flush(group, 0)));
    }
    Ok(watch)
}

/// A mark on a file, in a group that is told of the directory that the file is in, and of what names lead to.
pub(crate) fn targets(setting: &Setting) -> Result<Watch> {
    /// `FAN_REPORT_FID`, `FAN_REPORT_DIR_FID`, `FAN_REPORT_NAME`, `FAN_REPORT_TARGET_FID`
    const REPORT: u32 = 0x200 | 0x400 | 0x800 | 0x1000;
    let file = setting.fresh("file");
    fs::write(&file, "x")?;
    // SAFETY: takes numbers.
    let made = unsafe { libc::fanotify_init(libc::FAN_NONBLOCK | REPORT, 0) };
    let Ok(group) = fd("fanotify_init", made) else {
        return not_here("no FAN_REPORT_TARGET_FID");
    };
    mark(group, 0, libc::FAN_MODIFY, &file)?;
    let told = move || {
        let events = read(group, 4096).unwrap_or_default();
        String::from_utf8_lossy(&events).contains("file")
    };
    Ok(Watch::new(move || {
        same("no events", &false, &told())?;
        fs::write(&file, "y")?;
        same("an event with the file's name", &true, &told())
    })
    .spoiled_by(move || flush(group, 0)))
}

/// A file system of its own.
pub(super) fn mounted(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let to = CString::new(dir.as_os_str().as_bytes())?;
    let kind = c"tmpfs".as_ptr();
    // SAFETY: terminated strings.
    sys("mount", unsafe {
        libc::mount(kind, to.as_ptr(), kind, 0, std::ptr::null())
    })
    .map(drop)
}

/// A mark on a mount, one on a file system, and a mark that ignores what others tell (`FAN_MARK_IGNORE`).
pub(crate) fn whole(setting: &Setting) -> Result<Watch> {
    const FAN_MARK_IGNORE: u32 = 0x400;
    let (Ok(of_mount), Ok(of_device)) = (init(), init()) else {
        return not_here("no fanotify");
    };
    let [mount, device] = ["mount", "device"].map(|name| setting.fresh(name));
    for dir in [&mount, &device] {
        mounted(dir)?;
        for name in ["seen", "ignored"] {
            fs::write(dir.join(name), "x")?;
        }
    }
    let (close_write, modify) = (libc::FAN_CLOSE_WRITE, libc::FAN_MODIFY);
    mark(of_mount, libc::FAN_MARK_MOUNT, close_write, &mount)?;
    mark(of_device, libc::FAN_MARK_FILESYSTEM, modify, &device)?;
    let ignore = FAN_MARK_IGNORE | libc::FAN_MARK_IGNORED_SURV_MODIFY;
    if mark(of_device, ignore, modify, &device.join("ignored")).is_err() {
        return not_here("no FAN_MARK_IGNORE");
    }
    Ok(Watch::new(move || {
        // What others did there.
        while read(of_mount, 24).is_ok() || read(of_device, 24).is_ok() {}
        fs::write(device.join("ignored"), "xy")?;
        same(
            "nothing of what is ignored",
            &true,
            &read(of_device, 24).is_err(),
        )?;
        let seen = fs::OpenOptions::new()
            .append(true)
            .open(device.join("seen"));
        std::io::Write::write_all(&mut seen?, b"more")?;
        event(of_device, 2)?;
        fs::write(mount.join("new"), "x")?;
        event(of_mount, 8)
    })
    .spoiled_by(move || flush(of_device, libc::FAN_MARK_FILESYSTEM)))
}
