//! The order of rebuilding.
//!
//! Each stage may rely on all before it. Credentials are dropped after everything that needs privileges;
//! registers come last, since every batch runs on them. Only from outside can anything be done after.

use crate::ResurrectError;
use crate::restore::Restore;
use crate::{files, ipc, memory, objects, process, processor, thread, tree};

/// A step of rebuilding, for all processes.
pub(crate) type Stage = fn(&mut Restore<'_>) -> Result<(), ResurrectError>;

/// Name, function.
pub(crate) const STAGES: &[(&str, Stage)] = &[
    ("ids", tree::ids::check),
    ("who may confine others", thread::confinement::check),
    ("sockets that nobody holds", files::garbage::collect),
    ("terminals", files::terminal::make),
    ("memory objects", objects::make),
    ("control groups", process::cgroups::make),
    ("processes", tree::build),
    ("shared memory segments", objects::make_segments),
    ("semaphores and messages", ipc::make),
    ("memory", memory::build),
    ("a look at the pages", memory::look),
    (
        "domains that threads share",
        thread::landlock::before_threads,
    ),
    ("threads", thread::birth::create),
    ("flags", thread::registers::load_flags),
    ("rings of io_uring", files::uring::open_made),
    ("open files", files::open),
    ("descriptor tables", files::hand_over),
    ("contents of rings", files::uring::fill),
    ("mappings of rings", memory::uring::map),
    ("mappings of rings of packets", memory::packet_rings::map),
    ("places of rings", memory::moved_rings::change),
    ("directories", process::directories::set),
    ("control groups of threads", process::cgroups::enter_threads),
    ("undo of semaphores", ipc::undo::set),
    ("signal actions", process::signals::set_actions),
    // Before what would be told of their end.
    ("zombies", tree::zombies::end_all),
    ("files from inside", files::inside),
    ("notifications of message queues", files::mqueue::notify),
    ("owners of signals", files::owner::set),
    ("asynchronous I/O", memory::aio::set),
    ("timers", process::timers::set),
    ("clocks of processor time", memory::cpu_clocks::set),
    ("stopped jobs", process::jobs::stop),
    ("attributes of threads", thread::attributes::set),
    ("AMX", thread::tiles::ask),
    ("attributes of processes", process::attributes::set),
    ("autogroups", process::autogroup::set),
    ("memory policies", memory::policy::set),
    ("ends of memory objects", objects::finish),
    ("leases of removed files", files::leases),
    ("watches of files", files::watch),
    ("requests of io_uring that wait", files::uring::fill_waiting),
    ("mappings of rings of buffers", memory::uring::map_buffers),
    // When nobody needs the numbers of descriptors that are closed, and before the way to this process is.
    ("rulesets of Landlock", thread::landlock::take),
    ("ways back", files::close_way_back),
    // Behind all that a domain forbids.
    ("domains of Landlock", thread::landlock::enforce),
    ("limits", process::limits::set),
    ("seccomp", thread::seccomp::set),
    ("leaders that have ended", thread::leader::end),
    ("parents in vfork", tree::vfork::end_helpers),
    ("credentials", thread::credentials::set),
    ("queued signals", thread::signals::queue),
    // Behind the signals, which a profile may forbid to queue.
    ("profiles of AppArmor", thread::confinement::set),
    ("tracees", thread::traced::hand_over),
    ("registers", thread::registers::set),
    ("processors", processor::set),
    // Behind all that touches memory from outside: nobody would answer.
    ("page faults that are told", files::userfault::register),
    // When there is nothing more in a process than is its own.
    ("made-up files", files::pseudo::seek),
    ("signals that stop", thread::signals::queue_stops),
];
