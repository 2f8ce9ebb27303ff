//! What of a process's descriptors is not carried, found without stopping it.

use super::class::{Class, classify};
use super::open::Open;
use super::{
    dnotify, elsewhere, ends, epoll, listener, lock, outside, outsiders, restricted, sent, socket,
    uring, userfault,
};
use crate::objects::Objects;
use crate::proc;
use crate::{Externals, FreezerError, Refusal, landlock};
use persist_mem::manifest::{DescriptionId, DescriptionKind};
use std::os::fd::{AsFd, OwnedFd};
use sys::{Errno, Pid, process};

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

/// What of a table's descriptors is not carried, found without stopping its process.
pub(crate) fn refusals(
    pid: Pid,
    objects: &mut Objects,
    externals: &Externals,
    facts: &mut socket::Facts,
) -> Result<Vec<Refusal>, FreezerError> {
    let pidfd = pidfd(pid)?;
    let mut found = Vec::new();
    let in_domain = landlock::concerns(&[pid]);
    let links = proc::Links::open(pid)?;
    if pidfd.is_none() {
        found.extend(sent::full(pid, links.numbers()));
    }
    for &fd in links.numbers() {
        let link = links.read(fd);
        if let Some(refusal) = nameless(pid, fd, &link) {
            found.push(refusal);
            continue;
        }
        // A running process may close it at any time.
        let copy = match &pidfd {
            Some(pidfd) => process::pidfd_getfd(pidfd.as_fd(), fd)
                .ok()
                .map(|copy| (copy, true)),
            None => sent::look(pid, fd),
        };
        let (Some((copy, is_copy)), Ok(info), Ok(link)) = (copy, links.info(fd), link) else {
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
        let checked = classify(&open, objects).and_then(|class| {
            if in_domain {
                restricted::check(&open, &class)?;
            }
            examine(&open, class, is_copy, facts)
        });
        let [locks, notices] = beside(&open, is_copy);
        for result in [checked, locks, notices] {
            match result {
                Ok(()) => {}
                Err(FreezerError::Refused(more)) => found.extend(more),
                // It takes more than a reference.
                Err(FreezerError::Call { .. }) if !is_copy => {
                    found.push(sent::refusal(pid, fd, &link));
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(found)
}

/// None of a process whose leading thread has ended.
fn pidfd(pid: Pid) -> Result<Option<OwnedFd>, FreezerError> {
    match proc::pidfd(pid) {
        Err(Errno::EINVAL) => Ok(None),
        Err(gone @ Errno::ESRCH) => Err(FreezerError::Proc {
            pid,
            what: "pidfd".into(),
            cause: gone.into(),
        }),
        opened => opened
            .map(Some)
            .map_err(FreezerError::call(pid, "opening a pidfd")),
    }
}

/// What of a description is not carried, whatever its kind: locks, and notices of a directory (`F_NOTIFY`).
fn beside(open: &Open<'_>, is_copy: bool) -> [Result<(), FreezerError>; 2] {
    let locks = lock::capture(open, DescriptionId(0), true, &mut Vec::new());
    // A reference has no owner, and its file's is asked for when everybody stands still.
    let notices = match is_copy {
        true => dnotify::capture(open).map(drop),
        false => Ok(()),
    };
    [locks, notices]
}

/// What of a description is not carried, as far as its kind does not tell.
fn examine(
    open: &Open<'_>,
    class: Class,
    is_copy: bool,
    facts: &mut socket::Facts,
) -> Result<(), FreezerError> {
    let by_reference = || {
        let refusal = sent::refusal(open.pid, open.fd, open.link);
        Err(FreezerError::Refused(vec![refusal]))
    };
    match class {
        Class::Plain(DescriptionKind::Epoll { targets, .. }) => epoll::check(open, &targets),
        Class::Plain(DescriptionKind::SeccompListener { .. }) => {
            listener::check(open, facts.inside())
        }
        Class::Plain(DescriptionKind::Userfault(_)) => userfault::check(open, facts.inside()),
        Class::Socket if is_copy => socket::examine(open, facts).map(drop),
        Class::Socket => by_reference(),
        // From Linux 6.7 on nobody sends one (`SCM_RIGHTS`), and a reference leads nowhere.
        Class::Ring if !is_copy => by_reference(),
        Class::Ring => uring::check(open, facts.inside()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_thread_has_ended_is_gone() {
        let thread = std::thread::spawn(|| nix::unistd::gettid().as_raw());
        let table = Pid(thread.join().unwrap());
        // The thread is joined a moment before it is gone.
        while std::path::Path::new(&format!("/proc/{table}")).exists() {
            std::thread::yield_now();
        }
        let found = refusals(
            table,
            &mut Objects::default(),
            &Externals::default(),
            &mut socket::Facts::of_running(None),
        );
        assert!(matches!(found, Err(FreezerError::Proc { cause, .. }) if proc::gone(&cause)));
    }
}
