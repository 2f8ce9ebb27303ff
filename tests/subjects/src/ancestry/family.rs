//! Trees of processes.

use anyhow::{Result, bail};

use crate::kit::{Kin, Setting, Watch, fork, procfs, same, sys};

/// Parent, group, session as the process itself sees them.
fn place() -> [i32; 4] {
    // SAFETY: these take numbers or nothing.
    unsafe {
        [
            libc::getpid(),
            libc::getppid(),
            libc::getpgid(0),
            libc::getsid(0),
        ]
    }
}

/// A child that must keep its place.
fn child(setting: &Setting, name: &str) -> Result<Kin> {
    Kin::start(setting, name, |_| Watch::keep(|| Ok(place())))
}

/// Three generations.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let mut first = Kin::start(setting, "first", |setting| {
        let mut second = Kin::start(setting, "second", |setting| {
            let mut third = child(setting, "third")?;
            Ok(Watch::keep(|| Ok(place()))?.and(Watch::new(move || third.check())))
        })?;
        let mut other = child(setting, "other")?;
        Ok(Watch::keep(|| Ok(place()))?.and(Watch::new(move || {
            second.check()?;
            other.check()
        })))
    })?;
    Ok(Watch::new(move || first.check()))
}

/// Many children.
pub(crate) fn wide(setting: &Setting) -> Result<Watch> {
    let mut children = Vec::new();
    for number in 0..100 {
        children.push(fork(|| {
            loop {
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        })?);
        let _ = number;
    }
    let mut last = child(setting, "last")?;
    let me = std::process::id().to_string();
    let first = children[0];
    Ok(Watch::new(move || {
        for child in &children {
            same(
                "a parent",
                &me,
                &procfs::status(&child.to_string(), "PPid")?,
            )?;
            if procfs::status(&child.to_string(), "State")?.starts_with('Z') {
                bail!("child {child} has ended");
            }
        }
        last.check()
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("kill", unsafe { libc::kill(first, libc::SIGKILL) })?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(())
    }))
}

/// The parent is gone; the subject, a subreaper, is the new one.
pub(crate) fn orphans(setting: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    })?;
    let inner = setting.part("orphan");
    let me = std::process::id().to_string();
    let seen = inner.clone();
    let parent = fork(move || {
        let _ = fork(|| {
            let _ = crate::protocol::serve(&seen, || Watch::keep(|| Ok(place()[0])));
        });
    })?;
    let text = crate::protocol::wait_for(&inner.path("ready"), "READY ", crate::kit::SOON)?;
    let orphan = text.trim().to_owned();
    // SAFETY: reaps the child between them.
    sys("wait", unsafe {
        libc::waitpid(parent, std::ptr::null_mut(), 0)
    })?;
    let mut asked = 0;
    Ok(Watch::new(move || {
        same(
            "the orphan's parent",
            &me,
            &procfs::status(&orphan, "PPid")?,
        )?;
        asked += 1;
        crate::protocol::ask(&inner, &asked.to_string(), crate::kit::SOON)
    }))
}
