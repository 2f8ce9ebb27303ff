//! Processes that cannot be rebuilt, and how the others are all the same.
//!
//! After the jump nobody can go back: one file that the new kernel does not have must not cost all processes their
//! lives. Those that an error is about, and those that share with them what can only be made for all, are lost: the
//! restore begins again with an empty process in the place of each ([`State::Lost`]), which is killed as soon as the
//! others go on. So for these it is as if somebody had killed it (`SIGKILL`): parents are told, children get a new
//! parent, other ends of pipes and sockets are closed.
//!
//! | where | what |
//! |---|---|
//! | [`who`] | whom an error is about, and what cannot be made |
//! | [`bonds`] | who is lost with them |
//! | [`without`] | the manifest without them |

mod bonds;
mod who;
mod without;

use crate::restore::{Options, restore};
use crate::thaw::World;
use crate::{ResurrectError, tree};
use persist_mem::manifest::{Manifest, Process, State};
use persist_mem::store::PageStore;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;
use sys::Pid;

/// So many times a restore begins again.
const TRIES: usize = 20;

/// A process that could not be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Its id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Why not.
    pub why: String,
}

impl core::fmt::Display for Lost {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Lost { pid, comm, why } = self;
        write!(f, "process {pid} ({comm}) is lost: {why}")
    }
}

/// Rebuilds every process that can be; says which cannot.
///
/// # Errors
/// As [`restore`], when it is not known whom the error is about, when the first process is among them, or when even
/// an empty process cannot be made in somebody's place.
pub fn restore_most(
    manifest: &Manifest,
    store: &dyn PageStore,
    options: Options<'_>,
) -> Result<(World, Vec<Lost>), ResurrectError> {
    let begun = Instant::now();
    let (mut tries, mut lost) = (0, Vec::new());
    let mut less: Option<Manifest> = None;
    loop {
        let now = less.as_ref().unwrap_or(manifest);
        let options = Options {
            elapsed: options.elapsed + begun.elapsed(),
            ..options
        };
        let error = match restore(now, store, options) {
            Ok(world) => return Ok((world, lost)),
            Err(error) => error,
        };
        let Some(next) = without_those_of(now, &error).filter(|_| tries < TRIES) else {
            return Err(error);
        };
        tries += 1;
        let more = newly_lost(now, &next, &error);
        more.iter()
            .for_each(|one| log::info!("{one}; it begins again"));
        lost.extend(more);
        less = Some(next);
    }
}

/// The manifest without whom an error is about. None when that would be nobody, or the first process.
fn without_those_of(manifest: &Manifest, error: &ResurrectError) -> Option<Manifest> {
    let mut gone = who::of(manifest, error.subject()?);
    bonds::extend(manifest, &mut gone);
    let first = manifest.processes.first()?.pid;
    let known: BTreeMap<Pid, &Process> = manifest.processes.iter().map(|p| (p.pid, p)).collect();
    let lives = |pid: &Pid| {
        known
            .get(pid)
            .is_some_and(|process| process.live().is_some())
    };
    if gone.processes.contains(&first) || !gone.processes.iter().any(lives) {
        return None;
    }
    let less = without::make(manifest, &gone);
    // A place that cannot be had for one must not cost all others a try.
    tree::possible(&less).ok().map(|()| less)
}

/// Who is lost in `after` and was not in `before`.
fn newly_lost(before: &Manifest, after: &Manifest, error: &ResurrectError) -> Vec<Lost> {
    let both = before.processes.iter().zip(&after.processes);
    let new = both.filter_map(|(before, after)| match (before.live(), &after.state) {
        (Some(_), State::Lost { remains, .. }) => Some(Lost {
            pid: after.pid.0,
            comm: String::from_utf8_lossy(&remains.comm).into_owned(),
            why: error.to_string(),
        }),
        _ => None,
    });
    new.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Subject;
    use persist_mem::manifest::{
        Description, DescriptionId, DescriptionKind, Descriptor, EpollTarget, Live, Lock,
        LockHolder, PipeId, RemovedDirectory, RemovedId, SemaphoreSet, Socket, SocketState, Undo,
        UndoMember, UnixLink, UnixSocket,
    };

    fn process(pid: i32, ppid: i32, fds: &[u32]) -> Process {
        let files = (0..).zip(fds).map(|(fd, id)| Descriptor {
            fd,
            cloexec: false,
            description: DescriptionId(*id),
        });
        let live = Live {
            files: files.collect(),
            ..Live::default()
        };
        Process {
            pid: Pid(pid),
            ppid: Pid(ppid),
            parent_thread: None,
            place: 0,
            pgid: Pid(1),
            sid: Pid(1),
            exit_signal: 17,
            state: State::Live(Box::new(live)),
        }
    }

    fn description(id: u32, kind: DescriptionKind) -> Description {
        Description {
            id: DescriptionId(id),
            flags: 0,
            pos: 0,
            unread: None,
            owner: None,
            hint: 0,
            denied: 0,
            kind,
        }
    }

    fn eventfd(id: u32) -> Description {
        let kind = DescriptionKind::EventFd {
            count: 0,
            semaphore: false,
        };
        description(id, kind)
    }

    fn epoll_of(id: u32, target: u32) -> Description {
        let target = EpollTarget {
            fd: 0,
            description: DescriptionId(target),
            events: 1,
            data: 0,
            pending: None,
        };
        let kind = DescriptionKind::Epoll {
            targets: vec![target],
            busy_poll: None,
        };
        description(id, kind)
    }

    fn unix(id: u32, peer: u32) -> Description {
        let state = UnixSocket {
            link: UnixLink::Connected(DescriptionId(peer)),
            ..UnixSocket::default()
        };
        let socket = Socket {
            domain: 1,
            kind: 1,
            protocol: 0,
            owner: (0, 0),
            mode: 0o777,
            options: Vec::new(),
            filter: Vec::new(),
            filter_locked: false,
            state: SocketState::Unix(state),
        };
        description(id, DescriptionKind::Socket(Box::new(socket)))
    }

    fn without_description(manifest: &Manifest, id: u32) -> Option<Manifest> {
        let error =
            ResurrectError::changed("it", "gone").about(Subject::Description(DescriptionId(id)));
        without_those_of(manifest, &error)
    }

    fn lost(manifest: &Manifest) -> Vec<i32> {
        let all = manifest.processes.iter();
        let lost = all.filter(|process| matches!(process.state, State::Lost { .. }));
        lost.map(|process| process.pid.0).collect()
    }

    fn ids(manifest: &Manifest) -> Vec<u32> {
        manifest.descriptions.iter().map(|one| one.id.0).collect()
    }

    #[test]
    fn all_who_have_a_file_are_lost_with_what_only_they_have() {
        let lock = |id| Lock {
            holder: LockHolder::Whole(DescriptionId(id)),
            write: true,
            range: (0, None),
            taker: Pid(2),
        };
        let manifest = Manifest {
            processes: vec![
                process(1, 0, &[3]),
                process(2, 1, &[0, 1]),
                process(3, 1, &[0]),
                process(4, 1, &[2]),
            ],
            descriptions: vec![
                eventfd(0),
                eventfd(1),
                epoll_of(2, 0),
                unix(3, 4),
                unix(4, 3),
            ],
            locks: vec![lock(0), lock(1), lock(2)],
            ..Manifest::default()
        };
        let less = without_description(&manifest, 0).unwrap();
        assert_eq!(lost(&less), [2, 3]);
        assert_eq!(ids(&less), [2, 3, 4], "the other end of a socket is made");
        assert_eq!(less.locks, [lock(2)]);
        let DescriptionKind::Epoll { targets, .. } = &less.descriptions[0].kind else {
            panic!("it was an epoll");
        };
        assert_eq!(targets.len(), 0);
    }

    #[test]
    fn a_socket_outlives_its_other_end() {
        let manifest = Manifest {
            processes: vec![process(1, 0, &[0]), process(2, 1, &[1])],
            descriptions: vec![unix(0, 1), unix(1, 0)],
            ..Manifest::default()
        };
        let less = without_description(&manifest, 1).unwrap();
        assert_eq!((lost(&less), ids(&less)), (vec![2], vec![0]));
        let DescriptionKind::Socket(socket) = &less.descriptions[0].kind else {
            panic!("it was a socket");
        };
        let SocketState::Unix(unix) = &socket.state else {
            panic!("it was a unix socket");
        };
        assert!(
            matches!(unix.link, UnixLink::Gone { .. }),
            "{:?}",
            unix.link
        );
    }

    #[test]
    fn both_ends_of_a_pipe_are_lost_and_what_is_below_a_directory() {
        let end = |id| description(id, DescriptionKind::Pipe(PipeId(5)));
        let below = |id, within| RemovedDirectory {
            id: RemovedId(id),
            path: Vec::new(),
            within,
            mode: 0,
            owner: (0, 0),
            times: [persist_mem::manifest::FileTime {
                seconds: 0,
                nanoseconds: 0,
            }; 2]
                .into(),
        };
        let manifest = Manifest {
            processes: vec![
                process(1, 0, &[]),
                process(2, 1, &[0]),
                process(3, 1, &[1]),
                process(4, 1, &[2]),
            ],
            descriptions: vec![
                end(0),
                end(1),
                description(2, DescriptionKind::Removed(RemovedId(8))),
            ],
            removed: vec![below(7, None), below(8, Some(RemovedId(7)))],
            ..Manifest::default()
        };
        let of = |subject| {
            let error = ResurrectError::own("making it")(sys::Errno::EIO);
            without_those_of(&manifest, &error.about(subject)).unwrap()
        };
        let less = of(Subject::Pipe(PipeId(5)));
        assert_eq!((lost(&less), ids(&less)), (vec![2, 3], vec![2]));
        let less = of(Subject::Removed(RemovedId(7)));
        assert_eq!((lost(&less), less.removed.len()), (vec![4], 0));
    }

    #[test]
    fn what_only_an_epoll_has_is_not_forgotten_in_silence() {
        let manifest = Manifest {
            processes: vec![process(1, 0, &[]), process(2, 1, &[1])],
            descriptions: vec![eventfd(0), epoll_of(1, 0)],
            ..Manifest::default()
        };
        let less = without_description(&manifest, 0).unwrap();
        assert_eq!((lost(&less), ids(&less)), (vec![2], vec![]));
    }

    #[test]
    fn who_shares_memory_is_lost_too() {
        let mut manifest = Manifest {
            processes: vec![process(1, 0, &[]), process(2, 1, &[0]), process(3, 2, &[])],
            descriptions: vec![eventfd(0)],
            ..Manifest::default()
        };
        let State::Live(live) = &mut manifest.processes[2].state else {
            panic!("it lives");
        };
        live.mm_of = Some(Pid(2));
        let less = without_description(&manifest, 0).unwrap();
        assert_eq!(lost(&less), [2, 3]);
    }

    #[test]
    fn nobody_is_restored_without_the_first_process() {
        let manifest = Manifest {
            processes: vec![process(1, 0, &[0]), process(2, 1, &[])],
            descriptions: vec![eventfd(0)],
            ..Manifest::default()
        };
        assert_eq!(without_description(&manifest, 0), None);
        let error = ResurrectError::own("opening it")(sys::Errno::EIO);
        assert_eq!(without_those_of(&manifest, &error), None);
    }

    #[test]
    fn it_ends_when_an_empty_process_cannot_be_made_either() {
        let manifest = Manifest {
            processes: vec![process(1, 0, &[]), process(2, 1, &[])],
            ..Manifest::default()
        };
        let error = ResurrectError::call(Pid(2), "making it")(sys::Errno::ENOMEM);
        let less = without_those_of(&manifest, &error).unwrap();
        assert_eq!(lost(&less), [2]);
        assert_eq!(without_those_of(&less, &error), None);
    }

    #[test]
    fn semaphores_are_undone() {
        let undo = |pid, adjustment| Undo {
            pid: Pid(pid),
            tid: Pid(pid).leader(),
            set: 7,
            members: vec![UndoMember {
                number: 0,
                adjustment,
                value: 5,
                last: Pid(3),
            }],
        };
        let mut set = SemaphoreSet {
            perm: persist_mem::manifest::IpcPerm::default(),
            members: vec![(5, Pid(3))],
            operated: true,
        };
        set.perm.id = 7;
        let manifest = Manifest {
            processes: vec![process(1, 0, &[]), process(2, 1, &[]), process(3, 1, &[])],
            semaphores: vec![set],
            undo: vec![undo(2, -2), undo(3, -1)],
            ..Manifest::default()
        };
        let error = ResurrectError::call(Pid(2), "making it")(sys::Errno::ENOMEM);
        let less = without_those_of(&manifest, &error).unwrap();
        assert_eq!(less.semaphores[0].members, [(3, Pid(2))]);
        let [left] = &less.undo[..] else {
            panic!("{:?}", less.undo);
        };
        assert_eq!((left.pid, left.members[0].value), (Pid(3), 3));
    }
}
