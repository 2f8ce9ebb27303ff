//! landlock(7)

use std::ffi::CString;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::kit::files::close;
use crate::kit::{Crew, Setting, Watch, args, errno, fork, not_here, raw, same, sys};

/// `LANDLOCK_ACCESS_FS_*`
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_REG: u64 = 1 << 8;
const MAKE_BLOCK: u64 = 1 << 11;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// `LANDLOCK_ACCESS_NET_*`
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 2;
/// `LANDLOCK_SCOPE_*`
const ABSTRACT: u64 = 1;
const SIGNAL: u64 = 2;

/// What is allowed.
enum Rule {
    Beneath(PathBuf, u64),
    Port(u16, u64),
}

/// The version of the interface.
fn version() -> i64 {
    raw(libc::SYS_landlock_create_ruleset, args([0, 0, 1]))
}

/// A ruleset: files, network, scopes; and what is allowed nevertheless.
fn ruleset(handled: [u64; 3], rules: &[Rule]) -> Result<i32> {
    if version() < 1 {
        return not_here("no Landlock");
    }
    let ruleset = raw(
        libc::SYS_landlock_create_ruleset,
        args([handled.as_ptr() as u64, 24]),
    );
    if [-libc::E2BIG, -libc::EINVAL]
        .map(i64::from)
        .contains(&ruleset)
    {
        return not_here("an older Landlock");
    }
    let ruleset = sys("landlock_create_ruleset", ruleset)?;
    for rule in rules {
        let (kind, rule, file) = match rule {
            Rule::Beneath(path, allowed) => {
                let path = CString::new(path.as_os_str().as_bytes())?;
                // SAFETY: a terminated string.
                let file = unsafe { libc::open(path.as_ptr(), libc::O_PATH) };
                let file = sys("open", file)?;
                (1, [*allowed, file as u64], Some(file))
            }
            Rule::Port(port, allowed) => (2, [*allowed, u64::from(*port)], None),
        };
        let add = args([ruleset as u64, kind, rule.as_ptr() as u64, 0]);
        sys("landlock_add_rule", raw(libc::SYS_landlock_add_rule, add))?;
        if let Some(file) = file {
            close(file as i32);
        }
    }
    Ok(ruleset as i32)
}

/// Restricts this thread in the same way.
fn restrict(handled: [u64; 3], rules: &[Rule]) -> Result<()> {
    let ruleset = ruleset(handled, rules)?;
    enforce(ruleset)?;
    close(ruleset);
    Ok(())
}

fn enforce(ruleset: i32) -> Result<()> {
    // SAFETY: no pointers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    })?;
    let enforce = args([ruleset as u64, 0]);
    sys(
        "landlock_restrict_self",
        raw(libc::SYS_landlock_restrict_self, enforce),
    )
    .map(drop)
}

/// It has forbidden itself to make block devices, anywhere.
pub(crate) fn plain(setting: &Setting) -> Result<Watch> {
    restrict([MAKE_BLOCK, 0, 0], &[])?;
    let path = setting.fresh("device");
    let name = CString::new(path.as_os_str().as_bytes())?;
    Ok(Watch::new(move || {
        let mode = libc::S_IFBLK | 0o600;
        let made = raw(
            libc::SYS_mknod,
            args([name.as_ptr() as u64, mode.into(), 0]),
        );
        same("making a block device", &-i64::from(libc::EACCES), &made)
    })
    .spoiled_by(move || fs::write(&path, "").map_err(Into::into)))
}

/// Everything, as a decompressor does behind its last open.
pub(crate) fn everything(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    crew.add(|| {
        // All that the kernel knows, by version.
        let files = match version() {
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        };
        let net = if version() >= 4 {
            BIND_TCP | CONNECT_TCP
        } else {
            0
        };
        let scopes = if version() >= 6 { ABSTRACT | SIGNAL } else { 0 };
        restrict([files, net, scopes], &[])?;
        let watch = || {
            let read = || error(fs::read("/proc/self/comm"));
            // SAFETY: no pointers.
            let signal = || sys("kill", unsafe { libc::kill(std::process::id() as i32, 0) });
            Ok(Watch::keep(move || Ok((read(), signal()?)))?
                .and(Watch::new(move || same("reading", &libc::EACCES, &read()))))
        };
        // A thread that has the same one.
        let mut inner = Crew::default();
        inner.add(watch)?;
        Ok(inner.watch().and(watch()?))
    })?;
    Ok(crew.watch())
}

/// Files of two directories, and what this thread may do with them.
#[derive(Clone)]
struct Place {
    inner: PathBuf,
    outer: PathBuf,
}

impl Place {
    fn new(setting: &Setting) -> Result<Place> {
        let outer = setting.fresh("dir");
        let inner = outer.join("in ner");
        fs::create_dir_all(&inner)?;
        for dir in [&inner, &outer] {
            fs::write(dir.join("file"), "x")?;
        }
        Ok(Place { inner, outer })
    }

    /// Reading, writing, listing, making and removing, in each of the two: error numbers, or 0.
    fn may(&self) -> [[i32; 4]; 2] {
        [&self.inner, &self.outer].map(|dir| {
            let file = dir.join("file");
            let new = dir.join("new");
            let made = error(fs::File::create_new(&new));
            let _ = fs::remove_file(&new);
            [
                error(fs::read(&file)),
                error(fs::OpenOptions::new().write(true).open(&file)),
                error(fs::read_dir(dir)),
                made,
            ]
        })
    }
}

fn error<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |_| 0)
}

fn watch(place: Place) -> Result<Watch> {
    let other = place.clone();
    let watch = Watch::keep(move || Ok(place.may()))?;
    // It cannot be lifted, but there can be more.
    Ok(watch.spoiled_by(move || {
        restrict([READ_FILE | READ_DIR, 0, 0], &[])?;
        let _ = other.may();
        Ok(())
    }))
}

/// Rules for a directory, one below it, and a single file.
pub(crate) fn files(setting: &Setting) -> Result<Watch> {
    let place = Place::new(setting)?;
    let handled = READ_FILE | WRITE_FILE | READ_DIR | MAKE_REG | REMOVE_FILE;
    let mut crew = Crew::default();
    crew.add(move || {
        let rules = [
            Rule::Beneath(place.outer.clone(), READ_DIR),
            Rule::Beneath(place.inner.clone(), READ_FILE | MAKE_REG | REMOVE_FILE),
            Rule::Beneath(place.outer.join("file"), WRITE_FILE),
            Rule::Beneath("/proc".into(), READ_FILE),
        ];
        restrict([handled, 0, 0], &rules)?;
        const NO: i32 = libc::EACCES;
        // Making opens for writing, too.
        let expected = [[0, NO, 0, NO], [NO, 0, 0, NO]];
        same("what it may", &expected, &place.may())?;
        watch(place)
    })?;
    Ok(crew.watch())
}

/// The whole process: its first thread among others.
pub(crate) fn process(setting: &Setting) -> Result<Watch> {
    let place = Place::new(setting)?;
    let own = setting.path("x");
    let own = own.parent().unwrap_or(Path::new("/")).to_owned();
    let handled = READ_FILE | WRITE_FILE | READ_DIR;
    let rules = [
        Rule::Beneath("/".into(), READ_FILE),
        Rule::Beneath(own, READ_FILE | WRITE_FILE | READ_DIR),
    ];
    restrict([handled, 0, 0], &rules)?;
    let mut crew = Crew::default();
    for _ in 0..3 {
        let place = place.clone();
        crew.add(move || {
            let lists = || error(fs::read_dir("/proc/self"));
            same("listing", &libc::EACCES, &lists())?;
            Watch::keep(move || Ok((place.may(), lists())))
        })?;
    }
    let lists = Watch::new(|| same("listing", &libc::EACCES, &error(fs::read_dir("/proc/self"))));
    Ok(lists.and(crew.watch()))
}

/// A ruleset that nobody has enforced yet, with rules for directories and, where there are such, ports.
pub(crate) fn open_ruleset(setting: &Setting) -> Result<Watch> {
    let place = Place::new(setting)?;
    let files = READ_FILE | WRITE_FILE | READ_DIR | MAKE_REG | REMOVE_FILE;
    let mut rules = vec![
        Rule::Beneath(place.outer.clone(), READ_DIR),
        Rule::Beneath(place.inner.clone(), READ_FILE | MAKE_REG | REMOVE_FILE),
    ];
    let net = if version() >= 4 {
        rules.push(Rule::Port(40_001, CONNECT_TCP));
        crate::kit::loopback()?;
        CONNECT_TCP
    } else {
        0
    };
    let made = ruleset([files, net, 0], &rules)?;
    let outer = place.outer.clone();
    // What a thread may that enforces it.
    let may = move || {
        let place = place.clone();
        let thread = std::thread::spawn(move || -> Result<_> {
            enforce(made)?;
            let port = net != 0;
            Ok((
                place.may(),
                port.then(|| ports([40_001, 40_002, 40_003])).transpose()?,
            ))
        });
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("it panicked"))
    };
    const NO: i32 = libc::EACCES;
    same("what it may", &[[0, NO, 0, NO], [NO, NO, 0, NO]], &may()?.0)?;
    Ok(
        Watch::keep(move || Ok((may()?, crate::kit::files::seen(made)?)))?.spoiled_by(move || {
            let name = CString::new(outer.as_os_str().as_bytes())?;
            // SAFETY: a terminated string.
            let file = sys("open", unsafe { libc::open(name.as_ptr(), libc::O_PATH) })?;
            let rule = [WRITE_FILE, file as u64];
            let add = args([made as u64, 1, rule.as_ptr() as u64, 0]);
            sys("landlock_add_rule", raw(libc::SYS_landlock_add_rule, add))?;
            close(file as i32);
            Ok(())
        }),
    )
}

/// Layers, one upon the other, and threads with some of them.
pub(crate) fn stacked(setting: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for layers in [3, 1, 0, 2] {
        let place = Place::new(&setting.part(&layers.to_string()))?;
        crew.add(move || {
            let all = [
                ([READ_FILE | WRITE_FILE, 0, 0], READ_FILE | WRITE_FILE),
                ([WRITE_FILE | READ_DIR, 0, 0], WRITE_FILE),
                ([READ_FILE, 0, 0], 0),
            ];
            for (handled, allowed) in &all[..layers] {
                let rule = Rule::Beneath(place.inner.clone(), *allowed);
                let rules = if *allowed == 0 { &[][..] } else { &[rule] };
                restrict(*handled, rules)?;
            }
            watch(place)
        })?;
    }
    Ok(crew.watch())
}

/// Errors of binding and connecting to ports.
fn ports(numbers: [u16; 3]) -> Result<[[i32; 2]; 3]> {
    let try_out = |port: u16, bind: bool| -> Result<i32> {
        // SAFETY: no pointers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        sys("socket", socket)?;
        // SAFETY: all zero is an address.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let call = if bind { libc::bind } else { libc::connect };
        // SAFETY: an address of its length.
        let done = unsafe { call(socket, (&raw const address).cast(), 16) };
        let error = if done == 0 { 0 } else { errno() };
        close(socket);
        Ok(error)
    };
    let mut found = [[0; 2]; 3];
    for (found, port) in found.iter_mut().zip(numbers) {
        *found = [try_out(port, true)?, try_out(port, false)?];
    }
    Ok(found)
}

/// Ports that may be bound and connected to.
pub(crate) fn network(setting: &Setting) -> Result<Watch> {
    if version() < 4 {
        return not_here("no network rules of Landlock");
    }
    crate::kit::loopback()?;
    let _ = setting;
    let numbers = [40_001, 40_002, 40_003];
    let mut crew = Crew::default();
    crew.add(move || {
        let rules = [
            Rule::Port(numbers[0], BIND_TCP),
            Rule::Port(numbers[1], BIND_TCP | CONNECT_TCP),
        ];
        restrict([0, BIND_TCP | CONNECT_TCP, 0], &rules)?;
        const NO: i32 = libc::EACCES;
        let expected = [[0, NO], [0, libc::ECONNREFUSED], [NO, NO]];
        same("ports", &expected, &ports(numbers)?)?;
        let watch = Watch::keep(move || ports(numbers))?;
        Ok(watch.spoiled_by(|| restrict([0, BIND_TCP, 0], &[])))
    })?;
    Ok(crew.watch())
}

/// A child that has not restricted itself: no signals to it, and none of its sockets.
pub(crate) fn scopes(setting: &Setting) -> Result<Watch> {
    if version() < 6 {
        return not_here("no scopes of Landlock");
    }
    let name = format!("{}.abstract", setting.path("s").display());
    let pid = fork(move || {
        let _socket = abstract_socket(&name, true);
        loop {
            // SAFETY: nothing is taken.
            unsafe { libc::pause() };
        }
    })?;
    let name = format!("{}.abstract", setting.path("s").display());
    let connects = move || -> Result<i32> {
        match abstract_socket(&name, false) {
            Ok(socket) => {
                close(socket);
                Ok(0)
            }
            Err(error) => Ok(error),
        }
    };
    // SAFETY: no pointers.
    let signals = move |pid: i32| unsafe { if libc::kill(pid, 0) == 0 { 0 } else { errno() } };
    crate::kit::until("the child listens", crate::kit::SOON, || {
        connects().is_ok_and(|error| error == 0)
    })?;
    let mut crew = Crew::default();
    crew.add(move || {
        restrict([0, 0, ABSTRACT | SIGNAL], &[])?;
        same("signals", &libc::EPERM, &signals(pid))?;
        same("sockets", &libc::EPERM, &connects()?)?;
        let me = std::process::id() as i32;
        let watch = Watch::keep(move || Ok((signals(pid), signals(me), connects()?)))?;
        Ok(watch)
    })?;
    // The others are free.
    Ok(crew.watch().and(Watch::new(move || {
        same("signals of others", &0, &signals(pid))
    })))
}

/// Threads that have scoped their signals together, and could start programs.
pub(crate) fn scopes_shared(_: &Setting) -> Result<Watch> {
    if version() < 6 {
        return not_here("no scopes of Landlock");
    }
    restrict([0, 0, SIGNAL], &[])?;
    let mut crew = Crew::default();
    crew.add(|| Ok(Watch::new(|| Ok(()))))?;
    Ok(crew.watch())
}

/// Listens at an abstract name, or connects to it; an error number when that fails.
fn abstract_socket(name: &str, listen: bool) -> std::result::Result<i32, i32> {
    // SAFETY: all zero is an address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    let bytes = name.as_bytes();
    let bytes = &bytes[bytes.len().saturating_sub(100)..];
    for (to, from) in address.sun_path[1..].iter_mut().zip(bytes) {
        *to = *from as _;
    }
    let len = (3 + bytes.len()) as u32;
    // SAFETY: an address of its length.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        let address = (&raw const address).cast();
        let done = match listen {
            true => libc::bind(socket, address, len) | libc::listen(socket, 100),
            false => libc::connect(socket, address, len),
        };
        if done == 0 {
            return Ok(socket);
        }
        let error = errno();
        libc::close(socket);
        Err(error)
    }
}

/// Files opened in a domain that may be written but not cut, and a device that may not be controlled; and others that
/// were opened before.
pub(crate) fn opened(setting: &Setting) -> Result<Watch> {
    if version() < 3 {
        return not_here("no right of Landlock to truncate");
    }
    let path = setting.fresh("cut");
    let before = fs::File::create(&path)?;
    let mut crew = Crew::default();
    crew.add(move || {
        let devices = if version() >= 5 { IOCTL_DEV } else { 0 };
        restrict([TRUNCATE | devices, 0, 0], &[])?;
        let open = |path: &Path| fs::File::options().read(true).write(true).open(path);
        let mut file = open(&path)?;
        file.write_all(b"abc")?;
        let removed = path.with_extension("gone");
        fs::write(&removed, "x")?;
        let gone = open(&removed)?;
        fs::remove_file(&removed)?;
        let null = open(Path::new("/dev/null"))?;
        let watch = Watch::keep(move || {
            // It is no terminal.
            let mut settings = [0_u8; 64];
            // SAFETY: room for a struct termios.
            let controlled =
                unsafe { libc::ioctl(null.as_raw_fd(), libc::TCGETS, &raw mut settings) };
            let controlled = if controlled == 0 { 0 } else { errno() };
            let place = file.stream_position()?;
            let cut = [file.set_len(10), gone.set_len(10), before.set_len(10)].map(error);
            Ok((cut, controlled, place))
        })?;
        Ok(watch)
    })?;
    Ok(crew.watch())
}

/// A child that tells, when it is asked, what it may see of its parent and whether it may make devices.
fn relative(further: bool, device: PathBuf, mut asked: UnixStream) -> impl FnOnce() {
    move || {
        let parent = std::os::unix::process::parent_id();
        if further && restrict([MAKE_BLOCK, 0, 0], &[]).is_err() {
            return;
        }
        let Ok(name) = CString::new(device.as_os_str().as_bytes()) else {
            return;
        };
        let mut byte = [0];
        while asked.read_exact(&mut byte).is_ok() {
            let up = error(fs::read_link(format!("/proc/{parent}/exe")));
            let mode = libc::S_IFBLK | 0o600;
            let mknod = args([name.as_ptr() as u64, mode.into(), 0]);
            let made = raw(libc::SYS_mknod, mknod);
            let _ = fs::remove_file(&device);
            let answer = [up as u8, made.unsigned_abs() as u8];
            if asked.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// A domain that a child has from its parent, and one more that only the child is in.
pub(crate) fn shared(setting: &Setting) -> Result<Watch> {
    let place = Place::new(setting)?;
    let exe = std::env::current_exe()?;
    // Even what it runs from it may not open any more.
    let rules = [
        Rule::Beneath(
            place.inner.clone(),
            READ_FILE | WRITE_FILE | MAKE_REG | REMOVE_FILE,
        ),
        Rule::Beneath("/proc".into(), READ_FILE | READ_DIR),
        Rule::Beneath(
            setting
                .path("x")
                .parent()
                .unwrap_or(Path::new("/"))
                .to_owned(),
            READ_DIR | WRITE_FILE | READ_FILE | MAKE_REG | REMOVE_FILE,
        ),
    ];
    let mine = fs::File::open(&exe)?;
    restrict(
        [
            READ_FILE | WRITE_FILE | READ_DIR | MAKE_REG | REMOVE_FILE,
            0,
            0,
        ],
        &rules,
    )?;
    same("opening", &libc::EACCES, &error(fs::File::open(&exe)))?;
    let (ready, told) = UnixStream::pair()?;
    let equal = fork(relative(false, place.inner.join("one"), ready))?;
    let equals = told;
    let (ready, told) = UnixStream::pair()?;
    let inner = fork(relative(true, place.inner.join("other"), ready))?;
    let inners = told;
    let mut crew = Crew::default();
    crew.add(|| {
        // A thread that has all that its process has.
        Watch::keep(|| Ok(error(fs::File::open(std::env::current_exe()?))))
    })?;
    let sees = move || -> Result<[i32; 6]> {
        let of_child = |mut stream: &UnixStream| -> Result<[u8; 2]> {
            let mut answer = [0; 2];
            stream.write_all(b"x")?;
            stream.read_exact(&mut answer)?;
            Ok(answer)
        };
        let ([a, b], [c, d]) = (of_child(&equals)?, of_child(&inners)?);
        // What only an equal, or who is further out, may see.
        let down = |pid: i32| error(fs::read_link(format!("/proc/{pid}/exe")));
        let _ = &mine;
        Ok([
            down(equal),
            down(inner),
            a.into(),
            b.into(),
            c.into(),
            d.into(),
        ])
    };
    Ok(Watch::keep(sees)?.and(crew.watch()).and(watch(place)?))
}

/// A domain that scopes signals, which a child has from its parent, as have threads of both.
pub(crate) fn scopes_family(_: &Setting) -> Result<Watch> {
    if version() < 6 {
        return not_here("no scopes of Landlock");
    }
    let outside = fork(|| {
        loop {
            // SAFETY: nothing is taken.
            unsafe { libc::pause() };
        }
    })?;
    restrict([0, 0, SIGNAL], &[])?;
    let child = fork(|| {
        loop {
            // SAFETY: nothing is taken.
            unsafe { libc::pause() };
        }
    })?;
    let sends = move || {
        [child, outside].map(|pid| {
            // SAFETY: no pointers.
            let sent = unsafe { libc::kill(pid, 0) };
            if sent == 0 { 0 } else { errno() }
        })
    };
    same("signals", &[0, libc::EPERM], &sends())?;
    let mut crew = Crew::default();
    crew.add(move || Watch::keep(move || Ok(sends())))?;
    Ok(crew.watch().and(Watch::keep(move || Ok(sends()))?))
}

/// An entry of epoll whose number was closed, in a domain: both need numbers that no descriptor has.
pub(crate) fn epoll(setting: &Setting) -> Result<Watch> {
    restrict([MAKE_BLOCK, 0, 0], &[])?;
    crate::files::epoll::dup(setting)
}
