//! Terminals: consoles, serial lines, and pseudo terminals with both their ends.
//!
//! Settings belong to the terminal, not to a description, and a pseudo terminal is asked through its
//! master. So a terminal is described when all descriptions are known ([`finish`]).

use super::{Open, elsewhere, path};
use crate::kernel::{self, Unreadable};
use crate::{FreezerError, proc};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, major, makedev, minor};
use persist_mem::manifest::{DescriptionId, DescriptionKind, Pty, Terminal, TerminalId};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::tty::packet::Raised;
use sys::tty::queues::{self, Ends, Queues};
use sys::tty::{self, Locked, Termios, Winsize, unopened};
use sys::{Errno, Pid};

/// Major of slaves of pseudo terminals (`UNIX98_PTY_SLAVE_MAJOR`). Their minors are their indices, also those above 255
/// (fs/devpts/inode.c): the majors up to 143 are only set aside.
const SLAVES: u64 = 136;

/// `/dev/tty`, the controlling terminal of whoever opens it.
const OWN: (u64, &[u8]) = (makedev(5, 0), b"/dev/tty");

/// `/dev/ptmx`.
const MULTIPLEXER: u64 = makedev(5, 2);

/// Majors of terminals (Documentation/admin-guide/devices.txt): virtual consoles and serial lines, what
/// stands for others, modems, USB adapters, serial ports of other makes, hypervisor consoles.
const OTHERS: [u64; 6] = [4, 5, 166, 188, 204, 229];

/// Whether a character device is one.
pub(super) fn is(open: &Open<'_>) -> bool {
    has_number(open.stat.st_rdev)
}

/// Whether a character device of this number is one.
pub(super) fn has_number(rdev: u64) -> bool {
    let major = major(rdev);
    major == SLAVES || OTHERS.contains(&major)
}

/// Whether it can be carried, as far as one description tells.
pub(super) fn check(open: &Open<'_>) -> Result<(), FreezerError> {
    check_instance(open)?;
    if open.stat.st_rdev == MULTIPLEXER {
        return check_master(open);
    }
    let settings = match tty::termios(open.copy) {
        Ok(settings) => settings,
        // Once hung up all are the same.
        Err(Errno::EIO)
            if major(open.stat.st_rdev) == SLAVES || (open.stat.st_rdev, open.link) == OWN =>
        {
            return Ok(());
        }
        Err(Errno::EIO) => return Err(open.refuse("a terminal that was hung up is not carried")),
        // Who has no settings to tell: N_NULL, for one.
        Err(Errno::EINVAL | Errno::ENOTTY) => {
            return Err(open.refuse("its line discipline is not carried"));
        }
        Err(e) => return Err(open.call("asking for its settings")(e)),
    };
    if settings.line != 0 {
        let why = format!("line discipline {} is not carried", settings.line);
        return Err(open.refuse(why));
    }
    if tty::graphics(open.copy).unwrap_or(false) {
        return Err(open.refuse("a console in graphics mode is not carried"));
    }
    let unread = tty::readable(open.copy).map_err(open.call("asking for its input"))?;
    // A serial line has nobody who could put back what waits.
    let told = || {
        major(open.stat.st_rdev) == SLAVES
            && kernel::look(|kernel| {
                kernel.pty_queues(open.copy.as_fd(), queues::is_canonical(&settings))
            })
            .is_ok()
    };
    if unread > queues::INPUT_MAX - 1 && !told() {
        return Err(open.refuse("its input is full: what waits behind it cannot be told"));
    }
    Ok(())
}

/// A pseudo terminal must be one of those in `/dev/pts`, since it is looked at there.
fn check_instance(open: &Open<'_>) -> Result<(), FreezerError> {
    let link = Path::new(OsStr::from_bytes(open.link));
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let own = if open.stat.st_rdev == MULTIPLEXER {
        // The multiplexer is in the instance itself, or beside a directory with it.
        let beside = link.with_file_name("pts");
        match on_devpts(open) {
            true => Some(open.stat.st_dev),
            false => device(&beside),
        }
    } else {
        on_devpts(open).then_some(open.stat.st_dev)
    };
    match (own, device(Path::new("/dev/pts"))) {
        (Some(own), Some(usual)) if own != usual => {
            Err(open.refuse("it is of another instance of devpts than that of /dev/pts"))
        }
        _ => Ok(()),
    }
}

fn on_devpts(open: &Open<'_>) -> bool {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    nix::sys::statfs::fstatfs(open.copy)
        .is_ok_and(|found| found.filesystem_type().0 == DEVPTS_SUPER_MAGIC)
}

fn check_master(open: &Open<'_>) -> Result<(), FreezerError> {
    tty::pty_index(open.copy).map_err(open.call("asking for the pair's index"))?;
    if unread_status(open.copy).is_none() {
        let why = "status of packet mode has not been read yet, and what it is cannot be known";
        return Err(open.refuse(why));
    }
    // A slave that is opened to put it in again would be noticed.
    let waits = || kernel::look(|kernel| kernel.waits_without_slave(open.copy.as_fd()));
    let was_opened = polled(open.copy, PollFlags::POLLIN).contains(PollFlags::POLLHUP);
    if was_opened || !waits().unwrap_or(false) {
        return Ok(());
    }
    let packet = tty::packet_mode(open.copy).unwrap_or(false);
    let queues = look_into(open.copy, true).and_then(Result::ok);
    if packet || !queues.is_some_and(|queues| unopened::can_put(&queues)) {
        let why = "what was written to a master before anybody opened its slave is more than can be carried";
        return Err(open.refuse(why));
    }
    Ok(())
}

/// Status of packet mode that was not read yet; None when there is some that cannot be known.
fn unread_status(master: &OwnedFd) -> Option<u8> {
    let some = PollFlags::POLLPRI;
    if !tty::packet_mode(master).unwrap_or(false) || !polled(master, some).contains(some) {
        return Some(0);
    }
    kernel::look(|kernel| kernel.packet_status(master.as_fd())).ok()
}

fn polled(fd: &OwnedFd, what: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(fd.as_fd(), what)];
    // It fails for bad arguments only.
    let _ = poll(&mut polled, PollTimeout::ZERO);
    polled[0].revents().unwrap_or(PollFlags::empty())
}

/// A process and its controlling terminal.
struct Member {
    pid: Pid,
    session: Pid,
    /// Device number, 0 for none.
    terminal: u64,
    foreground: Pid,
}

/// A terminal that has been met.
#[derive(Clone, Copy)]
struct Met {
    rdev: u64,
    hung_up: bool,
    /// The process and number it was first seen by.
    by: (Pid, i32),
    master: Option<DescriptionId>,
    /// Whether a slave is open.
    slave: bool,
}

/// The terminals found so far, each once however many descriptions are open on it.
#[derive(Default)]
pub(super) struct Terminals {
    members: Vec<Member>,
    met: Vec<Met>,
}

impl Terminals {
    pub(super) fn member(&mut self, pid: Pid, stat: &proc::Stat) {
        // Minor in bits 0..8 and 20..32, major in bits 8..20 (new_encode_dev).
        let device = stat.field(7).cast_unsigned();
        let minor = device & 0xff | (device >> 12) & 0xf_ff00;
        self.members.push(Member {
            pid,
            session: stat.pid(6),
            terminal: makedev((device >> 8) & 0xfff, minor),
            foreground: stat.pid(8),
        });
    }

    /// Notes a description of a terminal.
    pub(super) fn capture(
        &mut self,
        open: &Open<'_>,
        id: DescriptionId,
    ) -> Result<DescriptionKind, FreezerError> {
        let by = (open.pid, open.fd);
        let path = open.link.to_vec();
        if open.stat.st_rdev == MULTIPLEXER {
            let doing = "asking for the pair's index";
            let index = tty::pty_index(open.copy).map_err(open.call(doing))?;
            let terminal = self.meet(slave_rdev(index), false, by);
            self.met[terminal.0 as usize].master = Some(id);
            return Ok(DescriptionKind::PtyMaster { terminal, path });
        }
        let (rdev, hung_up) = match tty::device(open.copy) {
            Ok(device) => (decode(device), false),
            Err(Errno::EIO) => (open.stat.st_rdev, true),
            Err(e) => return Err(open.call("asking for its device")(e)),
        };
        let terminal = self.meet(rdev, hung_up, by);
        self.met[terminal.0 as usize].slave = true;
        Ok(DescriptionKind::Terminal {
            terminal,
            path: path.strip_suffix(path::DELETED).unwrap_or(&path).to_vec(),
            hung_up,
        })
    }

    fn meet(&mut self, rdev: u64, hung_up: bool, by: (Pid, i32)) -> TerminalId {
        let same = |met: &Met| met.rdev == rdev && met.hung_up == hung_up;
        let index = self.met.iter().position(same).unwrap_or_else(|| {
            self.met.push(Met {
                rdev,
                hung_up,
                by,
                master: None,
                slave: false,
            });
            self.met.len() - 1
        });
        TerminalId(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

fn slave_rdev(index: u32) -> u64 {
    makedev(SLAVES, u64::from(index))
}

/// A device number as ioctls give it (new_encode_dev).
fn decode(device: u32) -> u64 {
    let device = u64::from(device);
    makedev(
        (device >> 8) & 0xfff,
        device & 0xff | (device >> 12) & 0xf_ff00,
    )
}

/// Describes every terminal.
pub(super) fn finish(
    mut found: Terminals,
    copies: &BTreeMap<DescriptionId, OwnedFd>,
) -> Result<Vec<Terminal>, FreezerError> {
    // A session may have a terminal that nobody has open any more.
    let leaders = found
        .members
        .iter()
        .filter(|m| m.pid == m.session && m.terminal != 0);
    let held: Vec<(u64, Pid)> = leaders.map(|m| (m.terminal, m.pid)).collect();
    for (rdev, pid) in held {
        found.meet(rdev, false, (pid, -1));
    }
    let describe = |(index, met): (usize, &Met)| {
        let id = TerminalId(u32::try_from(index).unwrap_or(u32::MAX));
        if met.hung_up {
            return Ok(hung_up(id, met));
        }
        let master = met.master.and_then(|id| copies.get(&id));
        let mut terminal = one(id, met, master)?;
        let leader = found
            .members
            .iter()
            .find(|m| m.pid == m.session && m.terminal == met.rdev);
        if let Some(leader) = leader {
            terminal.session = Some(leader.pid);
            terminal.foreground = (leader.foreground.0 > 0).then_some(leader.foreground);
            let without = found.members.iter();
            let without = without.filter(|m| m.session == leader.pid && m.terminal == 0);
            terminal.without = without.map(|m| m.pid).collect();
        }
        Ok(terminal)
    };
    found.met.iter().enumerate().map(describe).collect()
}

fn hung_up(id: TerminalId, met: &Met) -> Terminal {
    Terminal {
        id,
        rdev: met.rdev,
        path: format!("/dev/pts/{}", minor(met.rdev)).into_bytes(),
        node: (0, 0, 0),
        termios: Termios::default(),
        locked: Locked::default(),
        winsize: Winsize::default(),
        exclusive: false,
        queues: Queues::default(),
        pty: None,
        session: None,
        foreground: None,
        without: Vec::new(),
    }
}

fn one(id: TerminalId, met: &Met, master: Option<&OwnedFd>) -> Result<Terminal, FreezerError> {
    let (pid, fd) = met.by;
    let call = |doing: &str| FreezerError::call(pid, format!("fd {fd}: terminal: {doing}"));
    let slave_of_pty = major(met.rdev) == SLAVES;
    if slave_of_pty && master.is_none() {
        let index = minor(met.rdev);
        return Err(elsewhere::master_elsewhere(pid, fd, index, None));
    }
    let path = node_path(met.rdev).ok_or_else(|| {
        let why = "its terminal has no node in /dev";
        FreezerError::refuse(pid, format!("fd {fd}"), why)
    })?;
    let node = std::fs::metadata(&path).map_err(|cause| FreezerError::Proc {
        pid,
        what: path.display().to_string(),
        cause,
    })?;
    // Before a slave is opened here, which the master would show.
    let pty = master.map(|master| pty(met, master)).transpose();
    let pty = pty.map_err(call("asking its master"))?;
    let own = match master {
        // To open a slave that nobody has opened yet would be noticed by its master.
        Some(master) if never_opened(met, master) => None,
        Some(master) => Some(open_slave(master).map_err(call("opening its slave"))?),
        None => Some(open_node(&path).map_err(call("opening it"))?),
    };
    let any = own
        .as_ref()
        .or(master)
        .ok_or(Errno::EIO)
        .map_err(call("opening it"))?;
    let terminal = Terminal {
        id,
        rdev: met.rdev,
        path: path.as_os_str().as_bytes().to_vec(),
        node: (node.uid(), node.gid(), node.mode() & 0o7777),
        termios: tty::termios(any).map_err(call("asking for its settings"))?,
        locked: tty::locked_settings(any).map_err(call("asking for its locked settings"))?,
        winsize: tty::winsize(any).map_err(call("asking for its size"))?,
        // A master says it of itself.
        exclusive: match &own {
            Some(own) => tty::exclusive(own).map_err(call("asking for exclusive mode"))?,
            None => false,
        },
        pty,
        queues: match own {
            Some(slave) => {
                let status = pty.as_ref().map_or(0, |pty| pty.status);
                let seen = master.and_then(|_| look_into(&slave, false));
                let read = seen.unwrap_or_else(|| copy_queues(&slave, master, status));
                read.map_err(call("reading its queues"))?
            }
            None => {
                let seen = master.and_then(|master| look_into(master, true));
                let read = seen.unwrap_or_else(|| Ok(Queues::default()));
                read.map_err(call("reading its queues"))?
            }
        },
        session: None,
        foreground: None,
        without: Vec::new(),
    };
    Ok(terminal)
}

fn never_opened(met: &Met, master: &OwnedFd) -> bool {
    !met.slave && !polled(master, PollFlags::POLLIN).contains(PollFlags::POLLHUP)
}

fn pty(met: &Met, master: &OwnedFd) -> sys::Result<Pty> {
    Ok(Pty {
        index: tty::pty_index(master)?,
        locked: tty::locked(master)?,
        packet: tty::packet_mode(master)?,
        status: unread_status(master).ok_or(Errno::EAGAIN)?,
        exclusive: tty::exclusive(master)?,
        slave_closed: !met.slave && !never_opened(met, master),
    })
}

/// A description of our own, which a lock does not stop.
fn open_slave(master: &OwnedFd) -> sys::Result<OwnedFd> {
    const FLAGS: i32 = OFlag::O_RDWR.bits() | OFlag::O_NONBLOCK.bits();
    if !tty::locked(master)? {
        return tty::peer(master, FLAGS);
    }
    tty::set_locked(master, false)?;
    let slave = tty::peer(master, FLAGS);
    tty::set_locked(master, true)?;
    slave
}

fn open_node(path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// The node of a terminal's device.
fn node_path(rdev: u64) -> Option<PathBuf> {
    if major(rdev) == SLAVES {
        return Some(PathBuf::from(format!("/dev/pts/{}", minor(rdev))));
    }
    let told = format!("/sys/dev/char/{}:{}/uevent", major(rdev), minor(rdev));
    let told = std::fs::read(told).ok()?;
    let mut lines = told.split(|b| *b == b'\n');
    let name = lines.find_map(|line| line.strip_prefix(b"DEVNAME="))?;
    Some(Path::new("/dev").join(OsStr::from_bytes(name)))
}

/// What is queued in a pseudo terminal, from the kernel's memory: nobody is the wiser, and lines that wait for room
/// are not echoed. None where that cannot be read.
///
/// The kernel may be passing something on, from one place to the next: two looks must see the same.
fn look_into(end: &OwnedFd, is_master: bool) -> Option<sys::Result<Queues>> {
    /// How long that may take.
    const SETTLE: Duration = Duration::from_millis(500);
    let canonical = queues::is_canonical(&tty::termios(end).ok()?);
    let until = Instant::now() + SETTLE;
    let mut before = None;
    loop {
        let found = kernel::look(|kernel| match is_master {
            true => kernel.pty_queues_by_master(end.as_fd(), canonical),
            false => kernel.pty_queues(end.as_fd(), canonical),
        });
        let found = match found {
            Err(Unreadable::Inconsistent(_)) => None,
            found => Some(found.ok()?),
        };
        if let Some(found) = found.as_ref().filter(|found| !found.moving)
            && before.as_ref() == Some(found)
        {
            return Some(Ok(found.queues.clone()));
        }
        if Instant::now() > until {
            return Some(Err(Errno::EAGAIN));
        }
        if found.as_ref().is_none_or(|found| found.moving) {
            std::thread::sleep(Duration::from_millis(1));
        }
        before = found;
    }
}

/// Reads what is queued and puts it back at once. A child does it, in a session without a terminal, and
/// would bring it to its end if this process were killed meanwhile.
fn copy_queues(slave: &OwnedFd, master: Option<&OwnedFd>, status: u8) -> sys::Result<Queues> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
    let child = sys::process::spawn(0, &[], || {
        let sent = SigSet::all()
            .thread_block()
            .and_then(|()| nix::unistd::setsid())
            .and_then(|_| take_and_put_back(slave, master, status));
        let sent = sent.and_then(|found| encode(&found, &writer));
        sent.map_or_else(|errno| errno as i32, |()| 0)
    })?;
    drop(writer);
    let mut bytes = Vec::new();
    let read = File::from(reader).read_to_end(&mut bytes);
    match sys::wait::wait_for(child.leader())? {
        sys::wait::Status::Exited(0) => {}
        sys::wait::Status::Exited(code) => return Err(Errno::from_raw(code)),
        _ => return Err(Errno::ECHILD),
    }
    read.map_err(|_| Errno::EIO)?;
    decode_queues(&bytes).ok_or(Errno::EIO)
}

fn take_and_put_back(slave: &OwnedFd, master: Option<&OwnedFd>, status: u8) -> sys::Result<Queues> {
    // In packet mode what is read begins with a byte of status, and changes of settings are status.
    let packet = master.filter(|master| tty::packet_mode(*master).unwrap_or(false));
    let ends = Ends { slave, master };
    let Some(master) = packet else {
        let found = queues::take(ends)?;
        return queues::put(ends, &found).map(|()| found);
    };
    tty::set_packet_mode(master, false)?;
    let done = queues::take(ends).and_then(|found| {
        let raised = Raised::before(ends, status, &found)?;
        queues::put(ends, &found)?;
        raised.after(&tty::termios(slave)?).map(|()| found)
    });
    if done.is_err() {
        tty::set_packet_mode(master, true)?;
    }
    done
}

/// Byte strings with their lengths: the flags, output, rest, what is behind it, then every line.
fn encode(queues: &Queues, to: &OwnedFd) -> sys::Result<()> {
    let flag = [u8::from(queues.stopped) + 2 * u8::from(queues.held)];
    let parts = [&flag[..], &queues.output, &queues.rest, &queues.behind];
    let parts = parts
        .into_iter()
        .chain(queues.lines.iter().map(Vec::as_slice));
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let mut file = File::from(to.try_clone().map_err(|_| Errno::EMFILE)?);
    file.write_all(&bytes).map_err(|_| Errno::EIO)
}

fn decode_queues(mut bytes: &[u8]) -> Option<Queues> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<8>() {
        let (part, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        parts.push(part.to_vec());
        bytes = rest;
    }
    let mut parts = parts.into_iter();
    let flag = parts.next()?.first().copied()?;
    Some(Queues {
        stopped: flag & 1 != 0,
        held: flag & 2 != 0,
        output: parts.next()?,
        rest: parts.next()?,
        behind: parts.next()?,
        lines: parts.collect(),
        echo: Vec::new(),
        literal: false,
        columns: (0, 0),
    })
}
