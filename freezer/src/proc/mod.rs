//! Byte-exact parsers of `/proc` files (proc(5)). The `procfs` crate is not used for these: its maps
//! parser panics on some paths and fails on names that are not UTF-8.

mod fdinfo;
mod links;
mod look;
mod mapcount;
mod maps;
pub(crate) mod pagemap;
mod stat;
mod status;
mod zero;

pub use fdinfo::FdInfo;
pub(crate) use links::Links;
pub(crate) use look::{forget_stopped, is_ending, memory, note_stopped, path, pidfd};
pub use look::{metadata, open, representative};
pub(crate) use mapcount::MapCounts;
pub use maps::{Mapping, parse_smaps};
pub use pagemap::{Area, Content, PageState, Pagemap, Run};
pub use stat::Stat;
pub use status::Status;
pub(crate) use zero::ZeroPages;

use crate::FreezerError;
use std::collections::BTreeSet;
use sys::{Pid, Tid};

/// `flags` in `stat`, and one of them (include/linux/sched.h).
const FLAGS: usize = 9;
const PF_KTHREAD: i64 = 0x0020_0000;

/// Reads `/proc/PID/what`.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn read(pid: Pid, what: &str) -> Result<Vec<u8>, FreezerError> {
    let read = |path: &str| read_file(std::fs::File::open(path)?, in_one_piece(what));
    look::through(pid, what, read, Vec::is_empty)
}

/// Reads a file of `/proc` by its whole path.
pub(crate) fn read_path(path: &str) -> std::io::Result<Vec<u8>> {
    read_file(std::fs::File::open(path)?, in_one_piece(path))
}

/// Files that the kernel writes in one go (single_open() of fs/seq_file.c): what a read does not fill is
/// their end.
fn in_one_piece(what: &str) -> bool {
    const NAMES: [&str; 9] = [
        "stat",
        "status",
        "comm",
        "sched",
        "schedstat",
        "syscall",
        "limits",
        "coredump_filter",
        "oom_score_adj",
    ];
    what.starts_with("fdinfo/") || NAMES.contains(&what.rsplit('/').next().unwrap_or(what))
}

fn read_file(mut file: std::fs::File, in_one_piece: bool) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    /// Most of them fit. Their size cannot be asked for, so it is not (`take` does not).
    const FITS: usize = 4096;
    let mut bytes = Vec::with_capacity(FITS);
    if in_one_piece {
        let mut piece = [0; FITS];
        let read = file.read(&mut piece)?;
        bytes.extend_from_slice(&piece[..read]);
        if read < FITS {
            return Ok(bytes);
        }
    }
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a text file `/proc/PID/what`; bytes that are not UTF-8 are replaced.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn read_text(pid: Pid, what: &str) -> Result<String, FreezerError> {
    read(pid, what).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Follows the link `/proc/PID/what`.
///
/// # Errors
/// [`FreezerError::Refused`] for a path that the kernel does not tell, [`FreezerError::Proc`].
pub fn link(pid: Pid, what: &str) -> Result<Vec<u8>, FreezerError> {
    use std::os::unix::ffi::OsStringExt;
    let follow = |path: &str| std::fs::read_link(path);
    match look::through(pid, what, follow, |_| false) {
        Ok(path) => Ok(path.into_os_string().into_vec()),
        Err(FreezerError::Proc { cause, .. })
            if cause.kind() == std::io::ErrorKind::InvalidFilename =>
        {
            let why = "its path is longer than the kernel tells";
            Err(FreezerError::refuse(pid, what, why))
        }
        Err(error) => Err(error),
    }
}

/// Lists the numbers that name entries of a directory, in ascending order.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn numbers(pid: Pid, what: &str) -> Result<Vec<i32>, FreezerError> {
    let list = |path: &str| {
        let mut found: Vec<i32> = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(found)
    };
    let mut found = look::through(pid, what, list, Vec::is_empty)?;
    found.sort_unstable();
    Ok(found)
}

/// Whether a thread is one of the kernel's that work for the process (io_uring): it runs none of its code, and
/// what it works for is waited for.
pub(crate) fn is_worker(pid: Pid, tid: Tid) -> bool {
    // include/linux/sched.h
    const PF_IO_WORKER: i64 = 0x10;
    tid != pid.leader()
        && Stat::read(pid, &format!("task/{tid}/stat"))
            .is_ok_and(|stat| stat.field(9) & PF_IO_WORKER != 0)
}

/// The threads of a process, the leader first.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn threads(pid: Pid) -> Result<Vec<Tid>, FreezerError> {
    let mut tids: Vec<Tid> = numbers(pid, "task")?.into_iter().map(Tid).collect();
    tids.sort_by_key(|tid| (*tid != pid.leader(), *tid));
    Ok(tids)
}

/// The children of a process, of all its threads.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn children(pid: Pid) -> Result<Vec<Pid>, FreezerError> {
    /// Threads from which on it is quicker to ask every process for its parent.
    const MANY: usize = 64;
    let threads = threads(pid)?;
    let mut found = Vec::new();
    if threads.len() >= MANY {
        found = everyone()?;
        found.retain(|child| Stat::read(*child, "stat").is_ok_and(|stat| stat.pid(4) == pid));
        return Ok(found);
    }
    for tid in threads {
        found.extend(children_of(pid, tid));
    }
    found.sort_unstable();
    Ok(found)
}

/// The children of one thread as its list has them (`/proc/PID/task/TID/children`): in the order in which they were born, or
/// given to it as orphans. None of a thread that has ended.
pub(crate) fn children_of(pid: Pid, tid: Tid) -> Vec<Pid> {
    let text = read_text(pid, &format!("task/{tid}/children")).unwrap_or_default();
    let numbers = text.split_whitespace().filter_map(|n| n.parse().ok());
    numbers.map(Pid).collect()
}

/// Which of a process's threads have children.
pub(crate) fn parents_among(pid: Pid, tids: impl Iterator<Item = Tid>) -> BTreeSet<Tid> {
    tids.filter(|tid| !children_of(pid, *tid).is_empty())
        .collect()
}

/// The process and all its descendants, parents before children.
///
/// # Errors
/// [`FreezerError::NoProcess`].
pub fn tree(root: Pid) -> Result<Vec<Pid>, FreezerError> {
    must_be_a_process(root)?;
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        match children(pid) {
            Ok(more) => found.extend(more),
            Err(e) if pid == root => return must_be_a_process(root).and(Err(e)),
            // It ended while the tree was walked.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Looks whether a number stands for a process of user space, which may be a zombie.
///
/// # Errors
/// [`FreezerError::NoProcess`].
pub fn must_be_a_process(pid: Pid) -> Result<(), FreezerError> {
    let not = |hint: String| Err(FreezerError::NoProcess { pid, hint });
    let status = match Status::read(pid, "status") {
        Err(FreezerError::Proc { cause, .. }) if gone(&cause) => return not(String::new()),
        status => status?,
    };
    let own = pid.to_string();
    match status.value("Tgid") {
        Some(tgid) if tgid != own => not(format!("; it is a thread of process {tgid}")),
        _ if Stat::read(pid, "stat").is_ok_and(|stat| stat.field(FLAGS) & PF_KTHREAD != 0) => {
            not("; it is a thread of the kernel".to_owned())
        }
        _ => Ok(()),
    }
}

/// What was to be read is not there any more.
#[must_use]
pub fn gone(cause: &std::io::Error) -> bool {
    cause.kind() == std::io::ErrorKind::NotFound || cause.raw_os_error() == Some(nix::libc::ESRCH)
}

/// The process that a thread belongs to; None when it is gone.
pub(crate) fn tgid(tid: Pid) -> Option<Pid> {
    let status = Status::read(tid, "status").ok()?;
    status.value("Tgid")?.parse().ok().map(Pid)
}

/// Every process of user space in this PID namespace, in ascending order: kernel threads are left
/// out.
///
/// # Errors
/// [`FreezerError::Proc`] when `/proc` cannot be listed.
pub fn everyone() -> Result<Vec<Pid>, FreezerError> {
    let failed = |cause| FreezerError::Proc {
        pid: Pid(0),
        what: "the list of processes".into(),
        cause,
    };
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else {
            continue;
        };
        // One that has just ended needs no mention.
        if Stat::read(pid, "stat").is_ok_and(|stat| stat.field(FLAGS) & PF_KTHREAD == 0) {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The name of a process for messages, `?` when it is gone.
#[must_use]
pub fn comm(pid: Pid) -> String {
    read_text(pid, "comm").map_or_else(|_| "?".into(), |text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_user_space_have_trees() {
        let said = |pid: i32| tree(Pid(pid)).unwrap_err().to_string();
        assert_eq!(said(i32::MAX), format!("there is no process {}", i32::MAX));
        let me = std::process::id();
        let thread = std::thread::spawn(|| nix::unistd::gettid().as_raw());
        // Whether it has ended by now or not.
        let text = said(thread.join().unwrap());
        assert!(text.starts_with("there is no process"), "{text}");
        let tid = nix::unistd::gettid().as_raw();
        if tid.cast_unsigned() != me {
            assert!(said(tid).ends_with(&format!("; it is a thread of process {me}")));
        }
        assert!(tree(Pid(me.cast_signed())).is_ok());
    }
}
