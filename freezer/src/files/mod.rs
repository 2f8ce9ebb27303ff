//! Open file descriptions: one module for each kind, each with the same name in `resurrect::files`.

mod deleted;
mod device;
mod epoll;
mod eventfd;
mod memfd;
pub(crate) mod outside;
mod path;
mod pipe;
mod signalfd;
mod socket;
mod timerfd;

use crate::objects::Objects;
use crate::proc::{self, FdInfo};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Descriptor, Pipe, PipeId,
};
use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::process::{self, KcmpKind};
use sys::{Pid, Tid};

pub use path::reference;

/// A descriptor that is being looked at.
pub(crate) struct Open<'a> {
    pid: Pid,
    fd: i32,
    /// Where `/proc/PID/fd/FD` leads.
    link: &'a [u8],
    info: &'a FdInfo,
    /// A copy of it: the same open file description.
    copy: &'a OwnedFd,
}

impl Open<'_> {
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
pub(crate) struct Table {
    descriptions: Vec<Description>,
    pipes: Vec<(Pipe, u64)>,
    /// Objects that descriptions and mappings lead to.
    pub(crate) objects: Objects,
    sockets: socket::Sockets,
    /// Copies of one descriptor each, in the order kcmp(2) gives descriptions, with their ids.
    sorted: Vec<(OwnedFd, DescriptionId)>,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table {
            descriptions: Vec::new(),
            pipes: Vec::new(),
            objects: Objects::default(),
            sockets: socket::Sockets::default(),
            sorted: Vec::new(),
        }
    }

    /// Every descriptor of a process.
    pub(crate) fn capture(&mut self, pid: Pid) -> Result<Vec<Descriptor>, FreezerError> {
        let pidfd = process::pidfd_open(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?;
        let mut found = Vec::new();
        for fd in proc::numbers(pid, "fd")? {
            let copy = process::pidfd_getfd(pidfd.as_fd(), fd)
                .map_err(FreezerError::call(pid, format!("copying descriptor {fd}")))?;
            let info = FdInfo::read(pid, fd)?;
            let cloexec = info.number("flags", 8).unwrap_or(0) & O_CLOEXEC != 0;
            let description = self.description(pid, fd, &info, copy)?;
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
        info: &FdInfo,
        copy: OwnedFd,
    ) -> Result<DescriptionId, FreezerError> {
        let place = match self.find(&copy).map_err(FreezerError::call(pid, "kcmp"))? {
            Ok(index) => return Ok(self.sorted[index].1),
            Err(place) => place,
        };
        let id = DescriptionId(u32::try_from(self.descriptions.len()).unwrap_or(u32::MAX));
        let link = proc::link(pid, &format!("fd/{fd}"))?;
        let open = Open {
            pid,
            fd,
            link: &link,
            info,
            copy: &copy,
        };
        let kind = self.kind(&open, id)?;
        let flags = info.number("flags", 8).ok_or_else(|| open.format())?;
        let pos = info.number("pos", 10).unwrap_or(0);
        let flags = (flags & !O_CLOEXEC) as u32;
        if flags & O_ASYNC != 0 {
            return Err(open.refuse("signal-driven I/O (O_ASYNC) is not carried"));
        }
        self.descriptions.push(Description {
            id,
            flags,
            pos,
            owner: None,
            kind,
        });
        self.sorted.insert(place, (copy, id));
        Ok(id)
    }

    /// Binary search by the order kcmp(2) defines.
    fn find(&self, copy: &OwnedFd) -> sys::Result<Result<usize, usize>> {
        let me = Tid(nix::unistd::getpid().as_raw());
        let (mut low, mut high) = (0, self.sorted.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let other = self.sorted[middle].0.as_raw_fd();
            match process::kcmp(me, me, KcmpKind::File, other, copy.as_raw_fd())? {
                Ordering::Equal => return Ok(Ok(middle)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }

    fn kind(
        &mut self,
        open: &Open<'_>,
        id: DescriptionId,
    ) -> Result<DescriptionKind, FreezerError> {
        if open.link.starts_with(b"pipe:") {
            return pipe::capture(open, &mut self.pipes).map(DescriptionKind::Pipe);
        }
        if open.link.starts_with(b"socket:") {
            return self.sockets.capture(open, id);
        }
        classify(open, &mut self.objects)
    }

    /// Descriptions, pipes and objects, when all processes are described.
    pub(crate) fn finish(mut self) -> Result<(Vec<Description>, Vec<Pipe>, Objects), FreezerError> {
        while let Some(sent) = self.sockets.next_in_flight() {
            let ids = sent.copies.iter().map(|copy| self.in_flight(&sent, copy));
            let ids = ids.collect::<Result<_, _>>()?;
            sent.settle(ids, &mut self.descriptions);
        }
        self.sockets.link(&mut self.descriptions)?;
        let pipes = self.pipes.into_iter().map(|(pipe, _)| pipe).collect();
        Ok((self.descriptions, pipes, self.objects))
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
        self.description(me, number, &info, copy)
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

const O_CLOEXEC: u64 = 0o2_000_000;
const O_ASYNC: u32 = 0o20_000;

/// The kind of a description, by what its link in `/proc` says. Pipes are dealt with by the table,
/// since two descriptions are one pipe.
fn classify(open: &Open<'_>, objects: &mut Objects) -> Result<DescriptionKind, FreezerError> {
    match open.link {
        b"anon_inode:[eventfd]" => eventfd::capture(open),
        b"anon_inode:[signalfd]" => signalfd::capture(open),
        b"anon_inode:[timerfd]" => timerfd::capture(open),
        b"anon_inode:[eventpoll]" => epoll::capture(open),
        link if link.starts_with(b"anon_inode:") => {
            Err(open.refuse("this kind of descriptor is not carried"))
        }
        link if memfd::is_one(link) => memfd::capture(open, objects),
        _ if deleted::is_one(open) => deleted::capture(open, objects),
        link if link.starts_with(b"/") => match device::capture(open)? {
            Some(kind) => Ok(kind),
            None => path::capture(open),
        },
        _ => Err(open.refuse("this kind of descriptor is not carried")),
    }
}

/// What of a process's descriptors is not carried, found without stopping it.
pub(crate) fn refusals(pid: Pid, objects: &mut Objects) -> Result<Vec<Refusal>, FreezerError> {
    let pidfd = process::pidfd_open(pid).map_err(FreezerError::call(pid, "opening a pidfd"))?;
    let mut found = Vec::new();
    let mut sockets = socket::Facts::default();
    for fd in proc::numbers(pid, "fd")? {
        // A running process may close it at any time.
        let (Ok(copy), Ok(info), Ok(link)) = (
            process::pidfd_getfd(pidfd.as_fd(), fd),
            FdInfo::read(pid, fd),
            proc::link(pid, &format!("fd/{fd}")),
        ) else {
            continue;
        };
        if link.starts_with(b"pipe:") || link == b"anon_inode:[eventfd]" {
            continue;
        }
        let open = Open {
            pid,
            fd,
            link: &link,
            info: &info,
            copy: &copy,
        };
        let verdict = if link.starts_with(b"socket:") {
            socket::examine(&open, &mut sockets).map(drop)
        } else {
            classify(&open, objects).map(drop)
        };
        match verdict {
            Ok(()) => {}
            Err(FreezerError::Refused(more)) => found.extend(more),
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Names the next pipe.
fn next_pipe(pipes: &[(Pipe, u64)]) -> PipeId {
    PipeId(u32::try_from(pipes.len()).unwrap_or(u32::MAX))
}
