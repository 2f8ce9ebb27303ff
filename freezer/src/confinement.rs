//! Confinement by a security module (AppArmor, SELinux, Smack), which every thread has for itself (proc_pid_attr(5)).

use crate::{FreezerError, Refusal, proc};
use sys::{Pid, Tid};

/// Why a process of a tree is not carried: a thread is confined otherwise than we are. It would come back as we are.
pub(crate) fn refusal(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    let found = confined(pid)?;
    Ok(found.map(|(tid, label)| Refusal {
        pid,
        comm: proc::comm(pid),
        resource: format!("task/{tid}/attr/current"),
        reason: format!("it is confined ({label}), which is not carried"),
    }))
}

/// Tells the log of a process of a whole host that is confined: the policy is not carried to the new kernel, so nothing
/// will confine it there.
pub(crate) fn warn(pid: Pid) -> Result<(), FreezerError> {
    if let Some((tid, label)) = confined(pid)? {
        let comm = proc::comm(pid);
        log::warn!(
            "thread {tid} of process {pid} ({comm}) is confined ({label}) and will not be after the upgrade: restart it then"
        );
    }
    Ok(())
}

/// A thread that is confined otherwise than this process, and how.
fn confined(pid: Pid) -> Result<Option<(Tid, String)>, FreezerError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    // Nobody has a label where no such module is at work.
    let Some(ours) = label(me, me.leader()) else {
        return Ok(None);
    };
    let labels = proc::threads(pid)?.into_iter();
    let mut labels = labels.filter_map(|tid| Some((tid, label(pid, tid)?)));
    Ok(labels.find(|(_, label)| *label != ours))
}

/// What a thread is called by; None where it cannot be read or the thread has ended.
fn label(pid: Pid, tid: Tid) -> Option<String> {
    let label = std::fs::read(format!("/proc/{pid}/task/{tid}/attr/current")).ok()?;
    let label = String::from_utf8_lossy(&label);
    let label = label.trim_end_matches(['\0', '\n']);
    (!label.is_empty()).then(|| label.to_owned())
}
