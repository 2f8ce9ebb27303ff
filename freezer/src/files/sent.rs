//! Descriptors that a stopped thread hands over itself: before Linux 6.9 no pidfd leads to a table that no leader
//! has, since there are none of threads. The thread sends them to a socket of this process (unix(7), `SCM_RIGHTS`).
//!
//! While such a process runs nobody can copy its descriptors. They are looked at by references to their files
//! (`O_PATH`) then, which tell enough of all but sockets, terminals and others that answer questions of their own.

use super::{O_PATH, apart};
use crate::proc::{self, Stat};
use crate::{FreezerError, Refusal};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use sys::batch::{Batch, Buffer};
use sys::process::{self, KcmpKind, kcmp};
use sys::tracee::Tracee;
use sys::{Errno, Pid, Tid, socket};

const SOCKET: i64 = 41;
const SENDMSG: i64 = 46;
const CLOSE: i64 = 3;
const AF_UNIX: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const CLOEXEC: i32 = 0o2_000_000;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_DONTWAIT: i32 = 0x40;
/// Descriptors of a message; the kernel takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 200;

/// Copies of the descriptors of tables, by their numbers.
pub(crate) type Copies = BTreeMap<Pid, BTreeMap<i32, OwnedFd>>;

/// Tables of a stopped process that nobody but a thread leads to, and that thread.
pub(crate) fn needed(pid: Pid, first: Tid, threads: &[Tid]) -> Vec<(Pid, Tid)> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let me = Tid(nix::unistd::gettid().as_raw());
    let pidfds_of_threads =
        || process::pidfd_of_thread(me).map_or_else(|errno| errno != Errno::EINVAL, |_| true);
    if *KNOWN.get_or_init(pidfds_of_threads) {
        return Vec::new();
    }
    let own = (first != pid.leader()).then_some((pid, first));
    let groups = apart::groups(pid, first, threads);
    let apart = groups.iter().map(|group| (Pid(group[0].0), group[0]));
    own.into_iter().chain(apart).collect()
}

/// Has a thread send every descriptor of its table.
///
/// # Errors
/// When it cannot be done, or not all have come.
pub(crate) fn hand_over(
    tracee: &mut Tracee,
    table: Pid,
) -> Result<BTreeMap<i32, OwnedFd>, FreezerError> {
    let failed = || FreezerError::call(table, "having its descriptors handed over");
    let receiver = socket::socket(AF_UNIX, SOCK_DGRAM | CLOEXEC, 0).map_err(failed())?;
    // The kernel chooses an abstract name.
    let family = (AF_UNIX as u16).to_ne_bytes();
    socket::bind(receiver.as_fd(), &family).map_err(failed())?;
    let name = socket::name(receiver.as_fd()).map_err(failed())?;
    let numbers = proc::numbers(table, "fd")?;
    let mut copies = BTreeMap::new();
    for some in numbers.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        let message = message(&mut batch, &name, some);
        let kind = SOCK_DGRAM | CLOEXEC;
        let args = [AF_UNIX.into(), kind.into(), 0.into()];
        let sender = batch.call("making a socket", SOCKET, args);
        let args = [sender.into(), message.into(), MSG_DONTWAIT.into()];
        let sent = batch.try_call("sending descriptors", SENDMSG, args);
        batch.try_call("closing a socket", CLOSE, [sender.into()]);
        let output = tracee.run(&batch).map_err(FreezerError::tracee(table))?;
        output.result(sent).map_err(failed())?;
        let received = socket::receive(receiver.as_fd(), MSG_DONTWAIT, 1).map_err(failed())?;
        if received.fds.len() != some.len() {
            return Err(failed()(Errno::EMFILE));
        }
        copies.extend(some.iter().copied().zip(received.fds));
    }
    Ok(copies)
}

/// A `struct msghdr` with one byte and these descriptors.
fn message(batch: &mut Batch, name: &[u8], numbers: &[i32]) -> Buffer {
    const HEADER: usize = 16;
    let (to, byte) = (batch.data(name), batch.data(&[0]));
    let part = batch.data(&[0_u64, 1].map(u64::to_ne_bytes).concat());
    batch.pointer(part, 0, byte);
    let len = HEADER + 4 * numbers.len();
    let mut control = (len as u64).to_ne_bytes().to_vec();
    control.extend([SOL_SOCKET, SCM_RIGHTS].map(i32::to_ne_bytes).concat());
    control.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
    let rights = batch.data(&control);
    // Name, its length, parts, their number, control data, its length, flags.
    let words = [0, name.len() as u64, 0, 1, 0, len as u64, 0];
    let message = batch.data(&words.map(u64::to_ne_bytes).concat());
    batch.pointer(message, 0, to);
    batch.pointer(message, 16, part);
    batch.pointer(message, 32, rights);
    message
}

/// A descriptor of a running table that no pidfd leads to: a copy where the process or its parent has the same
/// under the same number, or a reference to its file. The second is whether it is a copy.
pub(super) fn look(table: Pid, fd: i32) -> Option<(OwnedFd, bool)> {
    let holder = proc::representative(table)?;
    let tgid = proc::tgid(table)?;
    let parent = Stat::read(tgid, "stat").ok()?.pid(4);
    for other in [tgid, parent].into_iter().filter(|pid| *pid != table) {
        let same = proc::representative(other).is_some_and(|its| {
            kcmp(holder, its, KcmpKind::File, fd, fd).is_ok_and(Ordering::is_eq)
        });
        let copy = || process::pidfd_getfd(proc::pidfd(other)?.as_fd(), fd);
        if same && let Ok(copy) = copy() {
            return Some((copy, true));
        }
    }
    let flags = OFlag::from_bits_retain(O_PATH.cast_signed() | CLOEXEC);
    let path = proc::path(table, &format!("fd/{fd}"));
    let reference = nix::fcntl::open(path.as_str(), flags, Mode::empty());
    Some((reference.ok()?, false))
}

/// Why a descriptor that only [`look`] leads to is not carried.
pub(super) fn refusal(table: Pid, fd: i32, link: &[u8]) -> Refusal {
    Refusal {
        pid: table,
        comm: proc::comm(table),
        resource: format!("fd {fd} ({})", String::from_utf8_lossy(link)),
        reason: "its table is not that of a leading thread (which has ended, or it is a thread's own), and this \
                 kernel lets nobody look into such a one closely enough (pidfds of threads came with Linux 6.9)"
            .into(),
    }
}

/// Why such a table is not carried as a whole: the socket that its thread sends through must have a number.
pub(super) fn full(table: Pid, numbers: &[i32]) -> Option<Refusal> {
    const RLIMIT_NOFILE: u32 = 7;
    let (soft, _) = process::prlimit(proc::tgid(table)?, RLIMIT_NOFILE, None).ok()?;
    let below = numbers
        .iter()
        .filter(|number| u64::try_from(**number).is_ok_and(|n| n < soft));
    (below.count() as u64 >= soft).then(|| Refusal {
        pid: table,
        comm: proc::comm(table),
        resource: "descriptor table".into(),
        reason: "it is full (RLIMIT_NOFILE), and before Linux 6.9 its thread hands the descriptors over by one more"
            .into(),
    })
}
