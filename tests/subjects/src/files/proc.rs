//! Files of /proc and /sys.

use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Result, bail};
use libc::{IN_CLOSE_WRITE, IN_DELETE_SELF, IN_IGNORED, IN_MODIFY, O_DIRECTORY, O_RDONLY, O_RDWR};

use super::inotify;
use crate::kit::files::{close, open, place, read, ready, seen};
use crate::kit::net::{receive_descriptor, send_descriptor};
use crate::kit::{Setting, Watch, fork, not_here, same, sys as kit_sys};
use crate::threads::cgroups::hierarchy;

/// Of the system and of the process, at a place in the middle.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let me = std::process::id();
    let files = [
        (open("/proc/self/status", O_RDONLY)?, 6),
        (open(format!("/proc/{me}/maps"), O_RDONLY)?, 0),
        (open("/proc/self/oom_score_adj", O_RDWR)?, 0),
        (open("/proc/sys/kernel/ostype", O_RDONLY)?, 3),
        (open("/proc/cpuinfo", O_RDONLY)?, 10),
    ];
    let dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY)?;
    let namespace = open("/proc/self/ns/net", O_RDONLY)?;
    // About a process that has ended.
    let child = fork(|| ())?;
    let gone = open(format!("/proc/{child}/stat"), O_RDONLY)?;
    open(format!("/proc/{child}/fd"), O_RDONLY | O_DIRECTORY)?;
    // SAFETY: reaps the child.
    kit_sys("wait", unsafe {
        libc::waitpid(child, std::ptr::null_mut(), 0)
    })?;
    for (file, at) in files {
        place(file, Some(at))?;
    }
    // The last page but nine: as an offset it is negative.
    let memory = open("/proc/self/mem", O_RDONLY)?;
    let address = -0xa000;
    // SAFETY: calls on a descriptor of ours.
    let at = move |offset, whence| unsafe { libc::lseek(memory, offset, whence) };
    same("an address", &address, &at(address, libc::SEEK_SET))?;
    let observe = move || {
        // Every kernel numbers its namespaces itself.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let (mode, flags, name) = seen(namespace)?;
        let same_as_own = format!("own namespace: {}", own.as_os_str() == name.as_str());
        let mut all = vec![(seen(dir)?, 0), ((mode, flags, same_as_own), 0)];
        all.push((seen(memory)?, at(0, libc::SEEK_CUR)));
        for (file, _) in files {
            all.push((seen(file)?, place(file, None)?));
        }
        Ok(all)
    };
    let name = files[0].0;
    Ok(Watch::keep(observe)?
        .spoiled_by(move || place(name, Some(0)).map(drop))
        .and(Watch::new(move || {
            let error = read(gone, 9).err().map(|error| error.to_string());
            same(
                "nobody is told of",
                &Some("read: error 3".to_owned()),
                &error,
            )?;
            same(
                "the name of this process",
                b"subject".as_slice(),
                &read(name, 7)?,
            )?;
            place(name, Some(6))?;
            same(
                "the kind of system",
                b"ux\n".as_slice(),
                &read(files[3].0, 10)?,
            )?;
            place(files[3].0, Some(3))?;
            if read(files[1].0, 100)?.is_empty() {
                bail!("the maps are empty");
            }
            place(files[1].0, Some(0)).map(drop)
        })))
}

/// The maps of the process, read but for the end.
pub(crate) fn maps(_: &Setting) -> Result<Watch> {
    /// Bytes that are left.
    const END: usize = 30;
    /// As much as they ever are: memory for them changes no map.
    const ROOM: usize = 1 << 16;
    let file = open("/proc/self/maps", O_RDONLY)?;
    let rest = move || {
        let mut all = Vec::with_capacity(ROOM);
        loop {
            let some = read(file, 4000)?;
            if some.is_empty() {
                return Ok::<_, anyhow::Error>(all);
            }
            all.extend(some);
        }
    };
    let begin = move || {
        place(file, Some(0))?;
        let mut before = rest()?.len() - END;
        place(file, Some(0))?;
        while before > 0 {
            before -= read(file, before.min(4000))?.len();
        }
        Ok::<_, anyhow::Error>(())
    };
    let kernel = || std::fs::read("/proc/sys/kernel/osrelease");
    let mut begun_on = kernel()?;
    begin()?;
    Ok(Watch::new(move || {
        let left = rest()?;
        place(file, Some(0))?;
        let now = rest()?;
        // Another kernel has other mappings of its own.
        if kernel()? == begun_on {
            same("the end of the maps", &now[now.len() - END..], &left)?;
        }
        begun_on = kernel()?;
        begin()
    })
    .spoiled_by(move || place(file, Some(0)).map(drop)))
}

/// Of another thread: files at a place in the middle, one by the thread's id alone, a directory, and a file
/// that only a message holds.
pub(crate) fn threads(_: &Setting) -> Result<Watch> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("told-about".to_owned())
        .spawn(move || {
            // The receiver waits.
            let _ = tell.send(crate::kit::tid());
            loop {
                std::thread::park();
            }
        })?;
    let tid = told.recv()?;
    let of = |name: &str| format!("/proc/self/task/{tid}/{name}");
    let files = [
        (open(of("comm"), O_RDWR)?, 5),
        (open(format!("/proc/{tid}/comm"), O_RDONLY)?, 2),
        (open(of("schedstat"), O_RDONLY)?, 1),
        (open(of("stat"), O_RDONLY)?, 0),
    ];
    for (file, at) in files {
        place(file, Some(at))?;
    }
    let dir = open(of(""), O_RDONLY | O_DIRECTORY)?;
    let (near, far) = std::os::unix::net::UnixDatagram::pair()?;
    let sent = open(of("comm"), O_RDONLY)?;
    place(sent, Some(5))?;
    send_descriptor(near.as_raw_fd(), sent)?;
    close(sent);
    let observe = move || {
        let mut all = vec![(seen(dir)?, 0)];
        for (file, _) in files {
            all.push((seen(file)?, place(file, None)?));
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || place(files[0].0, Some(0)).map(drop))
        .and(Watch::new(move || {
            let got = receive_descriptor(far.as_raw_fd())?;
            send_descriptor(near.as_raw_fd(), got)?;
            for (fd, name) in [
                (files[0].0, "about"),
                (files[1].0, "ld-about"),
                (got, "about"),
            ] {
                let at = place(fd, None)?;
                same("its name", format!("{name}\n").as_bytes(), &read(fd, 20)?)?;
                place(fd, Some(at))?;
            }
            close(got);
            let stat = read(files[3].0, 100)?;
            place(files[3].0, Some(0))?;
            let start = format!("{tid} (told-about) ");
            match stat.starts_with(start.as_bytes()) {
                true => Ok(()),
                false => bail!("another thread: {}", String::from_utf8_lossy(&stat)),
            }
        })))
}

/// An attribute and a directory.
pub(crate) fn sys(_: &Setting) -> Result<Watch> {
    let file = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY)?;
    let dir = open("/sys/class/net", O_RDONLY | O_DIRECTORY)?;
    place(file, Some(2))?;
    // Until they are read they tell poll(2) of a change.
    let (told, untold) = (
        open("/sys/class/net/lo/mtu", O_RDONLY)?,
        open("/sys/class/net/lo/mtu", O_RDONLY)?,
    );
    read(told, 10)?;
    Ok(Watch::keep(move || {
        let polled = (ready(told, libc::POLLPRI)?, ready(untold, libc::POLLPRI)?);
        Ok((seen(file)?, seen(dir)?, place(file, None)?, polled))
    })?
    .spoiled_by(move || place(file, Some(0)).map(drop))
    .and(Watch::new(move || {
        if read(file, 10)?.is_empty() {
            bail!("it is empty");
        }
        place(file, Some(2)).map(drop)
    })))
}

/// A file that newer kernels do not have (until Linux 6.6), open, locked, and watched in two ways: there it is gone.
pub(crate) fn of_another_kernel(_: &Setting) -> Result<Watch> {
    const PATH: &str = "/proc/sys/kernel/sched_child_runs_first";
    if !Path::new(PATH).exists() {
        return not_here("this kernel does not have such a file");
    }
    let file = open(PATH, O_RDWR)?;
    let notify = inotify::init()?;
    let mask = IN_DELETE_SELF | IN_MODIFY | IN_CLOSE_WRITE;
    let wd = inotify::watch(notify, Path::new(PATH), mask)?;
    let mut untold = vec![(wd, IN_DELETE_SELF), (wd, IN_IGNORED)];
    let epoll = interest(file)?;
    // SAFETY: no memory is involved.
    kit_sys("flock", unsafe { libc::flock(file, libc::LOCK_EX) })?;
    let before = text(file)?;
    place(file, Some(1))?;
    Ok(Watch::new(move || {
        let there = Path::new(PATH).exists();
        let expected = if there {
            before.clone()
        } else {
            Err(Some(libc::ENODEV))
        };
        same("what it says", &expected, &text(file)?)?;
        let told = if there {
            Vec::new()
        } else {
            std::mem::take(&mut untold)
        };
        same("what its watcher is told", &told, &inotify::events(notify))?;
        same(
            "what its epoll tells",
            &!there,
            &(ready(epoll, libc::POLLIN)? != 0),
        )
    })
    .spoiled_by(move || {
        let other = open("/dev/null", O_RDONLY)?;
        // SAFETY: descriptors of ours.
        kit_sys("dup2", unsafe { libc::dup2(other, file) }).map(drop)
    }))
}

/// The text of a file from its beginning on, or why there is none.
fn text(file: i32) -> Result<Result<Vec<u8>, Option<i32>>> {
    let mut bytes = [0; 16];
    // SAFETY: the bytes outlive the call.
    let got = unsafe { libc::pread(file, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let error = std::io::Error::last_os_error().raw_os_error();
    Ok(usize::try_from(got).map_or_else(|_| Err(error), |got| Ok(bytes[..got].to_vec())))
}

/// An epoll for urgent news of a file.
fn interest(file: i32) -> Result<i32> {
    // SAFETY: no memory is involved.
    let epoll = unsafe { libc::epoll_create1(0) };
    kit_sys("epoll_create1", epoll)?;
    let mut event = libc::epoll_event {
        events: libc::EPOLLPRI as u32,
        u64: 7,
    };
    // SAFETY: the event outlives the call.
    kit_sys("epoll_ctl", unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, file, &raw mut event)
    })?;
    Ok(epoll)
}

/// Files of a control group that was removed, one watched by an epoll, its directory, which is the current one.
pub(crate) fn of_a_removed_group(setting: &Setting) -> Result<Watch> {
    let name = format!("kupgrade-gone-{}", std::process::id());
    let group = hierarchy(setting)?.join(name);
    // Of a run that was ended.
    let _ = std::fs::remove_dir(&group);
    std::fs::create_dir(&group)?;
    let files = [
        open(group.join("cgroup.events"), O_RDONLY)?,
        open(group.join("cgroup.procs"), O_RDWR)?,
    ];
    let directory = open(&group, O_RDONLY | O_DIRECTORY)?;
    let epoll = interest(files[0])?;
    read(files[0], 99)?;
    std::env::set_current_dir(&group)?;
    std::fs::remove_dir(&group)?;
    let observe = move || {
        let mut all = Vec::new();
        for file in files {
            all.push((text(file)?, seen(file)?.1));
        }
        let told = ready(epoll, libc::POLLIN)?;
        let listed = std::fs::read_dir(format!("/proc/self/fd/{directory}"));
        let gone = |error: std::io::Error| error.raw_os_error();
        Ok((
            all,
            told,
            listed.map(drop).map_err(gone),
            std::env::current_dir().map_err(gone),
        ))
    };
    Ok(Watch::keep(observe)?.spoiled_by(|| Ok(std::env::set_current_dir("/")?)))
}
