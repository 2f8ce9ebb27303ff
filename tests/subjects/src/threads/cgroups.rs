//! Control groups, and the autogroup of a session.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::kit::{Crew, Kin, Setting, Watch, not_here, sys, tid};

/// Four groups of version 2, one with a setting: this process in one, a thread in a group for threads below it, a
/// child in another one.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let root = hierarchy(setting)?;
    let top = root.join(format!("kupgrade-subject-{}", std::process::id()));
    let names = ["main", "main/thread", "child"];
    let groups = names.map(|name| top.join(name));
    // Groups of a run that was ended are there still.
    remove(&top)?;
    for group in [&top].into_iter().chain(&groups) {
        fs::create_dir(group).with_context(|| group.display().to_string())?;
    }
    let [main, threads, child] = groups;
    fs::write(main.join("cgroup.max.depth"), "7")?;
    let kin = Kin::start(setting, "child", |_| {
        fs::write(child.join("cgroup.procs"), "0")?;
        Watch::keep(|| Ok(fs::read_to_string("/proc/self/cgroup")?))
    })?;
    let child = kin.pid;
    fs::write(main.join("cgroup.procs"), "0")?;
    fs::write(threads.join("cgroup.type"), "threaded")?;
    let mut crew = Crew::default();
    let file = threads.join("cgroup.threads");
    crew.add(move || {
        fs::write(&file, tid().to_string())?;
        Watch::keep(|| Ok(fs::read_to_string("/proc/thread-self/cgroup")?))
    })?;
    let depth = main.join("cgroup.max.depth");
    let kept = Watch::keep(move || {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        Ok((own, fs::read_to_string(&depth)?))
    })?;
    let mut kin = kin;
    Ok(kept
        .spoiled_by(move || leave(&root, &top, child))
        .and(crew.watch())
        .and(Watch::new(move || kin.check())))
}

/// Everybody goes back to the root, and the groups go.
fn leave(root: &Path, top: &Path, child: i32) -> Result<()> {
    for pid in [0, child] {
        fs::write(root.join("cgroup.procs"), pid.to_string())?;
    }
    remove(top)
}

/// Nobody may be in them.
fn remove(top: &Path) -> Result<()> {
    for name in ["main/thread", "main", "child", ""] {
        match fs::remove_dir(top.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// Where version 2 is mounted; where it is not, it is from now on.
fn hierarchy(setting: &Setting) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?;
        after.starts_with("cgroup2 ").then(|| PathBuf::from(place))
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let place = setting.fresh("cgroup");
    fs::create_dir(&place)?;
    let name = std::ffi::CString::new(place.as_os_str().as_encoded_bytes())?;
    // SAFETY: the strings are alive.
    let done = unsafe {
        libc::mount(
            c"cgroup2".as_ptr(),
            name.as_ptr(),
            c"cgroup2".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    match sys("mount", done) {
        Ok(_) => Ok(place),
        Err(_) => not_here("no control groups"),
    }
}

/// It is neither 0 nor that of the process.
pub(crate) fn autogroup(_: &Setting) -> Result<Watch> {
    const FILE: &str = "/proc/self/autogroup";
    if fs::read_to_string(FILE).unwrap_or_default().is_empty() {
        return not_here("no autogroups");
    }
    fs::write(FILE, "-7")?;
    let nice = || -> Result<String> {
        let text = fs::read_to_string(FILE)?;
        let nice = text.trim().rsplit(' ').next();
        Ok(nice.context("it has no nice value")?.to_owned())
    };
    Ok(Watch::keep(nice)?.spoiled_by(|| fs::write(FILE, "3").map_err(Into::into)))
}
