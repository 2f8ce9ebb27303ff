//! What ties processes together by their descriptors: ends of pipes, sockets, FIFOs and terminals; pidfds; and what
//! several hold alike and has no other end: tunnels, eventfds, rings of io_uring.

use super::{O_PATH, Open, apart, pidfd};
use crate::proc::{self, FdInfo, Links};
use nix::sys::stat::SFlag;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use sys::Pid;

/// A thing that processes may hold an end of, or hold alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum End {
    /// A pipe by its inode: both ends have the same.
    Pipe(u64),
    /// A socket by its inode: its peer has another.
    Socket(u64),
    /// A FIFO by device and inode.
    Fifo(u64, u64),
    /// The master of the pseudo terminal with this index.
    Master(u64),
    /// Its slave.
    Slave(u64),
    /// A pidfd of this process.
    Process(Pid),
    /// An interface of `/dev/net/tun`, by its name.
    Tunnel([u8; 16]),
    /// An eventfd, by the id that its fdinfo tells.
    Event(u64),
    /// A ring of io_uring by its inode.
    Ring(u64),
}

/// The ends that a tree holds, each with one process and descriptor that has it.
pub(crate) type Ours = BTreeMap<End, (Pid, i32)>;

impl core::fmt::Display for End {
    /// Pipes and sockets as links of `/proc/PID/fd` name them.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            End::Pipe(inode) => write!(f, "pipe:[{inode}]"),
            End::Socket(inode) => write!(f, "socket:[{inode}]"),
            End::Fifo(device, inode) => write!(f, "FIFO {device:x}:{inode}"),
            End::Master(index) => write!(f, "the master of /dev/pts/{index}"),
            End::Slave(index) => write!(f, "/dev/pts/{index}"),
            End::Process(pid) => write!(f, "process {pid}"),
            End::Event(id) => write!(f, "the eventfd {id}"),
            End::Ring(_) => write!(f, "anon_inode:[io_uring]"),
            End::Tunnel(name) => write!(f, "the tunnel {}", String::from_utf8_lossy(name)),
        }
    }
}

/// What a link of `/proc/PID/fd` tells.
enum Told {
    End(End),
    /// A pidfd, a master, a tunnel, an eventfd or a ring: fdinfo tells which.
    Pidfd,
    Event,
    Ring,
    Master,
    Tunnel,
    /// A file, which may be a FIFO.
    File,
    Nothing,
}

impl Told {
    fn by(link: &[u8]) -> Told {
        let text = String::from_utf8_lossy(link);
        if text.starts_with("pidfd:") || text == "anon_inode:[pidfd]" {
            return Told::Pidfd;
        }
        if text == "anon_inode:[eventfd]" {
            return Told::Event;
        }
        if text == "anon_inode:[io_uring]" {
            return Told::Ring;
        }
        if !text.starts_with('/') {
            return parse(&text).map_or(Told::Nothing, Told::End);
        }
        let slave = text.strip_prefix("/dev/pts/").map(str::parse);
        match slave {
            Some(Ok(index)) => Told::End(End::Slave(index)),
            _ if text.ends_with("ptmx") => Told::Master,
            _ if text.ends_with("/tun") => Told::Tunnel,
            _ => Told::File,
        }
    }
}

/// `pipe:[INODE]` or `socket:[INODE]`.
fn parse(text: &str) -> Option<End> {
    let (kind, inode) = text.strip_suffix(']')?.split_once(":[")?;
    let inode = inode.parse().ok()?;
    match kind {
        "pipe" => Some(End::Pipe(inode)),
        "socket" => Some(End::Socket(inode)),
        _ => None,
    }
}

fn by_info(told: &Told, info: &FdInfo) -> Option<End> {
    match told {
        Told::Pidfd => {
            let target = pidfd::target(info)?;
            target.map(|target| End::Process(pidfd::process_of(info, target)))
        }
        Told::Tunnel => tunnel(info),
        Told::Event => info.number("eventfd-id", 10).map(End::Event),
        Told::Ring => info.number("ino", 10).map(End::Ring),
        _ => info.number("tty-index", 10).map(End::Master),
    }
}

/// The interface it is open on, if any.
fn tunnel(info: &FdInfo) -> Option<End> {
    let name = info.value("iff")?.as_bytes();
    let mut padded = [0; 16];
    padded.get_mut(..name.len())?.copy_from_slice(name);
    (!name.is_empty()).then_some(End::Tunnel(padded))
}

/// The inode in a link of `/proc/PID/fd`, when it is a socket.
pub(crate) fn socket_inode(link: &[u8]) -> Option<u64> {
    match Told::by(link) {
        Told::End(End::Socket(inode)) => Some(inode),
        _ => None,
    }
}

/// What an open file of a tree is an end of.
pub(super) fn of_open(open: &Open<'_>) -> Option<End> {
    match Told::by(open.link) {
        Told::End(end) => Some(end),
        Told::Nothing => None,
        told @ (Told::Pidfd | Told::Master | Told::Tunnel | Told::Event | Told::Ring) => {
            by_info(&told, open.info)
        }
        Told::File => {
            let path = open.info.number("flags", 8)? & u64::from(O_PATH) != 0;
            // Only who has it open, or refers to it, leads to one that is removed.
            let leads = !path || open.stat.st_nlink == 0;
            let fifo = open.file_type() == SFlag::S_IFIFO && leads;
            fifo.then_some(End::Fifo(open.stat.st_dev, open.stat.st_ino))
        }
    }
}

/// The ends a process holds; none when it has ended.
pub(crate) fn of(pid: Pid) -> Vec<(i32, End)> {
    let Ok(links) = Links::open(pid) else {
        return Vec::new();
    };
    let end = |fd: i32| {
        let link = links.read(fd).ok()?;
        match Told::by(&link) {
            Told::End(end) => Some((fd, end)),
            Told::Nothing => None,
            told @ (Told::Pidfd | Told::Master | Told::Tunnel | Told::Event | Told::Ring) => {
                Some((fd, by_info(&told, &FdInfo::read(pid, fd).ok()?)?))
            }
            Told::File => Some((fd, fifo(pid, fd, &link)?)),
        }
    };
    links.numbers().iter().filter_map(|fd| end(*fd)).collect()
}

fn fifo(pid: Pid, fd: i32, link: &[u8]) -> Option<End> {
    // What most programs have, and never a FIFO.
    if link == b"/dev/null" {
        return None;
    }
    let file = proc::metadata(pid, &format!("fd/{fd}")).ok()?;
    let opened = || FdInfo::read(pid, fd).ok()?.number("flags", 8);
    (file.file_type().is_fifo() && opened()? & u64::from(O_PATH) == 0)
        .then(|| End::Fifo(file.dev(), file.ino()))
}

/// The ends that the processes of a tree hold.
pub(crate) fn of_tree(inside: &[Pid]) -> Ours {
    let mut ours = Ours::new();
    for pid in inside.iter().flat_map(|pid| apart::tables_of(*pid)) {
        for (fd, end) in of(pid) {
            ours.entry(end).or_insert((pid, fd));
        }
    }
    ours
}

/// `fd 3 (/dev/pts/1)`, for messages.
pub(super) fn resource(pid: Pid, fd: i32) -> String {
    let link = proc::link(pid, &format!("fd/{fd}")).unwrap_or_default();
    format!("fd {fd} ({})", String::from_utf8_lossy(&link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_proc() {
        assert_eq!(parse("pipe:[12]"), Some(End::Pipe(12)));
        assert_eq!(parse("socket:[9]"), Some(End::Socket(9)));
        assert_eq!(parse("anon_inode:[eventfd]"), None);
        assert!(matches!(Told::by(b"/tmp/pipe:[12]"), Told::File));
        assert!(matches!(Told::by(b"/dev/pts/3"), Told::End(End::Slave(3))));
        assert!(matches!(Told::by(b"/dev/pts/ptmx"), Told::Master));
    }

    #[test]
    fn what_this_process_holds_is_found() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let me = Pid(std::process::id().cast_signed());
        let inode = std::fs::metadata(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&reader)
        ));
        let end = End::Pipe(inode.unwrap().ino());
        assert!(of(me).iter().any(|(_, found)| *found == end));
        assert!(of_tree(&[me]).contains_key(&end));
    }
}
