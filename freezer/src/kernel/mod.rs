//! What no interface of the kernel shows, read from its memory ([`sys::kernel_memory`]).
//!
//! Here is how things are found: structures by the kernel's own description of its types ([`btf`]), threads
//! from the numbers of this PID namespace ([`mod@tasks`]), open files from their tables ([`mod@files`]), messages in
//! the queues of sockets ([`mod@sockets`]), what epolls watch ([`mod@epolls`]), buffers of pipes ([`mod@pipes`]), triggers
//! of pressure ([`mod@pressure`]), inodes
//! ([`mod@inodes`]), kinds of open files ([`mod@nature`]), what is told of files ([`mod@notify`]), paths ([`mod@paths`]), connections of TCP
//! ([`mod@connections`]), terminals ([`mod@terminals`]), rings of io_uring ([`mod@uring`], [`mod@ring_requests`], [`mod@ring_links`],
//! [`mod@ring_messages`], [`mod@ring_resources`], [`mod@ring_groups`]), pages ([`mod@pages`]),
//! mappings ([`mod@vmas`]), who handles page faults ([`mod@userfaults`]), seccomp filters ([`mod@seccomp`]), maps of BPF ([`mod@bpf_maps`]), domains of Landlock ([`mod@landlock`]), what AppArmor knows of threads ([`mod@confinement`]), counters of the processors ([`mod@processors`]), what
//! sleeping threads wait for ([`mod@stacks`]). What they
//! mean is with the kind of resource:
//! `ipc/undo.rs`, `capture/restart.rs`, `files/mqueue`. Whatever is not as expected is
//! [`Unreadable`], and the caller does without.

mod bpf_maps;
mod btf;
mod confinement;
mod connections;
mod credentials;
mod epolls;
mod files;
mod inodes;
mod landlock;
mod locks;
mod nature;
mod notify;
mod oom;
mod pages;
mod paths;
mod pipes;
mod pressure;
mod processors;
mod ring_awaited;
mod ring_groups;
mod ring_links;
mod ring_messages;
mod ring_requests;
mod ring_resources;
mod ring_workers;
mod seccomp;
pub(crate) mod sockets;
mod stacks;
mod tables;
mod tasks;
mod terminals;
mod timers;
mod uring;
mod userfaults;
mod vmas;
mod xfeatures;

pub(crate) use btf::Btf;
pub(crate) use confinement::Transitions;
pub(crate) use epolls::Entry as EpollEntry;
pub(crate) use files::OpenFile;
pub(crate) use landlock::{Domain, Object, number};
pub(crate) use locks::RangeLock;
pub(crate) use nature::Nature;
pub(crate) use notify::Watched;
pub(crate) use paths::KnownNames;
pub(crate) use ring_groups::GroupRing;
pub(crate) use ring_requests::{Until, Waiting};
pub(crate) use ring_workers::AtWork;
pub(crate) use seccomp::FilterAt;
pub(crate) use stacks::{Place, Waits};
pub(crate) use tables::words_of;
pub(crate) use tasks::PutOff;
pub(crate) use uring::{RingState, RingUser};
pub(crate) use userfaults::FaultHandler;
pub(crate) use vmas::Vma;

use core::cell::RefCell;
use std::collections::BTreeMap;
use sys::kernel_memory::{KernelMemory, Request};
use sys::{Errno, Tid};

/// Why something could not be read from the kernel's memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// No program can be loaded that would read.
    #[error("the kernel does not let its memory be read: {0}")]
    NotAllowed(Errno),
    /// There is no description of types.
    #[error("the kernel's types: {0}")]
    NoTypes(String),
    /// The kernel has no such field, or several.
    #[error("the kernel has no {0}")]
    NoField(String),
    /// It has changed while it was read, or is not what it should be.
    #[error("{0} is not consistent")]
    Inconsistent(&'static str),
}

/// What was found; None where the kernel's memory cannot be read at all, so that a test has nothing to look at.
#[cfg(test)]
pub(crate) fn readable<T>(found: Result<T, Unreadable>) -> Option<T> {
    match found {
        Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => None,
        found => Some(found.unwrap()),
    }
}

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    memory: KernelMemory,
    btf: Btf,
    tasks: Option<tasks::Tasks>,
    /// Where threads were when they were looked up.
    places_of_tasks: BTreeMap<Tid, tasks::Place>,
    places: Option<pages::Places>,
    /// The bit of an inode's state that tells that it can be named.
    linkable: Option<u32>,
    /// Addresses of symbols that were looked up.
    symbols: BTreeMap<&'static str, Option<u64>>,
    /// What [`Kernel::clock_offsets`] has found.
    offsets: Option<[i64; 2]>,
}

thread_local! {
    /// Made once, where it is needed first: loading the program and reading the types takes a moment.
    static KERNEL: RefCell<Option<Result<Kernel, Unreadable>>> = const { RefCell::new(None) };
}

/// Looks into the kernel.
///
/// # Errors
/// [`Unreadable`]; the caller then does without.
pub(crate) fn look<T>(
    look: impl FnOnce(&mut Kernel) -> Result<T, Unreadable>,
) -> Result<T, Unreadable> {
    KERNEL.with_borrow_mut(|kernel| {
        let opened = kernel.get_or_insert_with(|| {
            let opened = Kernel::open();
            if let Err(why) = &opened {
                log::debug!("doing without the kernel's memory: {why}");
            }
            opened
        });
        match opened {
            Ok(kernel) => look(kernel),
            Err(why) => Err(why.clone()),
        }
    })
}

/// Makes ready to look.
pub(crate) fn prepare() {
    // Whoever looks is told.
    let _ = look(|kernel| kernel.tasks(&[]));
}

impl Kernel {
    fn open() -> Result<Kernel, Unreadable> {
        Ok(Kernel {
            memory: KernelMemory::open().map_err(Unreadable::NotAllowed)?,
            btf: Btf::load()?,
            tasks: None,
            places_of_tasks: BTreeMap::new(),
            places: None,
            linkable: None,
            symbols: BTreeMap::new(),
            offsets: None,
        })
    }

    /// Address of the calling thread's `task_struct`.
    pub(crate) fn own_task(&mut self) -> Result<u64, Unreadable> {
        self.memory.own_task().map_err(Unreadable::NotAllowed)
    }

    /// Where fields are.
    pub(crate) fn btf(&self) -> &Btf {
        &self.btf
    }

    /// What lies at several addresses, None where nothing does.
    pub(crate) fn read(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Option<Vec<u8>>>, Unreadable> {
        self.memory.read(requests).map_err(Unreadable::NotAllowed)
    }

    /// Address of a function or variable, None when it is not known.
    pub(crate) fn symbol(&mut self, name: &'static str) -> Option<u64> {
        let memory = &mut self.memory;
        *self
            .symbols
            .entry(name)
            .or_insert_with(|| memory.symbol(name).ok())
    }

    /// What to add to this process's CLOCK_MONOTONIC and CLOCK_BOOTTIME to have those of the first time
    /// namespace (time_namespaces(7)), in nanoseconds.
    pub(crate) fn clock_offsets(&mut self) -> Result<[i64; 2], Unreadable> {
        let found = match self.offsets {
            Some(found) => found,
            None => self.find_clock_offsets()?,
        };
        self.offsets = Some(found);
        Ok(found)
    }

    fn find_clock_offsets(&mut self) -> Result<[i64; 2], Unreadable> {
        const WHAT: &str = "the own time namespace";
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (proxy, space) = (
            field("task_struct", "nsproxy")?,
            field("nsproxy", "time_ns")?,
        );
        let offsets = [
            field("time_namespace", "offsets.monotonic.tv_sec")?,
            field("time_namespace", "offsets.monotonic.tv_nsec")?,
            field("time_namespace", "offsets.boottime.tv_sec")?,
            field("time_namespace", "offsets.boottime.tv_nsec")?,
        ];
        let own = self.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let proxy = self.word(own.wrapping_add(proxy), WHAT)?;
        let space = self.word(proxy.wrapping_add(space), WHAT)?;
        let found = self.words(&offsets.map(|at| space.wrapping_add(at)))?;
        let found: Option<Vec<i64>> = found.into_iter().map(|w| w.map(u64::cast_signed)).collect();
        match found.as_deref() {
            Some([a, b, c, d]) => {
                let ns = |s: i64, ns| s.saturating_mul(1_000_000_000).saturating_add(ns);
                Ok([-ns(*a, *b), -ns(*c, *d)])
            }
            _ => Err(Unreadable::Inconsistent(WHAT)),
        }
    }

    /// The words at several addresses.
    pub(crate) fn words(&mut self, addresses: &[u64]) -> Result<Vec<Option<u64>>, Unreadable> {
        let requests: Vec<Request> = addresses.iter().map(|address| (*address, 8)).collect();
        let found = self.read(&requests)?;
        Ok(found.iter().map(|bytes| word(bytes.as_ref()?, 0)).collect())
    }

    /// The word at an address, which must be there.
    pub(crate) fn word(&mut self, address: u64, what: &'static str) -> Result<u64, Unreadable> {
        let found = self.words(&[address])?;
        found
            .into_iter()
            .flatten()
            .next()
            .ok_or(Unreadable::Inconsistent(what))
    }
}

/// Eight bytes of something that was read.
pub(crate) fn word(bytes: &[u8], at: u64) -> Option<u64> {
    let bytes = bytes.get(usize::try_from(at).ok()?..)?;
    Some(u64::from_le_bytes(*bytes.first_chunk::<8>()?))
}

/// Four bytes of something that was read.
pub(crate) fn half(bytes: &[u8], at: u64) -> Option<u32> {
    let bytes = bytes.get(usize::try_from(at).ok()?..)?;
    Some(u32::from_le_bytes(*bytes.first_chunk::<4>()?))
}
