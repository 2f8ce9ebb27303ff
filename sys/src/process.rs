//! Processes from outside: pidfds, comparisons, creation with chosen ids.

use crate::raw::syscall;
use crate::{Errno, Pid, Result, Tid};
use nix::poll::{PollFd, PollFlags, ppoll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn owned(fd: u64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

/// pidfd_open(2).
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    pidfd_open_with(pid, 0)
}

/// pidfd_open(2) with flags (`PIDFD_THREAD`).
///
/// # Errors
/// As [`pidfd_open`]; `EINVAL` for flags that the kernel does not know.
pub fn pidfd_open_with(pid: Pid, flags: u32) -> Result<OwnedFd> {
    let args = [pid.0 as u64, u64::from(flags), 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_pidfd_open, args) }.map(owned)
}

/// Waits until the process of a pidfd has ended: what a child does that its parent is to find later, so that it
/// does not outlive a parent that was killed.
pub fn wait_for_end(pidfd: impl AsFd) {
    loop {
        let mut asked = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut asked, None, None) {
            Err(Errno::EINTR) => (),
            _ => return,
        }
    }
}

/// A pidfd through which descriptors can be copied: of the process, or of its thread `tid` where the leader
/// has ended and has none any more (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
/// As [`pidfd_open_with`].
pub fn pidfd_through(pid: Pid, tid: Tid) -> Result<OwnedFd> {
    if tid == pid.leader() {
        pidfd_open(pid)
    } else {
        pidfd_of_thread(tid)
    }
}

/// A pidfd of a thread (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
/// As [`pidfd_open_with`].
pub fn pidfd_of_thread(tid: Tid) -> Result<OwnedFd> {
    // include/uapi/linux/pidfd.h
    const PIDFD_THREAD: u32 = 0o200;
    pidfd_open_with(Pid(tid.0), PIDFD_THREAD)
}

/// pidfd_getfd(2): a copy of descriptor `fd` of the process, sharing its open file description.
///
/// # Errors
/// `EBADF` when it is not open there, `EPERM` without ptrace access.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd> {
    let args = [pidfd.as_raw_fd() as u64, fd as u64, 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_pidfd_getfd, args) }.map(owned)
}

/// prlimit(2): the limit of a process as soft and hard value, and sets another one.
///
/// # Errors
/// `EPERM` for a higher hard limit without CAP_SYS_RESOURCE, `ESRCH` when there is no such process.
pub fn prlimit(pid: Pid, resource: u32, limit: Option<(u64, u64)>) -> Result<(u64, u64)> {
    let limit = limit.map(|(soft, hard)| [soft, hard]);
    let mut old = [0_u64; 2];
    let new = limit.as_ref().map_or(0, |new| new.as_ptr() as u64);
    let args = [
        pid.0 as u64,
        resource.into(),
        new,
        old.as_mut_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: both are two words, as struct rlimit64 is, or null.
    unsafe { syscall(libc::SYS_prlimit64, args) }?;
    Ok((old[0], old[1]))
}

/// The time slice of the calling thread in nanoseconds (`sched_runtime` of sched_getattr(2)), 0 where the
/// kernel (before 6.12) or the policy has none.
///
/// # Errors
/// None is known.
pub fn time_slice() -> Result<u64> {
    // struct sched_attr, SCHED_ATTR_SIZE_VER0: size and policy, flags, nice and priority, runtime.
    let mut attr = [0_u64; 6];
    let size = size_of_val(&attr) as u64;
    let args = [0, attr.as_mut_ptr() as u64, size, 0, 0, 0];
    // SAFETY: `attr` is `size` bytes and lives through the call.
    unsafe { syscall(libc::SYS_sched_getattr, args) }?;
    Ok(attr[3])
}

/// What [`kcmp`] compares (include/uapi/linux/kcmp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum KcmpKind {
    /// Open file descriptions behind two descriptors.
    File = 0,
    /// Address spaces.
    Vm = 1,
    /// Descriptor tables.
    Files = 2,
    /// cwd, root and umask.
    Fs = 3,
    /// Signal dispositions.
    Sighand = 4,
    /// I/O contexts.
    Io = 5,
    /// System V semaphore undo lists.
    Sysvsem = 6,
}

/// kcmp(2) as an ordering: equal means shared. `a` and `b` are descriptors for
/// [`KcmpKind::File`], else ignored.
///
/// # Errors
/// `EBADF`, `ESRCH`, `EPERM`.
pub fn kcmp(one: Tid, two: Tid, kind: KcmpKind, a: i32, b: i32) -> Result<core::cmp::Ordering> {
    let args = [
        one.0 as u64,
        two.0 as u64,
        kind as u64,
        a as u64,
        b as u64,
        0,
    ];
    // SAFETY: no pointers.
    let order = unsafe { syscall(libc::SYS_kcmp, args) }?;
    Ok(match order {
        0 => core::cmp::Ordering::Equal,
        1 => core::cmp::Ordering::Less,
        _ => core::cmp::Ordering::Greater,
    })
}

/// An entry of an epoll interest list (`struct kcmp_epoll_slot`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EpollSlot {
    /// Number of the epoll descriptor.
    pub epoll: u32,
    /// The number that was registered.
    pub target: u32,
    /// Which of the entries with that number, counting from 0.
    pub place: u32,
}

/// kcmp(2), `KCMP_EPOLL_TFD`: whether descriptor `fd` of `one` is what an entry of an epoll of `two`
/// watches.
///
/// # Errors
/// `ENOENT` when there is no such entry; as [`kcmp`].
pub fn kcmp_epoll(one: Tid, fd: i32, two: Tid, slot: EpollSlot) -> Result<core::cmp::Ordering> {
    const KCMP_EPOLL_TFD: u64 = 7;
    let args = [
        one.0 as u64,
        two.0 as u64,
        KCMP_EPOLL_TFD,
        fd as u64,
        (&raw const slot) as u64,
        0,
    ];
    // SAFETY: the slot is live and only read.
    let order = unsafe { syscall(libc::SYS_kcmp, args) }?;
    Ok(match order {
        0 => core::cmp::Ordering::Equal,
        1 => core::cmp::Ordering::Less,
        _ => core::cmp::Ordering::Greater,
    })
}

/// tgkill(2).
///
/// # Errors
/// `ESRCH`.
pub fn tgkill(pid: Pid, tid: Tid, signal: i32) -> Result<()> {
    let args = [pid.0 as u64, tid.0 as u64, signal as u64, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_tgkill, args) }.map(drop)
}

/// sched_setaffinity(2) of another thread: a bit for every processor, in whole words.
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL` when none of them is there.
pub fn set_affinity(tid: Tid, mask: &[u8]) -> Result<()> {
    let args = [
        tid.0 as u64,
        mask.len() as u64,
        mask.as_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads as many bytes as the slice has.
    unsafe { syscall(libc::SYS_sched_setaffinity, args) }.map(drop)
}

/// `PR_GET_SECUREBITS` of this thread.
///
/// # Errors
/// Those of prctl(2): none are known.
pub fn securebits() -> Result<u32> {
    let args = [libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_prctl, args) }.map(|bits| bits as u32)
}

/// Whether a signal's action is the default one and nobody has set it since execve(2): flags, mask and restorer are
/// none, too.
#[must_use]
pub fn has_no_action(signal: i32) -> bool {
    /// `struct kernel_sigaction` (x86_64): handler, flags, restorer, mask.
    type Action = [u64; 4];
    let mut action: Action = [u64::MAX; 4];
    // SAFETY: nothing is set; the kernel writes the action, which outlives the call.
    let got = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            core::ptr::null::<Action>(),
            &raw mut action,
            size_of::<u64>(),
        )
    };
    got == 0 && action == Action::default()
}

/// kill(2).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn kill(pid: Pid, signal: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_kill, [pid.0 as u64, signal as u64, 0, 0, 0, 0]) }.map(drop)
}

/// Ends a process of which this one traces a thread (SIGKILL), also where a security module keeps everybody from sending
/// it signals (apparmor(7)).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn end_traced(pid: Pid, tid: Tid) -> Result<()> {
    match kill(pid, libc::SIGKILL) {
        Err(Errno::EACCES | Errno::EPERM) => crate::ptrace::kill(tid),
        done => done,
    }
}

/// Takes those signals that wait, of which bit `n - 1` is set for signal `n`, and that this thread blocks.
pub fn forget_signals(signals: u64) {
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let [set, at_once] = [(&raw const signals) as u64, (&raw const at_once) as u64];
    let args = [set, 0, at_once, size_of::<u64>() as u64, 0, 0];
    // SAFETY: the set and the time are live; nothing is written.
    while unsafe { syscall(libc::SYS_rt_sigtimedwait, args) }.is_ok() {}
}

/// get_robust_list(2): address and length of a thread's robust futex list head.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn get_robust_list(tid: Tid) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    let args = [
        tid.0 as u64,
        (&raw mut head) as u64,
        (&raw mut len) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: both pointers are to live locals of the right size.
    unsafe { syscall(libc::SYS_get_robust_list, args) }?;
    Ok((head, len))
}

/// Gives all user and group ids of the calling thread up for these: setresgid(2), setresuid(2).
///
/// The C library's functions change all threads it knows of, and in a child made by [`spawn`] it may wait
/// for one that only the parent has.
///
/// # Errors
/// `EPERM`.
pub fn become_user(uid: u32, gid: u32) -> Result<()> {
    let [uid, gid] = [u64::from(uid), u64::from(gid)];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0]) }?;
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]) }.map(drop)
}

/// Makes a child that runs `body` and exits with its result: clone3(2) with the given flags and,
/// when not empty, the ids it shall have, innermost PID namespace first (`set_tid`).
///
/// `body` runs in a copy of this process with only the calling thread, so it must not take locks
/// that another thread may hold; callers are single-threaded when they use this.
///
/// # Errors
/// `EEXIST` when an id is taken, `EPERM` without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE,
/// `EINVAL` for ids the namespace cannot have.
pub fn spawn(flags: u64, set_tid: &[Pid], body: impl FnOnce() -> i32) -> Result<Pid> {
    let ids: Vec<i32> = set_tid.iter().map(|pid| pid.0).collect();
    let args = libc::clone_args {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if ids.is_empty() {
            0
        } else {
            ids.as_ptr() as u64
        },
        set_tid_size: ids.len() as u64,
        cgroup: 0,
    };
    let call = [
        (&raw const args) as u64,
        size_of::<libc::clone_args>() as u64,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: `args` and `ids` are live; without CLONE_VM the child gets a copy of everything, as
    // after fork(2), and goes on from here on a copy of this stack.
    let pid = unsafe { syscall(libc::SYS_clone3, call) }?;
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    Ok(Pid(i32::try_from(pid).unwrap_or(-1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{SigHandler, Signal, signal};

    #[test]
    fn an_action_that_was_set_is_seen() {
        let set = |handler| {
            // SAFETY: no handler of ours is installed.
            unsafe { signal(Signal::SIGWINCH, handler) }.unwrap();
        };
        assert!(has_no_action(libc::SIGWINCH));
        set(SigHandler::SigIgn);
        assert!(!has_no_action(libc::SIGWINCH));
        set(SigHandler::SigDfl);
        assert!(!has_no_action(libc::SIGWINCH), "its flags were set");
        assert!(!has_no_action(-1));
    }
}
