//! Open file descriptions: one module for each kind, each with the same name in `resurrect::files`.

mod deleted;
mod device;
mod edges;
pub(crate) mod elsewhere;
pub(crate) mod ends;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod inotify;
mod kmsg;
mod known;
mod located;
mod lock;
mod memfd;
mod mqueue;
pub(crate) mod outside;
pub(crate) mod outsiders;
mod owner;
mod path;
mod pidfd;
mod pipe;
mod place;
mod pseudo;
mod removed;
mod signalfd;
mod socket;
mod terminal;
mod timerfd;
mod tunnel;

use crate::kernel::OpenFile;
use crate::objects::Objects;
use crate::proc::{self, FdInfo};
use crate::{Externals, FreezerError, Refusal};
use nix::sys::stat::{FileStat, SFlag, fstat, major};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Descriptor, FileRef, Lock, Pipe, PosixQueue,
    RemovedDirectory, RemovedId, Terminal, Tunnel,
};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::process;
use sys::{Errno, Pid};

pub use path::reference;
pub(crate) use place::{Identity, lasting, other_name};
pub use socket::{silence_connections, take_backlogs, take_device_messages, untaken_backlogs};
pub use tunnel::take_packets;

/// A descriptor that is being looked at.
pub(crate) struct Open<'a> {
    pid: Pid,
    fd: i32,
    /// Where `/proc/PID/fd/FD` leads.
    link: &'a [u8],
    info: &'a FdInfo,
    /// A copy of it: the same open file description.
    copy: &'a OwnedFd,
    stat: FileStat,
    /// It is known that nobody gets its signals.
    ownerless: bool,
}

/// What tells of a descriptor.
struct Told<'a> {
    /// Where `/proc/PID/fd/FD` leads.
    link: &'a [u8],
    info: &'a FdInfo,
    /// The open file, where the kernel's memory can be read.
    file: Option<OpenFile>,
    /// Where the kernel has it.
    address: Option<u64>,
}

impl<'a> Open<'a> {
    fn new(
        pid: Pid,
        fd: i32,
        link: &'a [u8],
        info: &'a FdInfo,
        copy: &'a OwnedFd,
    ) -> Result<Open<'a>, FreezerError> {
        let stat = fstat(copy).map_err(|errno| match errno {
            // A file of `/proc` about a process that is gone.
            Errno::ENOENT | Errno::ESRCH => {
                let link = String::from_utf8_lossy(link);
                FreezerError::refuse(
                    pid,
                    format!("fd {fd} ({link})"),
                    "what it told about is gone",
                )
            }
            errno => FreezerError::call(pid, format!("fd {fd}: fstat"))(errno),
        })?;
        Ok(Open {
            pid,
            fd,
            link,
            info,
            copy,
            stat,
            ownerless: false,
        })
    }
    /// Whether the file may lie on a file system of the kernel's own: those have no device.
    fn may_be_made_up(&self) -> bool {
        major(self.stat.st_dev) == 0
    }
    /// `S_IFMT` of the file.
    fn file_type(&self) -> SFlag {
        SFlag::from_bits_truncate(self.stat.st_mode) & SFlag::S_IFMT
    }
    /// Access mode and status flags.
    fn flags(&self) -> Result<u32, FreezerError> {
        let flags = self.info.number("flags", 8).ok_or_else(|| self.format())?;
        Ok((flags & !O_CLOEXEC) as u32)
    }
    fn format(&self) -> FreezerError {
        FreezerError::Format {
            pid: self.pid,
            what: format!("fdinfo/{}", self.fd),
            text: format!("{:?}", self.info),
        }
    }
    fn call(&self, doing: &str) -> impl FnOnce(sys::Errno) -> FreezerError {
        FreezerError::call(self.pid, format!("fd {}: {doing}", self.fd))
    }
    fn refuse(&self, reason: impl Into<String>) -> FreezerError {
        let link = String::from_utf8_lossy(self.link);
        FreezerError::refuse(self.pid, format!("fd {} ({link})", self.fd), reason)
    }
}

/// The descriptions found so far, each once however many descriptors share it.
#[derive(Default)]
pub(crate) struct Table {
    /// This process.
    this: Option<Pid>,
    descriptions: Vec<Description>,
    /// Objects that descriptions and mappings lead to.
    pub(crate) objects: Objects,
    /// A copy of one descriptor of each.
    copies: known::Copies,
    /// How they are found again.
    known: known::Known,
    /// What every descriptor is open on.
    numbers: BTreeMap<(Pid, i32), DescriptionId>,
    pipes: pipe::Pipes,
    terminals: terminal::Terminals,
    removed: removed::Directories,
    sockets: socket::Sockets,
    locks: Vec<Lock>,
    queues: mqueue::Queues,
    tunnels: tunnel::Tunnels,
    externals: Externals,
    /// What may reach out of the tree.
    ends: ends::Ours,
}

/// All that was found.
pub(crate) struct Found {
    pub(crate) descriptions: Vec<Description>,
    pub(crate) pipes: Vec<Pipe>,
    pub(crate) terminals: Vec<Terminal>,
    pub(crate) removed: Vec<RemovedDirectory>,
    pub(crate) locks: Vec<Lock>,
    pub(crate) objects: Objects,
    pub(crate) queues: Vec<PosixQueue>,
    pub(crate) tunnels: Vec<Tunnel>,
}

impl Table {
    pub(crate) fn new(externals: Externals, whole_host: bool) -> Table {
        Table {
            externals,
            sockets: socket::Sockets::new(whole_host),
            this: Some(Pid(nix::unistd::getpid().as_raw())),
            ..Table::default()
        }
    }

    /// Notes a process's session and controlling terminal.
    pub(crate) fn session(&mut self, pid: Pid, stat: &proc::Stat) {
        self.terminals.member(pid, stat);
    }

    /// A process's current directory, which may have been removed.
    pub(crate) fn directory(
        &mut self,
        pid: Pid,
    ) -> Result<(FileRef, Option<RemovedId>), FreezerError> {
        if !removed_cwd(pid) {
            return path::reference(pid, "cwd").map(|cwd| (cwd, None));
        }
        let link = proc::link(pid, "cwd")?;
        let stat = nix::sys::stat::stat(proc::path(pid, "cwd").as_str());
        let stat = stat.map_err(FreezerError::call(pid, "cwd: stat"))?;
        let id = self.removed.note(&link, &stat);
        Ok((FileRef::default(), Some(id)))
    }

    /// Refuses what a process outside of the tree holds as well, or holds the other end of.
    ///
    /// # Errors
    /// [`FreezerError::Refused`].
    pub(crate) fn refuse_outside(
        &self,
        inside: &[Pid],
        outsiders: &mut outsiders::Outsiders,
    ) -> Result<(), FreezerError> {
        if self.ends.is_empty() {
            return Ok(());
        }
        outsiders.look_again(inside);
        let found = reaching_out(&self.ends, outsiders, inside, &self.externals);
        if found.is_empty() {
            Ok(())
        } else {
            Err(FreezerError::Refused(found))
        }
    }

    /// Every descriptor of a process.
    pub(crate) fn capture(&mut self, pid: Pid) -> Result<Vec<Descriptor>, FreezerError> {
        let pidfd = proc::pidfd(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?;
        let mut found = Vec::new();
        let links = proc::Links::open(pid)?;
        let files = known::open_files(pid);
        for &fd in links.numbers() {
            let copy = process::pidfd_getfd(pidfd.as_fd(), fd).map_err(|errno| {
                FreezerError::call(pid, format!("copying descriptor {fd}"))(errno)
            })?;
            let file = files.get(&fd).copied();
            let info = match file.filter(|file| file.plain) {
                Some(file) => plain_info(&file),
                None => links.info(fd)?,
            };
            let cloexec = info.number("flags", 8).unwrap_or(0) & O_CLOEXEC != 0;
            let link = match file.as_ref().and_then(|file| self.known.link(file)) {
                Some(link) => link.to_vec(),
                None => links.read(fd)?,
            };
            let told = Told {
                link: &link,
                info: &info,
                file,
                address: file.map(|file| file.address),
            };
            let description = self.description(pid, fd, told, copy)?;
            found.push(Descriptor {
                fd,
                cloexec,
                description,
            });
        }
        Ok(found)
    }

    fn description(
        &mut self,
        pid: Pid,
        fd: i32,
        told: Told<'_>,
        copy: OwnedFd,
    ) -> Result<DescriptionId, FreezerError> {
        let open = Open {
            ownerless: told.file.is_some_and(|file| file.ownerless),
            ..Open::new(pid, fd, told.link, told.info, &copy)?
        };
        let file = (open.stat.st_dev, open.stat.st_ino);
        let place = self.known.find(told.address, file, &copy, &self.copies);
        let place = place.map_err(FreezerError::call(pid, "kcmp"))?;
        let known = place.as_ref().ok().copied();
        let id = known.unwrap_or_else(|| self.next());
        let external = self.externals.number(&copy);
        let external = external.map_err(FreezerError::call(pid, "kcmp"))?;
        if external.is_none() {
            lock::capture(&open, id, known.is_none(), &mut self.locks)?;
        }
        self.numbers.insert((pid, fd), id);
        if Some(pid) != self.this
            && let Some(end) = ends::of_open(&open)
        {
            self.ends.entry(end).or_insert((pid, fd));
        }
        let Err(place) = place else { return Ok(id) };
        let kind = match external {
            Some(number) => DescriptionKind::External { number },
            None if self.externals.touches(told.link) => {
                return Err(
                    open.refuse("its other end is handed over (--external), so must be this one")
                );
            }
            None => self.kind_by_path(&open, id, &told)?,
        };
        self.descriptions.push(Description {
            id,
            flags: open.flags()?,
            pos: told.info.number("pos", 10).unwrap_or(0),
            owner: owner::capture(&open)?,
            kind,
        });
        self.known.add(told.address, file, place, id);
        self.copies.insert(id, copy);
        Ok(id)
    }

    fn next(&self) -> DescriptionId {
        DescriptionId(u32::try_from(self.descriptions.len()).unwrap_or(u32::MAX))
    }

    /// As [`Table::kind`]; of a regular file that was met by the same path before all is known already.
    fn kind_by_path(
        &mut self,
        open: &Open<'_>,
        id: DescriptionId,
        told: &Told<'_>,
    ) -> Result<DescriptionKind, FreezerError> {
        let Some(seen) = &told.file else {
            return self.kind(open, id);
        };
        let file = (open.stat.st_dev, open.stat.st_ino);
        let ordinary = open.file_type() == SFlag::S_IFREG && open.flags()? & O_PATH == 0;
        if ordinary && let Some(known) = self.known.file(seen, file) {
            return Ok(DescriptionKind::Path(FileRef {
                size: open.stat.st_size.cast_unsigned(),
                ..known.clone()
            }));
        }
        let kind = self.kind(open, id)?;
        let reference = match &kind {
            DescriptionKind::Path(reference) if ordinary => Some((file, reference)),
            _ => None,
        };
        self.known.note(seen, told.link, reference);
        Ok(kind)
    }

    fn kind(
        &mut self,
        open: &Open<'_>,
        id: DescriptionId,
    ) -> Result<DescriptionKind, FreezerError> {
        Ok(match classify(open, &mut self.objects)? {
            Class::Pipe => DescriptionKind::Pipe(self.pipes.capture(open)?),
            Class::Fifo => fifo::capture(open, &mut self.pipes)?,
            Class::Kmsg => kmsg::capture(open)?,
            Class::EventFd => eventfd::capture(open)?,
            Class::Terminal => self.terminals.capture(open, id)?,
            Class::Removed => DescriptionKind::Removed(self.removed.capture(open)),
            Class::Socket => self.sockets.capture(open, id)?,
            Class::Queue => self.queues.capture(open)?,
            Class::Tunnel => self.tunnels.capture(open)?,
            Class::Plain(kind) => kind,
        })
    }

    /// What takes the whole: descriptors in flight, what epolls watch, and terminals, which have two
    /// ends.
    pub(crate) fn finish(mut self) -> Result<Found, FreezerError> {
        while let Some(sent) = self.sockets.next_in_flight() {
            let ids = sent.copies.iter().map(|copy| self.in_flight(&sent, copy));
            let ids = ids.collect::<Result<_, _>>()?;
            sent.settle(ids, &mut self.descriptions);
        }
        let sockets = core::mem::take(&mut self.sockets);
        sockets.link(&mut self.descriptions, &self.externals)?;
        epoll::resolve(&mut self)?;
        located::resolve(&mut self)?;
        let terminals = terminal::finish(self.terminals, &self.copies)?;
        Ok(Found {
            descriptions: self.descriptions,
            pipes: self.pipes.finish(),
            terminals,
            removed: self.removed.finish(),
            locks: self.locks,
            objects: self.objects,
            queues: self.queues.finish(),
            tunnels: self.tunnels.finish(),
        })
    }

    /// The description of a descriptor in flight, of which this process has a copy.
    fn in_flight(
        &mut self,
        sent: &socket::InFlight,
        copy: &OwnedFd,
    ) -> Result<DescriptionId, FreezerError> {
        let me = Pid(nix::unistd::getpid().as_raw());
        let info = FdInfo::read(me, copy.as_raw_fd())?;
        let (pid, fd) = sent.holder;
        let copy = copy
            .try_clone()
            .map_err(|e| FreezerError::refuse(pid, format!("fd {fd}"), e.to_string()))?;
        // It is looked at as a descriptor of this process, and reported as its holder's.
        let number = copy.as_raw_fd();
        let link = proc::link(me, &format!("fd/{number}"))?;
        let told = Told {
            link: &link,
            info: &info,
            file: None,
            address: known::address(&copy),
        };
        self.description(me, number, told, copy)
            .map_err(|error| match error {
                FreezerError::Refused(found) => {
                    let what = found
                        .iter()
                        .map(|r| format!("{}: {}", r.resource, r.reason));
                    let what: Vec<_> = what.collect();
                    let reason = format!("in flight in its queue: {}", what.join("; "));
                    FreezerError::refuse(pid, format!("fd {fd}"), reason)
                }
                error => error,
            })
    }
}

/// What fdinfo would tell.
fn plain_info(file: &OpenFile) -> FdInfo {
    let flags = u64::from(file.flags) & !O_CLOEXEC;
    let more = if file.closes_on_exec { O_CLOEXEC } else { 0 };
    FdInfo::plain(file.pos, flags | more)
}

const O_CLOEXEC: u64 = 0o2_000_000;
const O_PATH: u32 = 0o10_000_000;

/// What a description is, as far as it can be told without changing anything.
enum Class {
    Pipe,
    Fifo,
    Kmsg,
    EventFd,
    Terminal,
    Removed,
    Socket,
    Queue,
    Tunnel,
    /// The rest is known at once.
    Plain(DescriptionKind),
}

/// The kind of a description, by its link in `/proc` and its file type. Everything that is not carried
/// is refused here.
fn classify(open: &Open<'_>, objects: &mut Objects) -> Result<Class, FreezerError> {
    let nameless = !open.link.starts_with(b"/") && !open.link.starts_with(b"pipe:");
    let reference = open.flags()? & O_PATH != 0;
    if reference && (nameless && pseudo::namespace(open).is_none() || mqueue::is_one(open)) {
        return Err(open.refuse("a reference (O_PATH) to what has no path is not carried"));
    }
    let kind = match open.link {
        b"anon_inode:[eventfd]" => return Ok(Class::EventFd),
        b"anon_inode:[signalfd]" => signalfd::capture(open)?,
        b"anon_inode:[timerfd]" => timerfd::capture(open)?,
        b"anon_inode:[eventpoll]" => epoll::capture(open)?,
        b"anon_inode:inotify" => inotify::capture(open)?,
        b"anon_inode:[fanotify]" => fanotify::capture(open)?,
        b"anon_inode:[pidfd]" => pidfd::capture(open)?,
        link if link.starts_with(b"pidfd:") => pidfd::capture(open)?,
        link if link.starts_with(b"pipe:") => return Ok(Class::Pipe),
        link if link.starts_with(b"socket:") => return Ok(Class::Socket),
        link if link.starts_with(b"anon_inode:") => return Err(open.refuse(anonymous(link))),
        link if link.starts_with(b"/") && mqueue::is_one(open) => {
            mqueue::examine(open)?;
            return Ok(Class::Queue);
        }
        link if memfd::is_one(link) => memfd::capture(open, objects)?,
        _ if deleted::is_one(open) => deleted::capture(open, objects)?,
        link if link.starts_with(b"/") => return by_type(open),
        _ => pseudo::namespace(open)
            .ok_or_else(|| open.refuse("this kind of descriptor is not carried"))?,
    };
    Ok(Class::Plain(kind))
}

/// Names of `anon_inode:` links and what they are, for those who must do without.
const ANONYMOUS: [(&[u8], &str); 8] = [
    (
        b"[userfaultfd]",
        "userfaultfd: page faults handled by a process are not carried",
    ),
    (b"[io_uring]", "io_uring rings are not carried"),
    (b"[perf_event]", "perf events are not carried"),
    (b"bpf-", "BPF programs, maps and links are not carried"),
    (b"kvm-", "virtual machines (KVM) are not carried"),
    (b"dmabuf", "buffers of devices (dma-buf) are not carried"),
    (b"sync_file", "fences of devices are not carried"),
    (b"[fscontext]", "half-made mounts are not carried"),
];

fn anonymous(link: &[u8]) -> String {
    let name = link.strip_prefix(b"anon_inode:").unwrap_or(link);
    let known = ANONYMOUS
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix));
    known.map_or_else(
        || "this kind of descriptor is not carried".to_owned(),
        |(_, why)| (*why).to_owned(),
    )
}

/// What has a path is told by the type of the file.
fn by_type(open: &Open<'_>) -> Result<Class, FreezerError> {
    if open.flags()? & O_PATH != 0 {
        return path::reference_only(open);
    }
    match open.file_type() {
        SFlag::S_IFCHR if terminal::is(open) => {
            terminal::check(open)?;
            Ok(Class::Terminal)
        }
        SFlag::S_IFCHR | SFlag::S_IFBLK => device::classify(open),
        SFlag::S_IFIFO => {
            fifo::check(open)?;
            Ok(Class::Fifo)
        }
        SFlag::S_IFREG | SFlag::S_IFDIR => path::capture(open),
        _ => Err(open.refuse("this kind of file is not carried")),
    }
}

/// Whether a process's current directory has no name any more.
pub(crate) fn removed_cwd(pid: Pid) -> bool {
    use std::os::unix::fs::MetadataExt;
    proc::metadata(pid, "cwd").is_ok_and(|cwd| cwd.nlink() == 0)
}

/// The path of what is open may be longer than the kernel tells.
fn nameless(pid: Pid, fd: i32, link: &Result<Vec<u8>, FreezerError>) -> Option<Refusal> {
    let Err(FreezerError::Proc { cause, .. }) = link else {
        return None;
    };
    let too_long = cause.raw_os_error() == Some(Errno::ENAMETOOLONG as i32);
    too_long.then(|| Refusal {
        pid,
        comm: proc::comm(pid),
        resource: format!("fd {fd}"),
        reason: "its path is longer than the kernel tells".into(),
    })
}

/// What of a tree's descriptors reaches out of it, but for what is external.
pub(crate) fn reaching_out(
    ours: &ends::Ours,
    outsiders: &outsiders::Outsiders,
    inside: &[Pid],
    externals: &Externals,
) -> Vec<Refusal> {
    let mut found = outside::shared(ours, outsiders, inside, externals);
    found.extend(elsewhere::refusals(ours, outsiders, inside));
    externals.excuse(found)
}

/// What of a process's descriptors is not carried, found without stopping it.
pub(crate) fn refusals(
    pid: Pid,
    objects: &mut Objects,
    externals: &Externals,
    whole_host: bool,
) -> Result<Vec<Refusal>, FreezerError> {
    let pidfd = proc::pidfd(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?;
    let mut found = Vec::new();
    let mut sockets = socket::Facts::new(whole_host);
    let links = proc::Links::open(pid)?;
    for &fd in links.numbers() {
        let link = links.read(fd);
        if let Some(refusal) = nameless(pid, fd, &link) {
            found.push(refusal);
            continue;
        }
        // A running process may close it at any time.
        let (Ok(copy), Ok(info), Ok(link)) = (
            process::pidfd_getfd(pidfd.as_fd(), fd),
            links.info(fd),
            link,
        ) else {
            continue;
        };
        if matches!(externals.number(&copy), Ok(Some(_))) {
            continue;
        }
        let open = match Open::new(pid, fd, &link, &info, &copy) {
            Err(FreezerError::Refused(more)) => {
                found.extend(more);
                continue;
            }
            open => open?,
        };
        let checked = classify(&open, objects).and_then(|class| match class {
            Class::Plain(DescriptionKind::Epoll { targets, .. }) => epoll::check(&open, &targets),
            Class::Socket => socket::examine(&open, &mut sockets).map(drop),
            _ => Ok(()),
        });
        let locks = lock::capture(&open, DescriptionId(0), true, &mut Vec::new());
        for result in [checked, locks] {
            match result {
                Ok(()) => {}
                Err(FreezerError::Refused(more)) => found.extend(more),
                Err(e) => return Err(e),
            }
        }
    }
    Ok(found)
}
