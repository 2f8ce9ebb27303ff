//! Namespaces (namespaces(7)): who is in others than this process is not carried. Each thread may be in some of its
//! own, and have others for the children that it makes.

use crate::kernel::{self, Unreadable};
use crate::{FreezerError, Frozen, Refusal, proc};
use sys::{Pid, Tid};

/// What `/proc/PID/ns` lists.
const NAMES: [&str; 10] = [
    "mnt",
    "net",
    "ipc",
    "uts",
    "pid",
    "user",
    "cgroup",
    "time",
    OF_CHILDREN,
    "time_for_children",
];
const OF_CHILDREN: &str = "pid_for_children";

/// Why a process is not carried.
///
/// # Errors
/// When its links cannot be read.
pub(crate) fn refusals(pid: Pid) -> Result<Vec<Refusal>, FreezerError> {
    let mut found = of_task(pid, "")?;
    let threads = proc::threads(pid)?;
    let others: Vec<Tid> = threads.into_iter().filter(|t| *t != pid.leader()).collect();
    for tid in elsewhere(&others) {
        match of_task(pid, &format!("task/{tid}/")) {
            Err(_) if proc::is_ending(pid, tid) => {}
            more => found.extend(more?),
        }
    }
    Ok(found)
}

/// Looks once more when nothing runs any more: a child may have been born into others since they were looked at.
///
/// # Errors
/// [`FreezerError::Refused`], and when links cannot be read.
pub(crate) fn verify(frozen: &Frozen) -> Result<(), FreezerError> {
    let all = |pid| -> Vec<Tid> { frozen.threads(pid).iter().map(|(tid, _)| *tid).collect() };
    let elsewhere = elsewhere(&frozen.tids());
    if elsewhere.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    for pid in frozen.pids() {
        for tid in all(pid).into_iter().filter(|t| elsewhere.contains(t)) {
            match of_task(pid, &format!("task/{tid}/")) {
                Err(_) if proc::is_ending(pid, tid) => {}
                more => found.extend(more?),
            }
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::Refused(found)),
    }
}

/// Those who may be in other namespaces than this process: who is in the same ones has the very same list of them as a rule.
fn elsewhere(tids: &[Tid]) -> Vec<Tid> {
    if tids.is_empty() {
        return Vec::new();
    }
    different(tids).unwrap_or_else(|_| tids.to_vec())
}

fn different(tids: &[Tid]) -> Result<Vec<Tid>, Unreadable> {
    let me = Tid(nix::unistd::gettid().as_raw());
    let all: Vec<Tid> = [me].iter().chain(tids).copied().collect();
    let (lists, users) = kernel::look(|kernel| {
        let of_user = kernel.btf().field("cred", "user_ns")?.offset;
        let credentials = kernel.credentials(&all)?;
        Ok((
            kernel.tables(&all, "nsproxy")?,
            kernel.words_within(&credentials, of_user)?,
        ))
    })?;
    let mut places = lists.into_iter().zip(users);
    let ours = places.next();
    let others = tids.iter().zip(places);
    let others = others.filter(|(_, place)| Some(*place) != ours);
    Ok(others.map(|(tid, _)| *tid).collect())
}

/// The namespaces of a process that are not ours, or of a thread for which `task` is `task/TID/`.
fn of_task(pid: Pid, task: &str) -> Result<Vec<Refusal>, FreezerError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let mut found = Vec::new();
    for name in NAMES {
        let what = format!("ns/{name}");
        if named(pid, &format!("{task}{what}"))? != named(me, &what)? {
            found.push(Refusal {
                pid,
                comm: proc::comm(pid),
                resource: format!("{task}{what}"),
                reason: reason(name),
            });
        }
    }
    Ok(found)
}

fn reason(name: &str) -> String {
    match name.strip_suffix("_for_children") {
        Some(name) => {
            format!("its children get a {name} namespace of their own, which is not carried yet")
        }
        None => format!("it has a {name} namespace of its own, which is not carried yet"),
    }
}

/// Which one a link names. One of children that nobody has been born into has no name.
fn named(pid: Pid, what: &str) -> Result<Option<Vec<u8>>, FreezerError> {
    match proc::link(pid, what) {
        Err(FreezerError::Proc { cause, .. })
            if what.ends_with("_for_children") && cause.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        name => name.map(Some),
    }
}
