//! Control groups, and the autogroup of a session.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libc::{MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::files::inotify;
use crate::kit::{Area, Crew, Kin, SOON, Setting, Watch, fork, not_here, same, sys, tid, until};

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

/// A group of somebody else's with an attribute, whose list of processes he may write, and an empty one in it.
pub(crate) fn delegated(setting: &Setting) -> Result<Watch> {
    const OWNER: u32 = 4321;
    let root = hierarchy(setting)?;
    let top = root.join(format!("kupgrade-delegated-{}", std::process::id()));
    let empty = top.join("empty");
    for old in [&empty, &top] {
        let _ = fs::remove_dir(old);
    }
    for group in [&top, &empty] {
        fs::create_dir(group).with_context(|| group.display().to_string())?;
    }
    fs::write(empty.join("cgroup.max.depth"), "5")?;
    fs::set_permissions(&top, fs::Permissions::from_mode(0o750))?;
    for file in [top.clone(), top.join("cgroup.procs")] {
        chown(&file, Some(OWNER), Some(OWNER + 1))?;
    }
    let named = std::ffi::CString::new(top.as_os_str().as_encoded_bytes())?;
    // SAFETY: the strings are alive, and the value has three bytes.
    let set = unsafe {
        let value = c"yes".as_ptr().cast();
        libc::setxattr(named.as_ptr(), c"user.delegate".as_ptr(), value, 3, 0)
    };
    sys("setxattr", set)?;
    let (place, depth) = (top.clone(), empty.join("cgroup.max.depth"));
    let kept = Watch::keep(move || {
        let who = |name: &str| {
            let meta = fs::metadata(place.join(name))?;
            Ok::<_, std::io::Error>((meta.uid(), meta.gid(), meta.mode()))
        };
        let mut value = [0_u8; 8];
        // SAFETY: the strings are alive, and the buffer has its size.
        let got = unsafe {
            let to = value.as_mut_ptr().cast();
            libc::getxattr(named.as_ptr(), c"user.delegate".as_ptr(), to, value.len())
        };
        let files = [who("")?, who("cgroup.procs")?, who("cgroup.type")?];
        Ok((files, got, value, fs::read_to_string(&depth)?))
    })?;
    Ok(kept.spoiled_by(move || {
        fs::remove_dir(&empty)?;
        Ok(fs::remove_dir(&top)?)
    }))
}

/// It counts as long as it runs, in two threads, and naps in a third.
pub(crate) fn held(setting: &Setting) -> Result<Watch> {
    let root = hierarchy(setting)?;
    let group = root.join(format!("kupgrade-held-{}", std::process::id()));
    let inner = group.join("inner");
    for old in [&inner, &group] {
        let _ = fs::remove_dir(old);
    }
    for new in [&group, &inner] {
        fs::create_dir(new).with_context(|| new.display().to_string())?;
    }
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let procs = inner.join("cgroup.procs");
    fork(|| {
        if fs::write(procs, "0").is_err() {
            return;
        }
        let naps = |place: usize| {
            move || {
                for n in 1.. {
                    page.put(0, place, n);
                    std::thread::sleep(std::time::Duration::from_millis(3));
                }
            }
        };
        std::thread::spawn(naps(1));
        std::thread::spawn(naps(2));
        for n in 1.. {
            page.put(0, 0, n);
        }
    })?;
    let freeze = move |what: &str| fs::write(group.join("cgroup.freeze"), what);
    let events = inner.join("cgroup.events");
    let counts = move || [0, 1, 2].map(|place| page.get(0, place));
    let run = move |from: [u64; 3]| {
        let more = || counts().iter().zip(from).all(|(now, from)| *now > from);
        until("it runs", SOON, more)
    };
    let hold = {
        let (freeze, events) = (freeze.clone(), events.clone());
        move || -> Result<[u64; 3]> {
            freeze("1")?;
            let is = || fs::read_to_string(&events).is_ok_and(|text| text.contains("frozen 1"));
            until("it is held", SOON, is)?;
            Ok(counts())
        }
    };
    run([0; 3])?;
    let mut stood = hold()?;
    let again = freeze.clone();
    Ok(Watch::new(move || {
        same("what it has done", &stood, &counts())?;
        until("it is held", SOON, || {
            fs::read_to_string(&events).is_ok_and(|text| text == "populated 1\nfrozen 1\n")
        })?;
        again("0")?;
        run(stood)?;
        stood = hold()?;
        Ok(())
    })
    .spoiled_by(move || {
        freeze("0")?;
        run(counts())
    }))
}

/// The file that tells whether anybody is in a group, watched as service managers do. The file of a group that is made
/// after an upgrade has another number.
pub(crate) fn watched(setting: &Setting) -> Result<Watch> {
    let root = hierarchy(setting)?;
    let group = root.join(format!("kupgrade-watched-{}", std::process::id()));
    // Each takes some numbers.
    for _ in 0..8 {
        let _ = fs::remove_dir(&group);
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
    }
    let notify = inotify::init()?;
    let number = inotify::watch(notify, &group.join("cgroup.events"), libc::IN_MODIFY)?;
    let procs = group.join("cgroup.procs");
    let told = vec![(number, libc::IN_MODIFY)];
    Ok(Watch::new(move || {
        same("no events", &Vec::new(), &inotify::events(notify))?;
        let procs = procs.clone();
        let child = fork(move || {
            let _ = fs::write(procs, "0");
        })?;
        // SAFETY: waits for that child.
        sys("waitpid", unsafe {
            libc::waitpid(child, std::ptr::null_mut(), 0)
        })?;
        let mut seen = Vec::new();
        until("the group is told to be empty again", SOON, || {
            seen.extend(inotify::events(notify));
            !seen.is_empty()
        })?;
        seen.dedup();
        same("the events", &told, &seen)?;
        // The second one may still come.
        until("nothing more comes", SOON, || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            inotify::events(notify).is_empty()
        })
    })
    .spoiled_by(move || Ok(fs::remove_dir(&group)?)))
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
pub(crate) fn hierarchy(setting: &Setting) -> Result<PathBuf> {
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
