//! Files and open file descriptions.

use super::FileTime;
use super::{Layer, PageRange, Ring, Socket};
use serde::{Deserialize, Serialize};
use sys::Pid;
use sys::bpf_map::Shape;
use sys::handle::Handle;
use sys::tty::queues::Queues;
use sys::tty::{Locked, Termios, Winsize};

pub use sys::files::SignalOwner;

/// A file of a file system that outlives the upgrade, by path and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct FileRef {
    /// Absolute path, bytes as the kernel has them.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Inode number: a path that leads to another inode later is another file. 0 where numbers do not
    /// last.
    pub inode: u64,
    /// Size in bytes, to notice a file that was changed in between.
    pub size: u64,
}

impl core::fmt::Display for FileRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        String::from_utf8_lossy(&self.path).fmt(f)
    }
}

/// Names an open file description within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DescriptionId(pub u32);

/// Names a pipe within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PipeId(pub u32);

/// An open file description (open(2)): what descriptors made by dup and fork share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its name.
    pub id: DescriptionId,
    /// Access mode and status flags (`F_GETFL`).
    pub flags: u32,
    /// File offset.
    pub pos: u64,
    /// How many entries of a directory have not been read, where an offset in it means something else to another
    /// kernel.
    pub unread: Option<u32>,
    /// Who gets SIGIO (`F_SETOWN_EX`), None when nobody.
    pub owner: Option<SignalOwner>,
    /// How long data of its file is expected to live (`F_GET_RW_HINT`), 0 when nobody has said.
    pub hint: u64,
    /// What Landlock denies with it (`LANDLOCK_ACCESS_FS_*`), since it was opened in a domain.
    pub denied: u64,
    /// What is open.
    pub kind: DescriptionKind,
}

/// Permission bits and owner of a node that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOwner {
    /// `st_mode` without the type.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

/// What a removed name without contents stood for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoneNode {
    /// A symbolic link to this.
    Link(Vec<u8>),
    /// A device: `S_IFMT` of its mode, and its number.
    Device {
        /// `S_IFCHR` or `S_IFBLK`.
        kind: u32,
        /// Its number.
        rdev: u64,
    },
}

/// What a description is open on. Each variant has one module in `freezer::files` and one in
/// `resurrect::files`, named alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionKind {
    /// Not carried: the restorer has a replacement under this number.
    External {
        /// The number.
        number: i32,
    },
    /// A regular file or directory that still has its path; with `O_PATH`, whatever is there.
    Path(FileRef),
    /// A file whose path leads elsewhere by now, while another name of it exists.
    Handle {
        /// The path it was opened by.
        file: FileRef,
        /// Another path of it, when one was found.
        link: Option<Vec<u8>>,
        /// Its handle, when its file system has handles that outlive a reboot.
        handle: Option<Handle>,
        /// A directory on the same mount.
        mount: Vec<u8>,
        /// The path is a name that was removed: `/proc/PID/fd/FD` says so.
        unlinked: bool,
    },
    /// A directory that has been removed.
    Removed(RemovedId),
    /// A file that the kernel makes up (`/proc`, `/sys`, control groups): the path is all there is.
    Pseudo {
        /// Its path.
        path: Vec<u8>,
        /// Its reader has seen its last change: poll(2) says nothing (`POLLPRI`).
        seen: bool,
        /// Of a file of pressure: what poll(2) tells of.
        trigger: Option<PressureTrigger>,
    },
    /// A character device that has no state of its own, opened again by path.
    Device {
        /// Its path.
        path: Vec<u8>,
        /// Its device number.
        rdev: u64,
        /// Of a node that has been removed.
        removed: Option<NodeOwner>,
    },
    /// A reference (`O_PATH`) to a symbolic link or a device that has been removed.
    Gone {
        /// Its old path.
        path: Vec<u8>,
        /// What it was.
        node: GoneNode,
        /// Whose it was.
        owner: NodeOwner,
    },
    /// A POSIX message queue.
    MessageQueue {
        /// [`super::PosixQueue::id`].
        queue: u32,
    },
    /// A memfd.
    Memfd {
        /// [`super::SharedObject::id`].
        object: u32,
    },
    /// A regular file that has been removed or replaced on disk.
    Deleted {
        /// [`super::SharedObject::id`].
        object: u32,
    },
    /// `/dev/kmsg`, opened for reading.
    Kmsg {
        /// Its path.
        path: Vec<u8>,
        /// Number of the next record.
        next: u64,
        /// `/proc/sys/kernel/random/boot_id`: another kernel's log begins again.
        boot: String,
    },
    /// One end of a pipe; the access mode says which.
    Pipe(PipeId),
    /// A named pipe, opened by its path.
    Fifo {
        /// Its buffer.
        pipe: PipeId,
        /// Its node.
        file: FileRef,
        /// Permission bits of a node that has been removed since; its path is the one it had.
        removed: Option<u32>,
        /// Another name of a node whose path has been removed.
        other: Option<Vec<u8>>,
        /// Whether a reader sees that all writers are gone (poll(2), `POLLHUP`).
        hung_up: bool,
    },
    /// A terminal opened by one of its nodes.
    Terminal {
        /// Which one.
        terminal: TerminalId,
        /// The node: `/dev/pts/3`, `/dev/ttyS0`, or a name for it such as `/dev/tty`.
        path: Vec<u8>,
        /// Whether it was hung up: reads give the end of the file, everything else `EIO`.
        hung_up: bool,
    },
    /// The master of a pseudo terminal.
    PtyMaster {
        /// The pair.
        terminal: TerminalId,
        /// The multiplexer's node, `/dev/ptmx` as a rule.
        path: Vec<u8>,
    },
    /// eventfd(2).
    EventFd {
        /// The counter.
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// signalfd(2): the signals it takes (bit n-1 for signal n).
    SignalFd {
        /// The mask.
        mask: u64,
    },
    /// timerfd_create(2).
    TimerFd {
        /// The clock.
        clock: i32,
        /// Settings flags as fdinfo shows them (octal there).
        settime_flags: u32,
        /// Expirations not read yet.
        ticks: u64,
        /// Time to the next expiry, as fdinfo shows it (`it_value`), nanoseconds; 0 when disarmed.
        value: u64,
        /// Period in nanoseconds.
        interval: u64,
        /// CLOCK_MONOTONIC when this was read, nanoseconds.
        read_at: i64,
    },
    /// inotify_init(2).
    Inotify {
        /// What it watches, in ascending order of their numbers.
        watches: Vec<Watch>,
        /// From which number on the next watch's is looked for, where that is known.
        next: Option<i32>,
        /// Events that were not read, the oldest first.
        unread: Vec<WatchEvent>,
        /// The user who made it, whose limits it counts for.
        creator: u32,
    },
    /// fanotify_init(2), for notification only.
    Fanotify {
        /// Flags of the group.
        flags: u32,
        /// Flags of the descriptors that its events bring.
        event_flags: u32,
        /// What it watches.
        marks: Vec<Mark>,
        /// The user who made it, whose limits it counts for.
        creator: u32,
    },
    /// pidfd_open(2); None for a process that is gone.
    PidFd {
        /// The process or, with `PIDFD_THREAD`, thread.
        target: Option<Pid>,
        /// Tells apart those that are gone: equal for descriptors of the same process, where the
        /// kernel tells.
        identity: u64,
    },
    /// epoll_create(2) with what it watches, in the order the kernel lists it.
    Epoll {
        /// The interest list.
        targets: Vec<EpollTarget>,
        /// `struct epoll_params` (`EPIOCGPARAMS`, Linux 6.9), None where nothing is set.
        busy_poll: Option<[u8; 8]>,
    },
    /// `/dev/net/tun`.
    Tunnel {
        /// Its path.
        path: Vec<u8>,
        /// [`super::Tunnel::name`], None when it was not attached to an interface yet (`TUNSETIFF`).
        interface: Option<String>,
        /// It takes no part at present (`IFF_DETACH_QUEUE`).
        detached: bool,
        /// Packets that were sent through the interface and not read yet.
        unread: Vec<Vec<u8>>,
    },
    /// A map of BPF.
    BpfMap(Box<BpfMap>),
    /// userfaultfd(2).
    Userfault(Userfault),
    /// A listener of seccomp (seccomp_unotify(2)).
    SeccompListener {
        /// [`super::FilterListener::filter`].
        filter: u64,
    },
    /// landlock_create_ruleset(2).
    Ruleset(Layer),
    /// io_uring_setup(2).
    Ring(Box<Ring>),
    /// socket(2), whatever its family.
    Socket(Box<Socket>),
}

/// A map of BPF (bpf(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpfMap {
    /// What it was made with.
    pub shape: Shape,
    /// User space may not change it any more (`BPF_MAP_FREEZE`).
    pub frozen: bool,
    /// Keys and values.
    pub elements: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What userfaultfd(2) has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Userfault {
    /// A process whose memory it is for.
    pub owner: Pid,
    /// `UFFD_USER_MODE_ONLY`.
    pub user_only: bool,
    /// `UFFD_FEATURE_*` that were asked for, None before that (`UFFDIO_API`).
    pub features: Option<u64>,
    /// Where faults are told of.
    pub ranges: Vec<FaultRange>,
    /// Pages there that are known to be zeros: a fault there was answered.
    pub zeros: Vec<PageRange>,
    /// Pages there whose writes are told of (`UFFDIO_WRITEPROTECT`).
    pub protected: Vec<PageRange>,
}

/// Memory whose faults are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `UFFDIO_REGISTER_MODE_*`: of which faults.
    pub modes: u64,
}

/// What was written to a file of pressure (Documentation/accounting/psi.rst). Its text is what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureTrigger {
    /// `full`, not `some`.
    pub full: bool,
    /// How long tasks must wait in a window, in microseconds.
    pub threshold: u32,
    /// The window in microseconds.
    pub window: u32,
}

impl core::fmt::Display for PressureTrigger {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let what = if self.full { "full" } else { "some" };
        write!(f, "{what} {} {}", self.threshold, self.window)
    }
}

/// An entry of an epoll interest list (`tfd:` lines of fdinfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The descriptor number it was registered with.
    pub fd: i32,
    /// What is watched. The number may be closed since, or be another description's.
    pub description: DescriptionId,
    /// Event bits and flags.
    pub events: u32,
    /// The user's data.
    pub data: u64,
    /// Its place among those whose readiness is to be told, which are told in that order. Of an entry with
    /// `EPOLLET` that may not be known; told twice does less harm than never.
    pub pending: Option<u32>,
}

/// A pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its name.
    pub id: PipeId,
    /// Its size (`F_GETPIPE_SZ`).
    pub capacity: u32,
    /// What is in it and not read yet.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The buffers that the data is in; none for a stream of bytes in buffers that are not known.
    pub buffers: Vec<PipeBuffer>,
    /// User and group that own it.
    pub owner: (u32, u32),
    /// Permission bits (fchmod(2)).
    pub mode: u32,
}

/// A buffer of a pipe. How many there are, and what the last one has room for, decides what can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeBuffer {
    /// Where in its page its bytes begin.
    pub offset: u32,
    /// Number of its bytes.
    pub len: u32,
    /// It is read alone (`O_DIRECT`).
    pub packet: bool,
    /// What is written next is added to it while its page has room.
    pub grows: bool,
}

/// Names a terminal within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TerminalId(pub u32);

/// A terminal, whoever has it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its name.
    pub id: TerminalId,
    /// Its device number (`TIOCGDEV`).
    pub rdev: u64,
    /// Its node.
    pub path: Vec<u8>,
    /// Owner, group and mode of the node.
    pub node: (u32, u32, u32),
    /// Its settings.
    pub termios: Termios,
    /// Those of its settings that are locked (`TIOCSLCKTRMIOS`).
    pub locked: Locked,
    /// Its size.
    pub winsize: Winsize,
    /// `TIOCEXCL`.
    pub exclusive: bool,
    /// What was not read yet on either side.
    pub queues: Queues,
    /// The pair it is the slave of.
    pub pty: Option<Pty>,
    /// The session whose controlling terminal it is.
    pub session: Option<Pid>,
    /// Its foreground group.
    pub foreground: Option<Pid>,
    /// Members of that session that have no controlling terminal (`TIOCNOTTY`).
    pub without: Vec<Pid>,
}

/// The master's side of a pseudo terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// Index of the pair.
    pub index: u32,
    /// Whether the slave cannot be opened yet (unlockpt(3)).
    pub locked: bool,
    /// `TIOCPKT`.
    pub packet: bool,
    /// Status of packet mode that was not read yet (`TIOCPKT_*`).
    pub status: u8,
    /// Exclusive mode of the master (`TIOCGEXCL`), which its slave has apart.
    pub exclusive: bool,
    /// Whether the slave was open before and is not now: the master's reads give `EIO`.
    pub slave_closed: bool,
}

/// Names a removed directory within a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RemovedId(pub u32);

/// A directory that was removed while it was open. It is empty, and stays so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedDirectory {
    /// Its name here.
    pub id: RemovedId,
    /// The path it had, without the kernel's ` (deleted)`.
    pub path: Vec<u8>,
    /// What it was in, where that has been removed as well. That stands before it in the manifest.
    pub within: Option<RemovedId>,
    /// `st_mode`.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Access and modification times.
    pub times: (FileTime, FileTime),
}

impl RemovedDirectory {
    /// Mode of removed directories that stand above one only to have its path read as it did: not what it was in.
    pub const MADE_UP: u32 = 0o3000;
}

/// A watch of inotify(7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// `IN_*` bits, with `IN_ONESHOT` and `IN_EXCL_UNLINK`.
    pub mask: u32,
    /// What it watches.
    pub place: Place,
}

/// An event of inotify(7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Number of its watch, which may have ended since.
    pub number: i32,
    /// `IN_*` bits.
    pub mask: u32,
    /// What the two events of a move have in common.
    pub cookie: u32,
    /// Name in the directory that is watched, or nothing.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

/// A mark of fanotify(7) on a file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// `FAN_*` bits of events that are told.
    pub mask: u32,
    /// `FAN_*` bits of events that are not.
    pub ignored: u32,
    /// `FAN_MARK_*` flags of the mark.
    pub flags: u32,
    /// What it watches.
    pub place: Place,
}

/// Where an inode is found that nobody has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// A path of what is watched, when one leads there.
    pub path: Option<Vec<u8>>,
    /// Its inode.
    pub inode: u64,
    /// Its handle.
    pub handle: Option<Handle>,
    /// A directory on the same file system.
    pub mount: Vec<u8>,
    /// A description of it, when it has been removed.
    pub open: Option<DescriptionId>,
    /// Nothing leads to it any more, nor ever will: procfs has forgotten it, and makes another inode for who asks for
    /// the file again.
    pub forgotten: bool,
}

impl Place {
    /// It has no name any more: only who has it open leads to it.
    #[must_use]
    pub fn removed(&self) -> bool {
        self.path.is_none() && self.handle.is_none() && !self.forgotten
    }
}

/// A lock or lease of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Who holds it.
    pub holder: LockHolder,
    /// Whether it excludes other readers.
    pub write: bool,
    /// First byte and first byte behind it (None: the end of the file, wherever that is).
    pub range: (u64, Option<u64>),
    /// The process that took it, which may have let go of the file or ended since.
    pub taker: Pid,
}

/// What a process has asked to be told of a directory (fcntl(2), `F_NOTIFY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The process, or the thread with a descriptor table of its own, whose descriptor it is.
    pub pid: Pid,
    /// The descriptor it asked by, which the signal tells.
    pub fd: i32,
    /// `DN_*` bits of events that are still to come.
    pub events: u32,
}

/// Who holds a lock: the interfaces differ in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockHolder {
    /// flock(2): a description.
    Whole(DescriptionId),
    /// `F_OFD_SETLK`: a description.
    Ofd(DescriptionId),
    /// `F_SETLK`: a process, through any descriptor of the file.
    Process {
        /// The process, or the thread that has descriptors of its own ([`super::FileTable::shown_as`]).
        pid: Pid,
        /// One of its descriptors of the file.
        fd: i32,
    },
    /// `F_SETLEASE`: a description.
    Lease(DescriptionId),
    /// flock(2): the description of a mapping, which no descriptor leads to any more.
    Mapping {
        /// The process.
        pid: Pid,
        /// Where the mapping begins.
        start: u64,
    },
}
