//! What is known about the saved host: plain data, written by `freezer`, read by `resurrect`.
//!
//! A type that derives `Serialize` here is part of the format: any change of one raises
//! [`crate::format::VERSION`].

mod births;
mod cgroups;
mod files;
mod host;
mod ipc;
mod landlock;
mod memory;
mod named;
mod pages;
mod process;
mod sockets;
mod thread;
mod timers;
mod traced;
mod tunnel;
mod upgrade;
mod uring;

pub use births::*;
pub use cgroups::*;
pub use files::*;
pub use host::*;
pub use ipc::*;
pub use landlock::*;
pub use memory::*;
pub use pages::*;
pub use process::*;
pub use sockets::*;
pub use thread::*;
pub use timers::*;
pub use traced::*;
pub use tunnel::*;
pub use upgrade::*;
pub use uring::*;

use crate::format::{FormatError, Kind, Writer, records};
use sys::{Pid, Tid};

/// A whole saved system, or process tree.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Manifest {
    /// Where and when it was saved.
    pub host: Host,
    /// Every process, parents before their children.
    pub processes: Vec<Process>,
    /// Open file descriptions, named by [`DescriptionId`].
    pub descriptions: Vec<Description>,
    /// Pipes and FIFOs that descriptions are ends of.
    pub pipes: Vec<Pipe>,
    /// Terminals that descriptions are open on, or sessions have.
    pub terminals: Vec<Terminal>,
    /// Directories without a name.
    pub removed: Vec<RemovedDirectory>,
    /// Locks of files.
    pub locks: Vec<Lock>,
    /// Directories that processes are told of.
    pub notices: Vec<Notice>,
    /// Memory objects mapped shared.
    pub shared_objects: Vec<SharedObject>,
    /// System V semaphores of the host; none in an image of `kupgrade checkpoint`, which leaves them.
    pub semaphores: Vec<SemaphoreSet>,
    /// What processes' ends will do to semaphores.
    pub undo: Vec<Undo>,
    /// System V message queues of the host, as the semaphores.
    pub message_queues: Vec<MessageQueue>,
    /// POSIX message queues.
    pub posix_queues: Vec<PosixQueue>,
    /// Interfaces that descriptors of `/dev/net/tun` are open on.
    pub tunnels: Vec<Tunnel>,
    /// Control groups that processes are in, and those above them, these first.
    pub cgroups: Vec<Cgroup>,
    /// Check sums of the pages in an image of `kupgrade checkpoint`; None where pages stay in memory.
    pub page_sums: Option<PageSums>,
    /// The upgrade under way; None in an image of `kupgrade checkpoint`.
    pub upgrade: Option<Box<Upgrade>>,
}

/// A table of descriptors, and who has it.
#[derive(Clone, Copy, Debug)]
pub struct FileTable<'a> {
    /// The process.
    pub pid: Pid,
    /// Its thread that has it, None for the process as a whole.
    pub thread: Option<Tid>,
    /// It is another process's (CLONE_FILES).
    pub shared: bool,
    /// What is in it, in ascending order.
    pub files: &'a [Descriptor],
}

impl FileTable<'_> {
    /// The id by which `/proc` shows it: the process's, or that of the thread that has it.
    #[must_use]
    pub fn shown_as(&self) -> Pid {
        self.thread.map_or(self.pid, |tid| Pid(tid.0))
    }
}

impl Manifest {
    /// Encodes it.
    ///
    /// # Errors
    /// [`FormatError::Unencodable`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut writer = Writer::new();
        writer.record(Kind::Host, &self.host)?;
        if let Some(upgrade) = &self.upgrade {
            writer.record(Kind::Upgrade, upgrade)?;
        }
        if let Some(sums) = &self.page_sums {
            writer.record(Kind::PageSums, sums)?;
        }
        for pipe in &self.pipes {
            writer.record(Kind::Pipe, pipe)?;
        }
        for terminal in &self.terminals {
            writer.record(Kind::Terminal, terminal)?;
        }
        for directory in &self.removed {
            writer.record(Kind::Removed, directory)?;
        }
        for lock in &self.locks {
            writer.record(Kind::Lock, lock)?;
        }
        for notice in &self.notices {
            writer.record(Kind::Notice, notice)?;
        }
        for set in &self.semaphores {
            writer.record(Kind::Semaphores, set)?;
        }
        for undo in &self.undo {
            writer.record(Kind::Undo, undo)?;
        }
        for queue in &self.message_queues {
            writer.record(Kind::Messages, queue)?;
        }
        for queue in &self.posix_queues {
            writer.record(Kind::PosixQueue, queue)?;
        }
        for tunnel in &self.tunnels {
            writer.record(Kind::Tunnel, tunnel)?;
        }
        for group in &self.cgroups {
            writer.record(Kind::Cgroup, group)?;
        }
        for object in &self.shared_objects {
            writer.record(Kind::SharedObject, object)?;
        }
        for description in &self.descriptions {
            writer.record(Kind::Description, description)?;
        }
        for process in &self.processes {
            writer.record(Kind::Process, process)?;
        }
        writer.finish()
    }

    /// Decodes and checks it.
    ///
    /// # Errors
    /// As the variants of [`FormatError`] say.
    pub fn from_bytes(body: &[u8]) -> Result<Manifest, FormatError> {
        let found = records(body)?;
        let Some((head, rest)) = found
            .split_first()
            .filter(|(head, _)| head.kind == Kind::Host)
        else {
            return Err(FormatError::Incomplete("there is no host record".into()));
        };
        let mut manifest = Manifest {
            host: head.decode()?,
            ..Manifest::default()
        };
        for record in rest {
            match record.kind {
                Kind::Process => manifest.processes.push(record.decode()?),
                Kind::Description => manifest.descriptions.push(record.decode()?),
                Kind::Pipe => manifest.pipes.push(record.decode()?),
                Kind::Terminal => manifest.terminals.push(record.decode()?),
                Kind::Removed => manifest.removed.push(record.decode()?),
                Kind::Lock => manifest.locks.push(record.decode()?),
                Kind::Notice => manifest.notices.push(record.decode()?),
                Kind::Semaphores => manifest.semaphores.push(record.decode()?),
                Kind::Undo => manifest.undo.push(record.decode()?),
                Kind::Messages => manifest.message_queues.push(record.decode()?),
                Kind::PosixQueue => manifest.posix_queues.push(record.decode()?),
                Kind::Cgroup => manifest.cgroups.push(record.decode()?),
                Kind::Tunnel => manifest.tunnels.push(record.decode()?),
                Kind::SharedObject => manifest.shared_objects.push(record.decode()?),
                Kind::PageSums => manifest.page_sums = Some(record.decode()?),
                Kind::Upgrade => manifest.upgrade = Some(record.decode()?),
                Kind::Host | Kind::End => {
                    return Err(FormatError::Incomplete("a second host record".into()));
                }
            }
        }
        manifest.check_references()?;
        Ok(manifest)
    }

    /// Every id that is used must be defined.
    fn check_references(&self) -> Result<(), FormatError> {
        let missing = |what: String| Err(FormatError::Incomplete(what));
        for process in &self.processes {
            let pid = process.pid;
            let Some(live) = process.live() else { continue };
            let mut threads = live.all_threads();
            let led = threads.any(|thread| thread.tid == pid.leader());
            let led = led != live.ended_leader.is_some() && live.all_threads().next().is_some();
            if !led {
                return missing(format!("process {pid} has no leading thread"));
            }
            for thread in &live.threads {
                if let Some(ThreadFiles::Of(other)) = thread.files
                    && !live.threads.iter().any(|known| {
                        known.tid == other && matches!(known.files, Some(ThreadFiles::Own(_)))
                    })
                {
                    return missing(format!(
                        "thread {} of process {pid} shares descriptors of {other}, which has none of its own",
                        thread.tid
                    ));
                }
            }
        }
        self.check_births()?;
        for table in self.tables() {
            for entry in table.files {
                if self.description(entry.description).is_none() {
                    return missing(format!(
                        "descriptor {} of process {} names a description that is not here",
                        entry.fd, table.pid
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every thread must have somebody who makes it.
    fn check_births(&self) -> Result<(), FormatError> {
        for process in &self.processes {
            if let Some(Err(tid)) = process.live().map(Live::births) {
                let pid = process.pid;
                let why = format!("nobody can make thread {tid} of process {pid} as it is");
                return Err(FormatError::Incomplete(why));
            }
        }
        Ok(())
    }

    /// The descriptors of every process, then those of threads that have their own.
    pub fn tables(&self) -> impl Iterator<Item = FileTable<'_>> {
        let lives = || {
            self.processes
                .iter()
                .filter_map(|p| Some((p.pid, p.live()?)))
        };
        let of_processes = lives().map(|(pid, live)| FileTable {
            pid,
            thread: None,
            shared: live.files_of.is_some(),
            files: &live.files,
        });
        let of_threads = lives().flat_map(|(pid, live)| {
            live.threads
                .iter()
                .filter_map(move |thread| match &thread.files {
                    Some(ThreadFiles::Own(files)) => Some(FileTable {
                        pid,
                        thread: Some(thread.tid),
                        shared: false,
                        files,
                    }),
                    _ => None,
                })
        });
        of_processes.chain(of_threads)
    }

    /// A description by its id.
    #[must_use]
    pub fn description(&self, id: DescriptionId) -> Option<&Description> {
        // They are usually numbered as they come.
        let guess = usize::try_from(id.0).ok();
        let guess = guess.and_then(|at| self.descriptions.get(at));
        guess
            .filter(|d| d.id == id)
            .or_else(|| self.descriptions.iter().find(|d| d.id == id))
    }

    /// The first table that holds a description, and its number there; None when it is in flight.
    #[must_use]
    pub fn holder(&self, id: DescriptionId) -> Option<(FileTable<'_>, i32)> {
        self.tables().find_map(|table| {
            let entry = table.files.iter().find(|f| f.description == id)?;
            Some((table, entry.fd))
        })
    }

    /// A terminal by its id.
    #[must_use]
    pub fn terminal(&self, id: TerminalId) -> Option<&Terminal> {
        self.terminals.iter().find(|t| t.id == id)
    }

    /// A pipe by its id.
    #[must_use]
    pub fn pipe(&self, id: PipeId) -> Option<&Pipe> {
        self.pipes.iter().find(|p| p.id == id)
    }
}
