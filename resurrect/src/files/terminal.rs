//! Terminals. They are made before the processes: a session's leader takes its controlling terminal when
//! it founds the session, and its children inherit it.

use super::Opening;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::error::Subject;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, fchmod, makedev};
use nix::unistd::{Gid, Uid, fchown};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Manifest, Pty, Terminal, TerminalId,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::batch::Batch;
use sys::tty::packet::Raised;
use sys::tty::queues::{self, Ends, Queues};
use sys::tty::{Locked, unopened};
use sys::{Errno, Pid, tty};

const TIOCSCTTY: u32 = 0x540e;
const TIOCSPGRP: u32 = 0x5410;
const TIOCNOTTY: u32 = 0x5422;

/// The controlling terminal of whoever opens it.
const OWN: &[u8] = b"/dev/tty";
const OWN_NUMBER: u64 = makedev(5, 0);
/// How long a number that another terminal has is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A terminal that is there again: descriptions of our own, to be closed when all others are open.
#[derive(Debug)]
pub(super) struct Made {
    slave: Option<OwnedFd>,
    /// The pair's master.
    master: Option<DescriptionId>,
}

/// All of them.
pub(super) type Terminals = BTreeMap<TerminalId, Made>;

/// Makes every terminal, with its settings and what was in it.
pub(crate) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    // Nobody knows the number of what was opened as `/dev/tty`: it takes one that no other has.
    let (unnumbered, numbered): (Vec<&Terminal>, Vec<&Terminal>) =
        (manifest.terminals.iter()).partition(|terminal| terminal.rdev == OWN_NUMBER);
    for terminal in numbered {
        let hung_up = hung_up(manifest, terminal)?;
        restore.files.opened.extend(hung_up);
    }
    let mut pairs: Vec<&Terminal> = manifest.terminals.iter().collect();
    pairs.sort_by_key(|terminal| terminal.pty.map(|pty| pty.index));
    for terminal in pairs {
        let made = match terminal.pty {
            Some(pty) => {
                let (made, id, master) = pair(manifest, terminal, pty)?;
                restore.files.opened.insert(id, master);
                Some(made)
            }
            None if is_hung_up(manifest, terminal.id) => None,
            None => match line(terminal) {
                Err(why) if restore.is_upgrade() => {
                    log::error!("{why}: who has it open finds that it was hung up");
                    restore.files.opened.extend(unplugged(manifest, terminal)?);
                    None
                }
                made => Some(made?),
            },
        };
        if let Some(made) = made {
            let own = own_terminals(manifest, terminal, &made)?;
            restore.files.opened.extend(own);
            restore.files.terminals.insert(terminal.id, made);
        }
    }
    for terminal in unnumbered {
        let hung_up = hung_up(manifest, terminal)?;
        restore.files.opened.extend(hung_up);
    }
    Ok(())
}

/// Descriptions that were opened as `/dev/tty`. Before any session has the terminal, since it is taken
/// for that.
fn own_terminals(
    manifest: &Manifest,
    terminal: &Terminal,
    made: &Made,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    // The first process that gives up another one than a pseudo terminal hangs it up.
    let (Some(_), Some(slave)) = (terminal.pty, &made.slave) else {
        return Ok(Vec::new());
    };
    let own = manifest.descriptions.iter().filter(|d| {
        is_slave(d, terminal.id)
            && matches!(&d.kind, DescriptionKind::Terminal { path, .. } if path == OWN)
    });
    own.map(|description| {
        let flags = OFlag::from_bits_retain(description.flags.cast_signed());
        let opened = own_terminal(slave, (flags | OFlag::O_NONBLOCK) - OFlag::O_ASYNC);
        let opened = opened.map_err(failed(terminal, "opening it as /dev/tty"))?;
        Ok((description.id, opened))
    })
    .collect()
}

fn failed(
    terminal: &Terminal,
    doing: &'static str,
) -> impl FnOnce(Errno) -> ResurrectError + use<> {
    let what = String::from_utf8_lossy(&terminal.path).into_owned();
    let subject = Some(Subject::Terminal(terminal.id));
    move |errno| ResurrectError::Description {
        subject,
        what,
        doing,
        errno,
    }
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn open_at(node: &Path, flags: OFlag) -> sys::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    nix::fcntl::open(node, flags, Mode::empty())
}

/// A console or serial line.
fn line(terminal: &Terminal) -> Result<Made, ResurrectError> {
    let node = path(&terminal.path);
    let slave = open_at(node, OFlag::O_RDWR | OFlag::O_NONBLOCK);
    let slave = slave.map_err(failed(terminal, "opening it"))?;
    let found = nix::sys::stat::fstat(&slave).map_err(failed(terminal, "fstat"))?;
    if found.st_rdev != terminal.rdev {
        let changed =
            ResurrectError::changed(node.display().to_string(), "it is another device now");
        return Err(changed.about(Subject::Terminal(terminal.id)));
    }
    set_up(terminal, &slave, None)?;
    Ok(Made {
        slave: Some(slave),
        master: None,
    })
}

/// A pseudo terminal.
fn pair(
    manifest: &Manifest,
    terminal: &Terminal,
    pty: Pty,
) -> Result<(Made, DescriptionId, OwnedFd), ResurrectError> {
    let mut descriptions = manifest.descriptions.iter();
    let master = descriptions.find_map(|d| match &d.kind {
        DescriptionKind::PtyMaster { terminal: id, path } if *id == terminal.id => Some((d, path)),
        _ => None,
    });
    let found = master.ok_or(Errno::ENOENT);
    let (description, multiplexer) = found.map_err(failed(terminal, "finding its master"))?;
    let master = master_at(terminal, pty.index, multiplexer, description.flags)?;
    tty::set_locked(&master, false).map_err(failed(terminal, "unlocking it"))?;
    let has_slave = pty.slave_closed
        || terminal.session.is_some()
        || manifest
            .descriptions
            .iter()
            .any(|d| is_slave(d, terminal.id));
    let slave = if has_slave {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
        let slave = tty::peer(&master, flags.bits());
        let slave = slave.map_err(failed(terminal, "opening its slave"))?;
        set_up(terminal, &slave, Some(&master))?;
        let (uid, gid, mode) = terminal.node;
        fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .and_then(|()| fchmod(&slave, Mode::from_bits_truncate(mode)))
            .map_err(failed(terminal, "setting its owner"))?;
        Some(slave)
    } else {
        let empty = Terminal {
            queues: Queues::default(),
            locked: Locked::default(),
            ..terminal.clone()
        };
        set_up(&empty, &master, Some(&master))?;
        if terminal.queues != Queues::default() {
            let put = unopened::put(&master, &terminal.queues);
            put.map_err(failed(terminal, "filling its queues"))?;
        }
        lock(terminal, &master)?;
        None
    };
    let made = Made {
        slave,
        master: Some(description.id),
    };
    Ok((made, description.id, master))
}

fn is_slave(description: &Description, id: TerminalId) -> bool {
    matches!(description.kind, DescriptionKind::Terminal { terminal, .. } if terminal == id)
}

/// Opens the multiplexer until it gives the wanted pair. It gives the lowest free index. What was in flight in sockets of
/// a tree that has ended is closed a moment later (`garbage.rs`), so a number that is taken is waited for.
fn master_at(
    terminal: &Terminal,
    index: u32,
    multiplexer: &[u8],
    flags: u32,
) -> Result<OwnedFd, ResurrectError> {
    // `O_ASYNC` takes effect only by a call of its own.
    let flags = OFlag::from_bits_retain(flags.cast_signed()) - OFlag::O_ASYNC;
    let mut lower = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let master = open_at(path(multiplexer), flags);
        let master = master.map_err(failed(terminal, "opening the multiplexer"))?;
        let got = tty::pty_index(&master).map_err(failed(terminal, "asking for the index"))?;
        if got == index {
            return Ok(master);
        }
        if got > index {
            if Instant::now() < end {
                drop(master);
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let why = "another terminal has this number; end what runs in it";
            let changed = ResurrectError::changed(String::from_utf8_lossy(&terminal.path), why);
            return Err(changed.about(Subject::Terminal(terminal.id)));
        }
        lower.push(master);
    }
}

/// Size, settings and contents; `any` is the terminal, or a master that speaks for it.
fn set_up(
    terminal: &Terminal,
    any: &OwnedFd,
    master: Option<&OwnedFd>,
) -> Result<(), ResurrectError> {
    set_size(terminal, any)?;
    tty::set_termios(any, &terminal.termios).map_err(failed(terminal, "setting it up"))?;
    if let (Some(master), true) = (master, terminal.queues.columns != (0, 0)) {
        let set = queues::set_columns(any, master, terminal.queues.columns);
        set.map_err(failed(terminal, "setting its column"))?;
    }
    let ends = Ends { slave: any, master };
    let packet = terminal.pty.filter(|pty| pty.packet);
    let raised = packet.map(|pty| Raised::before(ends, pty.status, &terminal.queues));
    let raised = raised.transpose();
    let raised = raised.map_err(failed(terminal, "setting packet mode"))?;
    if terminal.queues != Queues::default() {
        queues::put(ends, &terminal.queues).map_err(failed(terminal, "filling its queues"))?;
    }
    if let Some(raised) = raised {
        raised
            .after(&terminal.termios)
            .map_err(failed(terminal, "setting packet mode"))?;
    }
    if terminal.queues.literal {
        queues::expect_literal(any).map_err(failed(terminal, "filling its queues"))?;
    }
    lock(terminal, any)
}

/// Locks those settings that were, when all else is as it was.
fn lock(terminal: &Terminal, any: &OwnedFd) -> Result<(), ResurrectError> {
    if terminal.locked == Locked::default() {
        return Ok(());
    }
    tty::lock_settings(any, &terminal.locked).map_err(failed(terminal, "locking its settings"))
}

/// A pair has the size it is told; a console has that of its screen, which may be another one for this kernel
/// (without a display, say): programs see it then.
fn set_size(terminal: &Terminal, any: &OwnedFd) -> Result<(), ResurrectError> {
    let now = tty::winsize(any).map_err(failed(terminal, "asking for its size"))?;
    if now == terminal.winsize {
        return Ok(());
    }
    match tty::set_winsize(any, terminal.winsize) {
        Err(Errno::EINVAL) if terminal.pty.is_none() => {
            let name = String::from_utf8_lossy(&terminal.path);
            log::warn!("{name} was {:?} and is {now:?}", terminal.winsize);
            Ok(())
        }
        done => done.map_err(failed(terminal, "setting its size")),
    }
}

fn is_hung_up(manifest: &Manifest, id: TerminalId) -> bool {
    manifest.descriptions.iter().any(|d| {
        matches!(d.kind, DescriptionKind::Terminal { terminal, hung_up: true, .. } if terminal == id)
    })
}

/// Descriptions of a slave whose master was closed: they are opened on a new pair, that goes at once.
fn hung_up(
    manifest: &Manifest,
    terminal: &Terminal,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    if !is_hung_up(manifest, terminal.id) {
        return Ok(Vec::new());
    }
    if terminal.rdev == OWN_NUMBER {
        return hung_up_own(manifest, terminal);
    }
    let index = u32::try_from(nix::sys::stat::minor(terminal.rdev)).unwrap_or(0);
    let flags = OFlag::O_RDWR.bits().cast_unsigned();
    let master = master_at(terminal, index, b"/dev/ptmx", flags)?;
    tty::set_locked(&master, false).map_err(failed(terminal, "unlocking it"))?;
    each_slave(manifest, terminal, "opening its slave", |description| {
        let flags = OFlag::from_bits_retain(description.flags.cast_signed());
        open_slave(path(&terminal.path), Some(&master), description, flags)
    })
}

/// Those that were opened as `/dev/tty`, whatever it was.
fn hung_up_own(
    manifest: &Manifest,
    terminal: &Terminal,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let master = any_master(terminal)?;
    let slave = tty::peer(&master, (OFlag::O_RDWR | OFlag::O_NOCTTY).bits());
    let slave = slave.map_err(failed(terminal, "opening its slave"))?;
    each_slave(
        manifest,
        terminal,
        "opening it as /dev/tty",
        |description| {
            let flags = OFlag::from_bits_retain(description.flags.cast_signed());
            own_terminal(&slave, flags - OFlag::O_ASYNC)
        },
    )
}

/// Descriptions of a line that this kernel has not: of a pair that goes at once.
fn unplugged(
    manifest: &Manifest,
    terminal: &Terminal,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let master = any_master(terminal)?;
    each_slave(
        manifest,
        terminal,
        "opening one in place of it",
        |description| {
            let flags = OFlag::from_bits_retain(description.flags.cast_signed());
            let flags = (flags | OFlag::O_NOCTTY | OFlag::O_CLOEXEC) - OFlag::O_ASYNC;
            tty::peer(&master, flags.bits())
        },
    )
}

/// The master of a pair with any number.
fn any_master(terminal: &Terminal) -> Result<OwnedFd, ResurrectError> {
    let master = open_at(Path::new("/dev/ptmx"), OFlag::O_RDWR);
    let master = master.map_err(failed(terminal, "opening the multiplexer"))?;
    tty::set_locked(&master, false).map_err(failed(terminal, "unlocking it"))?;
    Ok(master)
}

/// Opens every description of a slave.
fn each_slave(
    manifest: &Manifest,
    terminal: &Terminal,
    doing: &'static str,
    open: impl Fn(&Description) -> sys::Result<OwnedFd>,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let all = manifest.descriptions.iter();
    all.filter(|description| is_slave(description, terminal.id))
        .map(|description| {
            let opened = open(description).map_err(failed(terminal, doing))?;
            Ok((description.id, opened))
        })
        .collect()
}

/// A description of a terminal, by the node it was opened by.
pub(super) fn open(
    opening: &Opening<'_, '_>,
    id: TerminalId,
    node: &[u8],
) -> Result<OwnedFd, ResurrectError> {
    let terminal = opening.restore.manifest.terminal(id);
    let terminal = terminal
        .ok_or(Errno::ENOENT)
        .map_err(opening.failed("finding it"))?;
    // What waits for a carrier, or for nobody at all, must not wait now.
    let flags = opening.flags() | OFlag::O_NONBLOCK;
    let node = if node == OWN { &terminal.path } else { node };
    let made = opening.restore.files.terminals.get(&id);
    let master = made.and_then(|made| opening.restore.files.opened.get(&made.master?));
    open_slave(path(node), master, opening.description, flags).map_err(opening.failed("opening it"))
}

/// By path, or through the master (`TIOCGPTPEER`), as it was.
fn open_slave(
    node: &Path,
    master: Option<&OwnedFd>,
    description: &Description,
    flags: OFlag,
) -> sys::Result<OwnedFd> {
    match master {
        Some(master) if description.flags & super::O_LARGEFILE == 0 => {
            tty::peer(master, flags.bits())
        }
        _ => open_at(node, flags),
    }
}

/// `/dev/tty` is the opener's controlling terminal: a child takes it as its own, opens it, gives it up.
fn own_terminal(slave: &OwnedFd, flags: OFlag) -> sys::Result<OwnedFd> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let me = sys::process::pidfd_open(Pid(nix::unistd::getpid().as_raw()))?;
    let child = sys::process::spawn(0, &[], || {
        let opened = SigSet::all()
            .thread_block()
            .and_then(|()| nix::unistd::setsid())
            .and_then(|_| tty::set_controlling(slave, true))
            .and_then(|()| open_at(Path::new("/dev/tty"), flags))
            .and_then(|opened| tty::give_up_controlling(slave).map(|()| opened));
        let number = opened.map_or(-1, IntoRawFd::into_raw_fd);
        let _ = nix::unistd::write(&writer, &number.to_ne_bytes());
        sys::process::wait_for_end(&me);
        1
    })?;
    drop(writer);
    let mut number = [0; 4];
    let got = std::fs::File::from(reader)
        .read_exact(&mut number)
        .map_err(|_| Errno::EIO)
        .and_then(|()| sys::process::pidfd_open(child))
        .and_then(|pidfd| sys::process::pidfd_getfd(pidfd.as_fd(), i32::from_ne_bytes(number)));
    let _ = sys::process::kill(child, nix::sys::signal::Signal::SIGKILL as i32);
    sys::wait::wait_for(child.leader())?;
    got
}

/// What shuts others out comes when everybody is in.
pub(super) fn close(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for (id, made) in core::mem::take(&mut restore.files.terminals) {
        let Some(terminal) = manifest.terminal(id) else {
            continue;
        };
        if let (true, Some(slave)) = (terminal.exclusive, &made.slave) {
            tty::set_exclusive(slave).map_err(failed(terminal, "setting exclusive mode"))?;
        }
        let locked = terminal.pty.is_some_and(|pty| pty.locked);
        let master = made.master.and_then(|id| restore.files.opened.get(&id));
        let exclusive = terminal.pty.is_some_and(|pty| pty.exclusive);
        if let Some(master) = master.filter(|_| exclusive) {
            tty::set_exclusive(master).map_err(failed(terminal, "setting exclusive mode"))?;
        }
        if let Some(master) = master.filter(|_| locked) {
            tty::set_locked(master, true).map_err(failed(terminal, "locking it"))?;
        }
    }
    Ok(())
}

/// A session's leader takes its controlling terminal.
pub(crate) fn control(restore: &mut Restore<'_>, leader: Pid) -> Result<(), ResurrectError> {
    let of_it = |terminal: &&Terminal| terminal.session == Some(leader);
    let Some(terminal) = restore.manifest.terminals.iter().find(of_it) else {
        return Ok(());
    };
    const STEAL: i32 = 1;
    let doing = "taking its controlling terminal";
    ioctl(restore, leader, terminal.id, doing, |_| {
        (TIOCSCTTY, STEAL.into())
    })
}

/// Foreground groups, when all groups are there, and members of a session that let the terminal go.
pub(crate) fn set_foreground(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for terminal in &manifest.terminals {
        let Some(leader) = terminal.session else {
            continue;
        };
        let groups = |group: &Pid| manifest.processes.iter().any(|p| p.pgid == *group);
        // A group that has ended by now has nobody to set it for.
        if let Some(group) = terminal.foreground.filter(groups) {
            let doing = "setting the foreground group of its terminal";
            ioctl(restore, leader, terminal.id, doing, |batch| {
                (TIOCSPGRP, batch.data(&group.0.to_ne_bytes()).into())
            })?;
        }
        for &member in &terminal.without {
            let doing = "giving up its controlling terminal";
            ioctl(restore, member, terminal.id, doing, |_| {
                (TIOCNOTTY, 0.into())
            })?;
        }
    }
    Ok(())
}

/// One request about a terminal, by a process that has no descriptors yet.
fn ioctl(
    restore: &mut Restore<'_>,
    pid: Pid,
    id: TerminalId,
    doing: &'static str,
    request: impl FnOnce(&mut Batch) -> (u32, sys::batch::Arg),
) -> Result<(), ResurrectError> {
    let made = restore.files.terminals.get(&id);
    let slave = made.and_then(|made| made.slave.as_ref());
    let Some(slave) = slave.map(AsRawFd::as_raw_fd) else {
        return Ok(());
    };
    let pidfd = restore.self_pidfd.as_raw_fd();
    let mut batch = Batch::new();
    let args = [pidfd.into(), slave.into(), 0.into()];
    let got = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
    let (number, argument) = request(&mut batch);
    batch.call(doing, nr::IOCTL, [got.into(), number.into(), argument]);
    batch.call("closing a copy", nr::CLOSE, [got.into()]);
    let leader = &mut restore.task(pid)?.first;
    run(pid, doing, leader, &batch).map(drop)
}
