//! Descriptors, apart from sockets and terminals.

pub(crate) mod aio;
mod bpf_map;
mod devices;
mod directory;
mod dnotify;
pub(crate) mod epoll;
mod event;
mod fanotify;
mod fifo;
mod in_memory;
pub(crate) mod inotify;
mod locks;
mod many;
mod ownership;
mod pidfd;
mod pipe;
mod pressure;
mod proc;
mod regular;
mod removed;
mod sharing;
mod signalfd;
mod tunnel;
mod uring;
mod userfault;
mod watchers;

use crate::registry::{Group, subject};

/// Descriptors.
pub(crate) const GROUP: Group = Group {
    name: "files",
    subjects: &[
        subject(
            "file",
            "regular files: offset, access mode, flags, close-on-exec",
            regular::start,
        ),
        subject("file-append", "O_APPEND", regular::append),
        subject("file-direct", "O_DIRECT, O_SYNC, O_NOATIME", regular::flags),
        subject("file-path", "O_PATH", regular::path),
        subject(
            "file-hints",
            "how long data of a file is expected to live (F_SET_RW_HINT)",
            regular::hints,
        ),
        subject(
            "file-path-link",
            "O_PATH of a symbolic link",
            regular::symlink,
        ),
        subject(
            "file-readonly-since",
            "a file opened for writing whose mode forbids it since",
            regular::mode,
        ),
        subject(
            "file-protected",
            "files that may not be changed, or only grow, since they were opened (chattr)",
            regular::protected,
        ),
        subject(
            "file-path-socket",
            "O_PATH of a socket's node",
            regular::socket,
        ),
        subject(
            "file-renamed",
            "a file that was renamed since",
            regular::renamed,
        ),
        subject(
            "file-replaced",
            "a file that was replaced by another of the same name",
            removed::replaced,
        ),
        subject(
            "removed",
            "a removed file with contents and offset",
            removed::start,
        ),
        subject(
            "removed-kept",
            "a removed file in a directory that keeps each name that it is given (chattr +a)",
            removed::kept,
        ),
        subject(
            "removed-nofollow",
            "O_NOFOLLOW of removed files",
            removed::nofollow,
        ),
        subject(
            "removed-linked",
            "a removed name of a file that has another one",
            removed::linked,
        ),
        subject(
            "removed-directory",
            "a removed directory",
            removed::directory,
        ),
        subject(
            "removed-directory-read",
            "a removed directory that has been read in part",
            removed::directory_read,
        ),
        subject("tmpfile", "O_TMPFILE", removed::tmpfile),
        subject(
            "tmpfile-exclusive",
            "O_TMPFILE that can or cannot be given a name",
            removed::tmpfile_exclusive,
        ),
        subject(
            "tmpfile-written",
            "O_TMPFILE with O_WRONLY",
            removed::tmpfile_written,
        ),
        subject(
            "tmpfile-named",
            "O_TMPFILE, given a name since",
            removed::tmpfile_named,
        ),
        subject(
            "removed-directory-replaced",
            "a removed directory whose name is another one's, also with O_PATH",
            removed::directory_replaced,
        ),
        subject(
            "removed-tree",
            "directories that were removed with what they were in",
            removed::tree,
        ),
        subject("tmpfs-removed", "a removed file on tmpfs", removed::tmpfs),
        subject(
            "dup",
            "descriptions shared by dup, with gaps between the numbers",
            sharing::dup,
        ),
        subject(
            "fork-shared",
            "descriptions shared with children",
            sharing::fork,
        ),
        subject(
            "passed",
            "descriptions shared by descriptors that were passed over a socket",
            sharing::passed,
        ),
        subject(
            "directory",
            "a directory with a read position",
            directory::start,
        ),
        subject(
            "tmpfs-directory",
            "a directory of tmpfs with a read position",
            directory::in_memory,
        ),
        subject(
            "tmpfs-numbers",
            "numbers of files and their order in directories of tmpfs",
            in_memory::numbers,
        ),
        subject("many-descriptors", "four thousand descriptors", many::start),
        subject(
            "many-kinds",
            "hundreds of descriptors of several kinds, with a gap",
            many::kinds,
        ),
        subject(
            "high-descriptor",
            "descriptors with high numbers",
            many::high,
        ),
        subject(
            "last-descriptor",
            "a descriptor with the last number that the limit allows",
            many::last,
        ),
        subject("pipe", "pipes with data", pipe::start),
        subject("pipe-size", "pipes of other sizes, full", pipe::size),
        subject(
            "pipe-room",
            "room in pipes after writes of odd sizes, reads, splice, vmsplice and tee",
            pipe::room,
        ),
        subject("pipe-reference", "O_PATH of a pipe", pipe::reference),
        subject("pipe-mode", "pipes with another owner and mode", pipe::mode),
        subject(
            "pipe-packets",
            "pipes in packet mode keep boundaries",
            pipe::packets,
        ),
        subject(
            "pipe-shared",
            "a pipe with several readers and writers",
            pipe::shared,
        ),
        subject(
            "pipe-widowed",
            "pipes whose other end is closed",
            pipe::widowed,
        ),
        subject("pipe-tee", "data that tee(2) has doubled", pipe::tee),
        subject("fifo", "FIFOs with data", fifo::start),
        subject(
            "fifo-both",
            "a FIFO open for reading and writing",
            fifo::both,
        ),
        subject(
            "fifo-reference",
            "O_PATH of FIFOs that were removed",
            fifo::reference,
        ),
        subject(
            "fifo-renamed",
            "a FIFO that has another name than it was opened by",
            fifo::renamed,
        ),
        subject(
            "fifo-names",
            "FIFOs opened by names that are gone, taken by others, or one of several",
            fifo::names,
        ),
        subject(
            "fifo-removed",
            "a FIFO whose node was removed",
            fifo::removed,
        ),
        subject("eventfd", "eventfd counters", event::start),
        subject("eventfd-semaphore", "EFD_SEMAPHORE", event::semaphore),
        subject(
            "signalfd",
            "signalfd with a mask and pending signals",
            signalfd::start,
        ),
        subject(
            "epoll-set",
            "epoll with level, edge, one-shot and exclusive entries",
            epoll::start,
        ),
        subject(
            "epoll-edges",
            "edges of epoll that were told, and that were not",
            epoll::edges,
        ),
        subject(
            "epoll-order",
            "the order in which epoll tells what is ready",
            epoll::order,
        ),
        subject(
            "epoll-edges-ended",
            "edges of epoll of a pipe that nobody reads and of a child that has ended",
            epoll::ended,
        ),
        subject(
            "epoll-edge-timed",
            "edges of a timerfd, told by epoll, that come while nobody runs",
            epoll::timed_edge,
        ),
        subject(
            "epoll-oneshot",
            "one-shot entries of epoll that have fired",
            epoll::oneshot,
        ),
        subject(
            "epoll-oneshot-pipes",
            "one-shot entries of epoll that have fired, for pipes that are empty or full since",
            epoll::oneshot_pipes,
        ),
        subject(
            "epoll-signals",
            "epoll of a signalfd with a pending signal",
            epoll::signals,
        ),
        subject("epoll-nested", "nested epoll", epoll::nested),
        subject(
            "epoll-dup",
            "an epoll entry whose number was closed and whose description lives",
            epoll::dup,
        ),
        subject(
            "epoll-many",
            "an epoll with thousands of entries",
            epoll::many,
        ),
        subject(
            "epoll-own-number",
            "an epoll that watches something under the number that it has itself by now",
            epoll::own_number,
        ),
        subject(
            "inotify",
            "inotify watches with gaps between their numbers",
            inotify::start,
        ),
        subject(
            "inotify-of-users",
            "more instances of inotify of several users than one may have",
            watchers::inotify,
        ),
        subject(
            "fanotify-of-users",
            "more groups of fanotify of several users than one may have",
            watchers::fanotify,
        ),
        subject(
            "inotify-removed",
            "an inotify watch of a removed file",
            inotify::removed,
        ),
        subject(
            "inotify-quiet",
            "a watched directory of sockets, FIFOs and removed directories: no event of an upgrade",
            inotify::quiet,
        ),
        subject(
            "inotify-made-up",
            "inotify watches of files of /proc and /sys",
            inotify::made_up,
        ),
        subject(
            "inotify-forgotten",
            "an inotify watch of a file of /proc of a process that has ended",
            inotify::forgotten,
        ),
        subject(
            "inotify-queue",
            "inotify events that nobody has read",
            inotify::queue,
        ),
        subject(
            "inotify-full",
            "full queues of inotify events, one read in part",
            inotify::full,
        ),
        subject(
            "inotify-growing",
            "inotify events that come faster than anybody reads them",
            inotify::growing,
        ),
        subject(
            "inotify-kinds",
            "inotify events of every kind that nobody has read",
            inotify::every_kind,
        ),
        subject("fanotify", "fanotify", fanotify::start),
        subject(
            "fanotify-classes",
            "fanotify groups that might be asked for leave, without such marks",
            fanotify::classes,
        ),
        subject(
            "fanotify-targets",
            "a mark of fanotify on a file, told with its directory (FAN_REPORT_TARGET_FID)",
            fanotify::targets,
        ),
        subject(
            "fanotify-whole",
            "fanotify of whole mounts and file systems",
            fanotify::whole,
        ),
        subject(
            "dnotify",
            "signals about directories (F_NOTIFY)",
            dnotify::start,
        ),
        subject("flock", "flock", locks::flock),
        subject(
            "flock-mapped",
            "flock by a mapping whose descriptor is closed",
            locks::mapped,
        ),
        subject(
            "flock-mapped-removed",
            "flock of a removed file that is mapped as well",
            locks::mapped_removed,
        ),
        subject(
            "flock-taker",
            "who took a lock: a child, one who let go of the file, one who has ended",
            locks::taker,
        ),
        subject("posix-locks", "POSIX locks of ranges", locks::posix),
        subject("ofd-locks", "locks of open file descriptions", locks::ofd),
        subject(
            "lock-order",
            "which of several locks in the way is told of (F_GETLK)",
            locks::order,
        ),
        subject("lease", "leases", locks::lease),
        subject(
            "lease-removed",
            "a lease for writing of a removed file",
            locks::lease_removed,
        ),
        subject("pidfd", "pidfds of living processes", pidfd::start),
        subject(
            "pidfd-dead",
            "a pidfd of a process that has ended",
            pidfd::dead,
        ),
        subject("pidfd-thread", "pidfds of threads", pidfd::thread),
        subject("owner", "F_SETOWN, F_SETSIG and O_ASYNC", ownership::start),
        subject(
            "owner-ended",
            "F_SETOWN of a process that has ended",
            ownership::ended,
        ),
        subject("proc-files", "files and directories of /proc", proc::start),
        subject(
            "proc-maps",
            "a file of /proc about the process's own mappings, read but for the end",
            proc::maps,
        ),
        subject(
            "proc-files-threads",
            "files and directories of /proc about threads",
            proc::threads,
        ),
        subject("sys-files", "files of /sys", proc::sys),
        subject(
            "proc-file-gone",
            "a file of /proc that the next kernel does not have, open and watched",
            proc::of_another_kernel,
        ),
        subject(
            "group-file-gone",
            "files and the directory of a control group that was removed",
            proc::of_a_removed_group,
        ),
        subject(
            "pressure",
            "a trigger of pressure stall information",
            pressure::trigger,
        ),
        subject(
            "pressure-group",
            "a trigger of the pressure in a control group",
            pressure::of_a_group,
        ),
        subject(
            "devices",
            "/dev/null, zero, full, random, urandom",
            devices::start,
        ),
        subject(
            "device-node",
            "a device by a node that was made in /dev",
            devices::made,
        ),
        subject(
            "node-references",
            "O_PATH of a symbolic link and of a device that were removed",
            devices::references,
        ),
        subject("device-controls", "/dev/loop-control", devices::controls),
        subject("kmsg", "/dev/kmsg with a read position", devices::kmsg),
        subject(
            "tun",
            "a tunnel (/dev/net/tun) with addresses, routes and packets that nobody has read",
            tunnel::start,
        ),
        subject(
            "tap",
            "a persistent Ethernet tunnel with several descriptors",
            tunnel::tap,
        ),
        subject(
            "tun-offloads",
            "a tunnel whose packets are handed over unfinished (TUNSETOFFLOAD)",
            tunnel::offloads,
        ),
        subject(
            "tun-idle",
            "/dev/net/tun without an interface",
            tunnel::idle,
        ),
        subject(
            "uring",
            "a ring of io_uring with unread completions and entries that were not submitted",
            uring::start,
        ),
        subject(
            "uring-lap",
            "unread completions of io_uring from the end of their queue to its beginning",
            uring::lap,
        ),
        subject(
            "uring-counts",
            "rings of io_uring with more requests than completions, and fewer",
            uring::counts,
        ),
        subject(
            "uring-child",
            "a child with its parent's ring of io_uring",
            uring::child,
        ),
        subject(
            "uring-deferred",
            "a thread that waits for its ring of io_uring (IORING_SETUP_DEFER_TASKRUN)",
            uring::deferred,
        ),
        subject(
            "uring-unasked",
            "a message to a ring of io_uring that its thread has not asked for (IORING_SETUP_DEFER_TASKRUN)",
            uring::unasked,
        ),
        subject(
            "uring-short",
            "a thread that submits fewer entries to a ring of io_uring than it says",
            uring::short,
        ),
        subject(
            "uring-lasting",
            "a request of io_uring that opens a FIFO which nobody writes to",
            uring::lasting,
        ),
        subject(
            "uring-partly",
            "a thread that has submitted to a ring of io_uring and waits for more completions",
            uring::partly,
        ),
        subject(
            "uring-locked",
            "the same while another thread keeps the ring locked",
            uring::locked,
        ),
        subject(
            "uring-timed",
            "waits for a ring of io_uring with a time-out",
            uring::limited,
        ),
        subject(
            "uring-timed-twice",
            "waits for a ring of io_uring with a time-out, stopped more than once",
            uring::limited_long,
        ),
        subject(
            "uring-file",
            "a file that is written and read through io_uring without a pause",
            uring::file,
        ),
        subject(
            "uring-polls",
            "polls of io_uring, once and going on, that wait",
            uring::waiting::polls,
        ),
        subject(
            "uring-polls-deferred",
            "polls of a ring of io_uring that asks for its completions (IORING_SETUP_DEFER_TASKRUN)",
            uring::waiting::polls_deferred,
        ),
        subject(
            "uring-reads",
            "reads and receives of io_uring that wait",
            uring::waiting::reads,
        ),
        subject(
            "uring-accepts",
            "accepts of io_uring, once and going on, that wait",
            uring::waiting::accepts,
        ),
        subject(
            "uring-time-outs",
            "time-outs of io_uring",
            uring::waiting::time_outs,
        ),
        subject(
            "uring-time-outs-end",
            "a time-out of io_uring that a thread waits for, stopped more than once",
            uring::waiting::time_out_ends,
        ),
        subject(
            "uring-ticks",
            "short time-outs of io_uring without a pause",
            uring::waiting::ticks,
        ),
        subject(
            "uring-ticks-of-two",
            "short time-outs of io_uring that end waits for more completions",
            uring::waiting::ticks_of_two,
        ),
        subject(
            "uring-futexes",
            "requests of io_uring that wait for futexes",
            uring::awaited::futexes,
        ),
        subject(
            "uring-child-ends",
            "a request of io_uring that waits for the end of a child",
            uring::awaited::child,
        ),
        subject(
            "uring-epoll",
            "a request of io_uring that waits for an epoll",
            uring::awaited::epoll,
        ),
        subject(
            "uring-settings",
            "most workers, places for files and the clock of rings of io_uring",
            uring::settings::start,
        ),
        subject(
            "uring-tagged",
            "files and buffers of a ring of io_uring whose end is told by tags",
            uring::settings::tagged,
        ),
        subject(
            "uring-restricted",
            "a ring of io_uring with restrictions, and one that is not enabled yet",
            uring::settings::restricted,
        ),
        subject(
            "uring-polls-devices",
            "a ring of io_uring for devices that are polled (IORING_SETUP_IOPOLL)",
            uring::settings::polls_devices,
        ),
        subject(
            "uring-linked",
            "a read of io_uring with a linked time-out",
            uring::links::linked,
        ),
        subject(
            "uring-linked-to-nothing",
            "reads of io_uring that are linked to nothing, which workers wait in",
            uring::links::to_nothing,
        ),
        subject(
            "uring-drained",
            "a request of io_uring that waits for those before it (IOSQE_IO_DRAIN)",
            uring::links::drained,
        ),
        subject(
            "uring-later",
            "a time-out of io_uring behind a read that waits",
            uring::links::later,
        ),
        subject(
            "uring-messages",
            "reads of io_uring into parts and messages that wait, told of by structures that are gone",
            uring::links::messages,
        ),
        subject(
            "uring-writes",
            "writes of io_uring to full pipes",
            uring::links::writes,
        ),
        subject(
            "uring-sends",
            "a message of io_uring to a full socket",
            uring::links::sends,
        ),
        subject(
            "uring-provided",
            "receives of io_uring, once and going on, that choose among a ring of buffers",
            uring::provided::own,
        ),
        subject(
            "uring-provided-deferred",
            "the same of a ring that asks for its completions (IORING_SETUP_DEFER_TASKRUN)",
            uring::provided::deferred,
        ),
        subject(
            "uring-provided-mapped",
            "a ring of buffers for io_uring in memory of the kernel's (IOU_PBUF_RING_MMAP)",
            uring::provided::mapped,
        ),
        subject(
            "uring-provided-gone",
            "the memory of a ring of buffers that is not registered any more",
            uring::provided::gone,
        ),
        subject(
            "uring-provided-list",
            "buffers provided by requests of io_uring (IORING_OP_PROVIDE_BUFFERS)",
            uring::provided::list,
        ),
        subject(
            "uring-polled",
            "a read that waits in a ring of io_uring with a thread of the kernel's, which sleeps (IORING_SETUP_SQPOLL)",
            uring::polled::asleep,
        ),
        subject(
            "uring-polled-awake",
            "the same while that thread does not sleep",
            uring::polled::awake,
        ),
        subject(
            "uring-named",
            "rings of io_uring registered with threads (IORING_REGISTER_RING_FDS)",
            uring::named::rings,
        ),
        subject(
            "uring-files",
            "files registered with a ring of io_uring",
            uring::registered::files,
        ),
        subject(
            "uring-buffers",
            "buffers registered with a ring of io_uring",
            uring::registered::buffers,
        ),
        subject(
            "uring-buffers-counted",
            "buffers of a ring of io_uring as pinned memory of the process, and handed to a new ring",
            uring::registered::counted,
        ),
        subject(
            "uring-eventfd",
            "eventfds registered with rings of io_uring",
            uring::registered::eventfd,
        ),
        subject(
            "userfault",
            "memory that a thread hands out page by page (userfaultfd)",
            userfault::missing,
        ),
        subject(
            "userfault-writes",
            "memory whose writes a thread is told of (userfaultfd)",
            userfault::writes,
        ),
        subject(
            "userfault-waiting",
            "a thread that waits for a page which nobody has handed out yet (userfaultfd)",
            userfault::waiting,
        ),
        subject(
            "userfault-child",
            "a child's memory that its parent hands out (userfaultfd)",
            userfault::of_child,
        ),
        subject(
            "bpf-maps",
            "maps of BPF that no program uses",
            bpf_map::start,
        ),
        subject("aio", "AIO contexts", aio::start),
        subject(
            "aio-inherited",
            "a child with the ring of its parent's AIO context",
            aio::inherited,
        ),
        subject(
            "aio-poll",
            "an AIO request that waits for a descriptor",
            aio::poll,
        ),
    ],
};
