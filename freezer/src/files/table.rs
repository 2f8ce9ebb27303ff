//! The open file descriptions of all processes.

use super::class::{Class, classify};
use super::open::{O_CLOEXEC, O_PATH, Open};
use super::socket::Flying;
use super::{
    apart, check, dnotify, ends, epoll, eventfd, fifo, kmsg, known, located, lock, mqueue,
    outsiders, owner, path, pipe, pseudo, removed, restricted, sent, socket, terminal, tunnel,
    unheld, uring, userfault,
};
use crate::kernel::OpenFile;
use crate::objects::Objects;
use crate::proc::{self, FdInfo};
use crate::{Externals, FreezerError};
use nix::sys::stat::SFlag;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Descriptor, Directories, FileRef, Lock, Notice,
    Pipe, PosixQueue, RemovedDirectory, Terminal, Tunnel,
};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::{Errno, Pid, process};

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

/// The descriptions found so far, each once however many descriptors share it.
#[derive(Default)]
pub(crate) struct Table {
    /// This process.
    pub(super) this: Option<Pid>,
    /// It is for a host that changes its kernel.
    whole_host: bool,
    /// Some processes are in domains of Landlock.
    pub(crate) in_domains: bool,
    pub(super) descriptions: Vec<Description>,
    /// Objects that descriptions and mappings lead to.
    pub(crate) objects: Objects,
    /// A copy of one descriptor of each.
    pub(super) copies: known::Copies,
    /// How they are found again.
    pub(super) known: known::Known,
    /// What every descriptor is open on.
    pub(super) numbers: BTreeMap<(Pid, i32), DescriptionId>,
    pub(super) pipes: pipe::Pipes,
    pub(super) terminals: terminal::Terminals,
    pub(super) removed: removed::Directories,
    pub(super) sockets: socket::Sockets,
    pub(super) locks: Vec<Lock>,
    pub(super) notices: Vec<Notice>,
    pub(super) queues: mqueue::Queues,
    pub(super) tunnels: tunnel::Tunnels,
    /// Memory whose faults are told of.
    pub(crate) faults: userfault::Faults,
    pub(super) externals: Externals,
    /// What may reach out of the tree.
    pub(super) ends: ends::Ours,
    /// What threads have handed over of tables that no pidfd leads to.
    pub(crate) sent: sent::Copies,
}

/// All that was found.
pub(crate) struct Found {
    pub(crate) descriptions: Vec<Description>,
    pub(crate) pipes: Vec<Pipe>,
    pub(crate) terminals: Vec<Terminal>,
    pub(crate) removed: Vec<RemovedDirectory>,
    pub(crate) locks: Vec<Lock>,
    pub(crate) notices: Vec<Notice>,
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
            whole_host,
            ..Table::default()
        }
    }

    /// Notes a process's session and controlling terminal.
    pub(crate) fn session(&mut self, pid: Pid, stat: &proc::Stat) {
        self.terminals.member(pid, stat);
    }

    /// Directories of a process, or of a thread of it for which `task` is `task/TID/`; without the umask.
    ///
    /// # Errors
    /// [`FreezerError::Refused`] for a root that has been removed, among others.
    pub(crate) fn directories(
        &mut self,
        pid: Pid,
        task: &str,
    ) -> Result<Directories, FreezerError> {
        let (cwd, root) = (format!("{task}cwd"), format!("{task}root"));
        let mut found = Directories {
            root: path::reference(pid, &root)?,
            ..Directories::default()
        };
        if removed::removed_cwd(pid, &cwd) {
            let link = proc::link(pid, &cwd)?;
            let through = proc::path(pid, &cwd);
            let stat = nix::sys::stat::stat(through.as_str());
            let stat = stat.map_err(FreezerError::call(pid, "cwd: stat"))?;
            let through = std::path::Path::new(&through);
            found.cwd_removed = Some(self.removed.note(&link, &stat, through));
        } else if let Some(cwd) = pseudo::removed_directory(pid, &cwd) {
            found.cwd = cwd;
        } else {
            found.cwd = path::reference(pid, &cwd)?;
        }
        Ok(found)
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
        let found = check::reaching_out(&self.ends, outsiders, inside, &self.externals);
        if found.is_empty() {
            Ok(())
        } else {
            Err(FreezerError::Refused(found))
        }
    }

    /// Every descriptor of a process.
    pub(crate) fn capture(&mut self, pid: Pid) -> Result<Vec<Descriptor>, FreezerError> {
        let mut sent = self.sent.remove(&pid);
        let pidfd = match sent {
            Some(_) => None,
            None => Some(proc::pidfd(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?),
        };
        let mut found = Vec::new();
        let links = proc::Links::open(pid)?;
        let files = known::open_files(pid);
        for &fd in links.numbers() {
            let copy = match (&pidfd, &mut sent) {
                (Some(pidfd), _) => process::pidfd_getfd(pidfd.as_fd(), fd),
                (None, Some(sent)) => sent.remove(&fd).ok_or(Errno::EBADF),
                (None, None) => Err(Errno::EBADF),
            };
            let copy = copy.map_err(|errno| {
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
            self.notices.extend(dnotify::capture(&open)?);
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
        let queue = matches!(kind, DescriptionKind::MessageQueue { .. });
        self.descriptions.push(Description {
            id,
            flags: open.flags()? | if queue { mqueue::kept_flag(&open) } else { 0 },
            pos: told.info.position(),
            unread: None,
            owner: owner::capture(&open)?,
            hint: hint(&open)?,
            denied: self.denied(&open, &kind)?,
            kind,
        });
        self.known.add(told.address, file, place, id);
        self.copies.insert(id, copy);
        Ok(id)
    }

    /// What Landlock denies with a description.
    fn denied(&self, open: &Open<'_>, kind: &DescriptionKind) -> Result<u64, FreezerError> {
        if self.in_domains && !matches!(kind, DescriptionKind::External { .. }) {
            restricted::denied(open, kind)
        } else {
            Ok(0)
        }
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
            Class::Ring => uring::capture(open),
            Class::Plain(kind) => kind,
        })
    }

    /// What takes the whole: descriptors in flight, what epolls watch, what is in rings, and terminals, which
    /// have two ends. `inside` are the processes that live.
    pub(crate) fn finish(mut self, inside: &[Pid]) -> Result<Found, FreezerError> {
        while let Some(sent) = self.sockets.next_in_flight() {
            let ids: Result<_, _> = match &sent.what {
                Flying::Copies(all) => all.iter().map(|one| self.in_flight(&sent, one)).collect(),
                Flying::Files(all) => all.iter().map(|one| self.at(&sent, *one)).collect(),
            };
            self.sockets.settle(&sent, ids?, &mut self.descriptions);
        }
        let sockets = core::mem::take(&mut self.sockets);
        sockets.link(&mut self.descriptions, &self.copies, &self.externals)?;
        epoll::resolve(&mut self)?;
        lock::order(&mut self.locks, &self.numbers, &self.copies);
        located::resolve(&mut self)?;
        uring::resolve(&mut self, inside)?;
        userfault::resolve(&mut self, inside)?;
        let terminals = terminal::finish(self.terminals, &self.copies)?;
        if self.whole_host {
            self.queues.add_unheld()?;
        }
        Ok(Found {
            descriptions: self.descriptions,
            pipes: self.pipes.finish(),
            terminals,
            removed: self.removed.finish(),
            locks: self.locks,
            notices: self.notices,
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
        let found = self.description(me, number, told, copy);
        found.map_err(|error| of_holder(sent, error))
    }

    /// The description of what is in flight and cannot be copied.
    fn at(&mut self, sent: &socket::InFlight, address: u64) -> Result<DescriptionId, FreezerError> {
        if let Some(known) = self.known.at(address) {
            return Ok(known);
        }
        let (pid, fd) = sent.holder;
        let refuse = |why: String| {
            let reason = format!("a descriptor is in flight in it that nobody else holds: {why}");
            FreezerError::refuse(pid, format!("fd {fd}"), reason)
        };
        if !self.known.by_addresses() {
            return Err(refuse("nothing tells which it is".into()));
        }
        let me = Pid(nix::unistd::getpid().as_raw());
        let mut inside: Vec<Pid> = self.numbers.keys().map(|(pid, _)| *pid).collect();
        inside.dedup();
        let unheld::Reached { copy, link, file } =
            unheld::reach(address, &inside).map_err(refuse)?;
        let info = match link.as_slice() {
            unheld::EVENTFD => FdInfo::read(me, copy.as_raw_fd())?,
            _ => plain_info(&file),
        };
        let told = Told {
            link: &link,
            info: &info,
            file: Some(file),
            address: Some(address),
        };
        let number = copy.as_raw_fd();
        let found = self.description(me, number, told, copy);
        found.map_err(|error| of_holder(sent, error))
    }
}

/// What is wrong with something in flight is told of the socket that it is in.
fn of_holder(sent: &socket::InFlight, error: FreezerError) -> FreezerError {
    let FreezerError::Refused(found) = error else {
        return error;
    };
    let (pid, fd) = sent.holder;
    let what = found.iter();
    let what = what.map(|one| format!("{}: {}", one.resource, one.reason));
    let what: Vec<_> = what.collect();
    let reason = format!("in flight in its queue: {}", what.join("; "));
    FreezerError::refuse(pid, format!("fd {fd}"), reason)
}

/// The numbers of all descriptors of processes, each once.
#[must_use]
pub fn numbers_of(pids: &[Pid]) -> BTreeSet<i32> {
    let tables = pids.iter().flat_map(|pid| apart::tables_of(*pid));
    let links = tables.filter_map(|table| proc::Links::open(table).ok());
    links.flat_map(|links| links.numbers().to_vec()).collect()
}

/// What fdinfo would tell.
/// How long data of a regular file is expected to live (fcntl(2), `F_GET_RW_HINT`), 0 when nobody has said.
fn hint(open: &Open<'_>) -> Result<u64, FreezerError> {
    let regular = open.file_type() == SFlag::S_IFREG && open.flags()? & O_PATH == 0;
    // Kernels may be without.
    Ok(if regular {
        sys::files::write_hint(open.copy).unwrap_or(0)
    } else {
        0
    })
}

fn plain_info(file: &OpenFile) -> FdInfo {
    let flags = u64::from(file.flags) & !O_CLOEXEC;
    let more = if file.closes_on_exec { O_CLOEXEC } else { 0 };
    FdInfo::plain(file.pos, flags | more)
}
