//! inotify(7)

use std::cell::Cell;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use libc::{IN_CREATE, IN_DELETE, IN_MODIFY, IN_NONBLOCK, IN_ONESHOT};

use crate::kit::files::{read, seen};

use crate::kit::{Setting, Watch, fd, same, sys, until};

pub(crate) fn init() -> Result<i32> {
    // SAFETY: takes numbers.
    fd("inotify_init", unsafe {
        libc::inotify_init1(IN_NONBLOCK | libc::IN_CLOEXEC)
    })
}

pub(crate) fn watch(notify: i32, path: &Path, mask: u32) -> Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    fd("inotify_add_watch", unsafe {
        libc::inotify_add_watch(notify, path.as_ptr(), mask)
    })
}

/// Watch and mask of every event that waits.
pub(crate) fn events(notify: i32) -> Vec<(i32, u32)> {
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

/// A directory with a listening socket, a socket whose name is gone, a FIFO and a removed directory, and one with a file
/// that never had a name: whoever watches them is told of nothing that happens while they are saved and made again.
pub(crate) fn quiet(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("watched");
    fs::create_dir(&path)?;
    let listener = std::os::unix::net::UnixListener::bind(path.join("socket"))?;
    let gone = std::os::unix::net::UnixDatagram::bind(path.join("gone"))?;
    fs::remove_file(path.join("gone"))?;
    let name = CString::new(path.join("fifo").as_os_str().as_bytes())?;
    // SAFETY: a C string.
    sys("mkfifo", unsafe { libc::mkfifo(name.as_ptr(), 0o600) })?;
    let fifo = crate::kit::files::open(path.join("fifo"), libc::O_RDWR)?;
    fs::create_dir(path.join("removed"))?;
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let removed = crate::kit::files::open(path.join("removed"), directory)?;
    fs::remove_dir(path.join("removed"))?;
    let notify = init()?;
    watch(notify, &path, libc::IN_ALL_EVENTS)?;
    watch(notify, &path.join("socket"), libc::IN_ALL_EVENTS)?;
    let other = setting.fresh("of-unnamed");
    fs::create_dir(&other)?;
    let unnamed = crate::kit::files::open(&other, libc::O_TMPFILE | libc::O_RDWR)?;
    // To save what a file has is to open and read it.
    let read = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE_NOWRITE;
    watch(notify, &other, libc::IN_ALL_EVENTS & !read)?;
    let held = (listener, gone, fifo, removed, unnamed);
    Ok(Watch::new(move || {
        let _ = &held;
        same("no events", &Vec::new(), &events(notify))
    })
    .spoiled_by(move || Ok(fs::write(path.join("new"), "")?)))
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

/// Four events wait.
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

/// Events that wait at least while others come all the time, each with the next number for a name.
pub(crate) fn growing(setting: &Setting) -> Result<Watch> {
    const LEAST: usize = 4000;
    const MOST: usize = 8000;
    /// Bytes of an event and its name.
    const EACH: usize = 32;
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    let notify = init()?;
    watch(notify, &dir, IN_CREATE)?;
    let (told, wrong) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (counted, mistaken) = (told.clone(), wrong.clone());
    std::thread::spawn(move || -> Result<()> {
        for made in 0.. {
            let path = dir.join(made.to_string());
            fs::write(&path, "")?;
            fs::remove_file(&path)?;
            if made - told.load(Relaxed) < MOST {
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            for bytes in read(notify, (MOST - LEAST) * EACH)?.chunks(EACH) {
                let next = told.fetch_add(1, Relaxed).to_string();
                let name = bytes.get(16..).unwrap_or_default();
                if !name.starts_with(next.as_bytes()) || name.get(next.len()) != Some(&0) {
                    wrong.store(true, Relaxed);
                }
            }
        }
        Ok(())
    });
    let on = move || {
        let before = counted.load(Relaxed);
        until("more is read", Duration::from_secs(60), || {
            counted.load(Relaxed) > before
        })?;
        anyhow::ensure!(!mistaken.load(Relaxed), "events are lost, or come again");
        Ok(())
    };
    on()?;
    Ok(Watch::new(on))
}

/// Two descriptors, and what waits on each.
type Waiting = ([i32; 2], [Vec<(i32, u32)>; 2]);

/// Two full queues: one that nobody has read, and one of which some was read and more has come since.
pub(crate) fn full(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";
    const FEW: usize = 64;
    let again = move || -> Result<Waiting> {
        // A queue keeps what was the limit when it was made.
        let usual = fs::read_to_string(LIMIT)?;
        let lowered = fs::write(LIMIT, FEW.to_string());
        let made = [init(), init()];
        let most = match lowered {
            Ok(()) => {
                fs::write(LIMIT, usual.trim())?;
                FEW
            }
            Err(_) => usual.trim().parse()?,
        };
        let [one, other] = made;
        let both = [one?, other?];
        for notify in both {
            watch(notify, &dir, IN_CREATE | IN_DELETE)?;
        }
        for _ in 0..most / 2 + 2 {
            fs::write(dir.join("a"), "")?;
            fs::remove_file(dir.join("a"))?;
        }
        // Events have a name of 16 bytes.
        read(both[1], 5 * 32)?;
        fs::write(dir.join("a"), "")?;
        fs::remove_file(dir.join("a"))?;
        let mut expected = [(1, IN_CREATE), (1, IN_DELETE)].repeat(most / 2);
        expected.push((-1, libc::IN_Q_OVERFLOW));
        let mut other = expected.split_off(5);
        expected.extend(other.iter().copied());
        other.extend([(1, IN_CREATE), (1, IN_DELETE)]);
        Ok((both, [expected, other]))
    };
    let all = |notify| {
        let mut found = Vec::new();
        loop {
            match events(notify) {
                none if none.is_empty() => return found,
                some => found.extend(some),
            }
        }
    };
    let state = std::rc::Rc::new(std::cell::RefCell::new(again()?));
    let spoiled = state.clone();
    Ok(Watch::new(move || {
        let (both, expected) = state.borrow().clone();
        for (notify, expected) in both.into_iter().zip(&expected) {
            let found = all(notify);
            same("number of events", &expected.len(), &found.len())?;
            anyhow::ensure!(*expected == found, "other events than there were");
            crate::kit::files::close(notify);
        }
        state.replace(again()?);
        Ok(())
    })
    .spoiled_by(move || {
        let [_, other] = spoiled.borrow().0;
        read(other, 32).map(drop)
    }))
}

/// An event: watch, mask, name, and how many moves there were up to the one that it is a half of.
type Event = (i32, u32, String, usize);

/// Every event that waits.
fn whole_events(notify: i32) -> Vec<Event> {
    let bytes = read(notify, 1 << 20).unwrap_or_default();
    let word = |at: usize| {
        let word = bytes[at..].first_chunk().copied();
        u32::from_ne_bytes(word.unwrap_or_default())
    };
    let (mut found, mut cookies, mut at) = (Vec::new(), Vec::new(), 0);
    while at < bytes.len() {
        let (cookie, end) = (word(at + 8), at + 16 + word(at + 12) as usize);
        if cookie != 0 && !cookies.contains(&cookie) {
            cookies.push(cookie);
        }
        let moves = cookies.iter().position(|known| *known == cookie);
        let name = String::from_utf8_lossy(&bytes[at + 16..end]);
        let name = name.trim_end_matches('\0').to_owned();
        found.push((
            word(at) as i32,
            word(at + 4),
            name,
            moves.map_or(0, |n| n + 1),
        ));
        at = end;
    }
    found
}

/// Causes events of every kind on watches 1 (a directory), 2 (another), 3 and 4 (files), of which 3 ends
/// with its file and 2 is removed. Returns what came to one descriptor; the same waits on the other.
fn cause_all(dir: &Path, [one, other]: [i32; 2]) -> Result<Vec<Event>> {
    let (first, second) = (dir.join("first"), dir.join("second"));
    for made in [dir, &first, &second] {
        fs::create_dir(made)?;
    }
    for name in ["file", "lasting"] {
        fs::write(dir.join(name), "text")?;
    }
    for notify in [one, other] {
        for path in [&first, &second, &dir.join("file"), &dir.join("lasting")] {
            watch(notify, path, libc::IN_ALL_EVENTS)?;
        }
    }
    let long = "n".repeat(255);
    fs::write(first.join("a"), "text")?;
    fs::read(first.join("a"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(first.join("a"), mode)?;
    fs::rename(first.join("a"), first.join("b"))?;
    fs::rename(first.join("b"), second.join(&long))?;
    fs::rename(second.join(&long), dir.join("out"))?;
    fs::rename(dir.join("out"), first.join("in"))?;
    fs::create_dir(first.join("a"))?;
    fs::read_dir(first.join("a"))?.for_each(drop);
    fs::remove_dir(first.join("a"))?;
    fs::read_dir(&second)?.for_each(drop);
    fs::write(dir.join("file"), "longer text")?;
    fs::rename(dir.join("file"), dir.join("renamed"))?;
    fs::remove_file(dir.join("renamed"))?;
    fs::read(dir.join("lasting"))?;
    for notify in [one, other] {
        // SAFETY: takes numbers.
        sys("inotify_rm_watch", unsafe {
            libc::inotify_rm_watch(notify, 2)
        })?;
    }
    fs::rename(&first, dir.join("third"))?;
    fs::write(dir.join("lasting"), "")?;
    Ok(whole_events(one))
}

/// Events of every kind wait: with names, with both halves of moves, of watches that have ended.
pub(crate) fn every_kind(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    let again = move || -> Result<(i32, Vec<Event>)> {
        let _ = fs::remove_dir_all(&dir);
        let (one, other) = (init()?, init()?);
        let expected = cause_all(&dir, [one, other])?;
        crate::kit::files::close(one);
        Ok((other, expected))
    };
    let state = std::rc::Rc::new(std::cell::RefCell::new(again()?));
    let spoiled = state.clone();
    let elsewhere = setting.fresh("elsewhere");
    fs::create_dir(&elsewhere)?;
    Ok(Watch::new(move || {
        let (notify, expected) = state.borrow().clone();
        same("the first events", &true, &(expected.len() > 30))?;
        same("events", &expected, &whole_events(notify))?;
        same(
            "the next number",
            &5,
            &watch(notify, &elsewhere, IN_CREATE)?,
        )?;
        fs::write(elsewhere.join("new"), "")?;
        let new = vec![(5, IN_CREATE, "new".to_owned(), 0)];
        same("a new event", &new, &whole_events(notify))?;
        fs::remove_file(elsewhere.join("new"))?;
        crate::kit::files::close(notify);
        *state.borrow_mut() = again()?;
        Ok(())
    })
    .spoiled_by(move || read(spoiled.borrow().0, 64).map(drop)))
}

/// A file of /proc of a process that has ended, which no path leads to.
pub(crate) fn forgotten(_: &Setting) -> Result<Watch> {
    let notify = init()?;
    let add = move || {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
        let path = format!("/proc/{}/comm", child.id());
        let number = watch(notify, Path::new(&path), libc::IN_ALL_EVENTS)?;
        events(notify);
        child.kill()?;
        child.wait()?;
        // What led to its end is told.
        events(notify);
        anyhow::Ok(number)
    };
    let remove = move |number| {
        // SAFETY: takes numbers.
        sys("inotify_rm_watch", unsafe {
            libc::inotify_rm_watch(notify, number)
        })
    };
    let masks = move || {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{notify}"))?;
        let lines = info.lines().filter(|line| line.starts_with("inotify"));
        let masks = lines.map(|line| line.split(' ').find(|word| word.starts_with("mask:")));
        anyhow::Ok(
            masks
                .map(|mask| mask.map(str::to_owned))
                .collect::<Vec<_>>(),
        )
    };
    let last = Rc::new(Cell::new(add()?));
    let spoiled = last.clone();
    let before = masks()?;
    Ok(Watch::new(move || {
        same("no events", &Vec::new(), &events(notify))?;
        same("the masks", &before, &masks()?)?;
        remove(last.get())?;
        let end = vec![(last.get(), libc::IN_IGNORED)];
        same("the end", &end, &events(notify))?;
        let next = add()?;
        same("the next number", &(last.get() + 1), &next)?;
        last.set(next);
        Ok(())
    })
    .spoiled_by(move || remove(spoiled.get()).map(drop)))
}

/// Files that the kernel makes up: their inodes have numbers that others get in time.
pub(crate) fn made_up(_: &Setting) -> Result<Watch> {
    let notify = init()?;
    watch(notify, Path::new("/proc/self/comm"), IN_MODIFY)?;
    // Nothing of an upgrade is there: whoever opened it would be seen.
    watch(notify, Path::new("/sys/class/mem"), libc::IN_OPEN)?;
    let comm = fs::read("/proc/self/comm")?;
    Ok(Watch::new(move || {
        same("no events", &Vec::new(), &events(notify))?;
        fs::write("/proc/self/comm", &comm)?;
        let dir = fs::read_dir("/sys/class/mem")?;
        let expected = vec![(1, IN_MODIFY), (2, libc::IN_OPEN | libc::IN_ISDIR)];
        same("the events", &expected, &events(notify))?;
        drop(dir);
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("inotify_rm_watch", unsafe {
            libc::inotify_rm_watch(notify, 1)
        })
        .map(drop)
    }))
}
