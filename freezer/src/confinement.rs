//! Confinement by a security module, which every thread has for itself (proc_pid_attr(5)).
//!
//! Profiles of AppArmor (apparmor(7)) are carried: a thread can enter one by itself. What other modules (SELinux, Smack)
//! have decided about a program cannot be said again, and is refused.

use crate::kernel::{self, Transitions};
use crate::proc::{self, Status};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::Live;
use sys::lsm::{self, profile};
use sys::{Pid, Tid};

/// Whether AppArmor is at work.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// What a thread is called that no profile confines.
const UNCONFINED: &[u8] = b"unconfined";
/// Profiles that AppArmor makes up while it learns (`complain`).
const LEARNT: &[u8] = b"//null-";

/// How this process, and all that it will make, is confined.
#[derive(Debug)]
pub(crate) struct Confinements {
    ours: Option<Vec<u8>>,
    apparmor: bool,
}

impl Confinements {
    /// Looks at this process.
    pub(crate) fn look() -> Confinements {
        let me = Pid(nix::unistd::getpid().as_raw());
        let enabled = std::fs::read(APPARMOR).unwrap_or_default();
        Confinements {
            ours: attribute(me, me.leader(), "current"),
            apparmor: enabled.starts_with(b"Y"),
        }
    }

    /// The profile that a thread is in; None for no profile, or where AppArmor is not at work.
    ///
    /// # Errors
    /// [`FreezerError::Refused`] where it cannot be so again.
    pub(crate) fn of(&self, pid: Pid, tid: Tid) -> Result<Option<Vec<u8>>, FreezerError> {
        // Nobody has a label where no such module is at work.
        let label = attribute(pid, tid, "current");
        let Some((ours, label)) = self.ours.as_ref().zip(label) else {
            return Ok(None);
        };
        let obstacle = if self.apparmor {
            obstacle(ours, &label)
        } else {
            (label != *ours).then_some("a security module whose decisions cannot be carried")
        };
        if let Some(why) = obstacle {
            return Err(FreezerError::Refused(vec![refuse(pid, tid, &label, why)]));
        }
        let name = profile(&label).to_vec();
        Ok((self.apparmor && name != UNCONFINED).then_some(name))
    }

    /// Notes how the threads of a stopped process are confined.
    ///
    /// # Errors
    /// As [`Confinements::of`].
    pub(crate) fn capture(&self, pid: Pid, live: &mut Live) -> Result<(), FreezerError> {
        let tids: Vec<Tid> = live.threads.iter().map(|thread| thread.tid).collect();
        let why = self.on_its_way(pid, &tids);
        if !why.is_empty() {
            return Err(FreezerError::Refused(why));
        }
        for thread in &mut live.threads {
            thread.profile = self.of(pid, thread.tid)?;
        }
        Ok(())
    }

    /// Why a process is not carried.
    pub(crate) fn refusals(
        &self,
        pid: Pid,
        whole_host: bool,
    ) -> Result<Vec<Refusal>, FreezerError> {
        // Without a call of its own for that a thread writes to a file, which a domain of Landlock may forbid.
        let writes = !whole_host && !lsm::has_calls();
        let threads = proc::threads(pid)?;
        let mut found = self.on_its_way(pid, &threads);
        for tid in threads {
            if self.apparmor {
                found.extend(traced(pid, tid)?);
            }
            match self.of(pid, tid) {
                Ok(Some(name)) if writes && crate::landlock::concerns(&[pid]) => {
                    let why = "a profile, which it cannot enter from its domain of Landlock before Linux 6.8";
                    found.push(refuse(pid, tid, &name, why));
                }
                Ok(_) => {}
                Err(FreezerError::Refused(more)) => found.extend(more),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Why a process is not carried of which a thread has been told where to go from its profile: only that program knows
    /// the way. Nothing is found where the kernel's memory cannot be read.
    fn on_its_way(&self, pid: Pid, threads: &[Tid]) -> Vec<Refusal> {
        if !self.apparmor {
            return Vec::new();
        }
        let found = kernel::look(|kernel| kernel.transitions(threads)).unwrap_or_default();
        let why = threads.iter().zip(found).filter_map(|(tid, it)| {
            let why = match it {
                Transitions { back: true, .. } => "a hat that it can leave (aa_change_hat(2))",
                Transitions { at_exec: true, .. } => {
                    "AppArmor, and has chosen a profile for the next program (aa_change_onexec(2))"
                }
                Transitions { .. } => return None,
            };
            let label = attribute(pid, *tid, "current").unwrap_or_default();
            Some(refuse(pid, *tid, &label, why))
        });
        why.collect()
    }
}

/// Why a thread is not carried that another process traces: what one does in the other must be allowed, or is not.
fn traced(pid: Pid, tid: Tid) -> Result<Option<Refusal>, FreezerError> {
    let tracer = Status::read(pid, &format!("task/{tid}/status"))?
        .value("TracerPid")
        .and_then(|id| id.parse().ok());
    let tracer = tracer.filter(|tracer: &i32| *tracer != 0);
    let both = tracer.map(|tracer| [(pid, tid), (Pid(tracer), Tid(tracer))]);
    let mut both = both.into_iter().flatten();
    let confined = both.find(|(pid, tid)| is_confined(*pid, *tid));
    Ok(confined.map(|(of, one)| {
        let label = attribute(of, one, "current").unwrap_or_default();
        refuse(
            pid,
            tid,
            &label,
            "AppArmor, and is traced, or its tracer is so",
        )
    }))
}

/// Why a thread with this label of AppArmor cannot be confined so again, by one that has `ours`.
fn obstacle(ours: &[u8], label: &[u8]) -> Option<&'static str> {
    let name = profile(label);
    if label == ours {
        // So is what kupgrade makes.
        None
    } else if ours != UNCONFINED {
        Some("a profile, and so is kupgrade, which can confine nobody then")
    } else if name.starts_with(b":") {
        Some("a profile in a namespace of policies")
    } else if name.windows(LEARNT.len()).any(|part| part == LEARNT) {
        Some("a profile that AppArmor has made up to learn what the program does")
    } else {
        None
    }
}

fn refuse(pid: Pid, tid: Tid, label: &[u8], by: &str) -> Refusal {
    let label = String::from_utf8_lossy(label);
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: format!("task/{tid}/attr/current"),
        reason: format!("it is confined ({label}) by {by}"),
    }
}

/// Whether a profile confines a thread.
fn is_confined(pid: Pid, tid: Tid) -> bool {
    let label = attribute(pid, tid, "current");
    label.is_some_and(|label| label != UNCONFINED)
}

/// Whether a profile may keep a thread from sending signals to itself. Of the one that this process is in, too, that is
/// known.
pub(crate) fn is_mute(pid: Pid, tid: Tid) -> bool {
    let Some(label) = attribute(pid, tid, "current").filter(|label| label != UNCONFINED) else {
        return false;
    };
    let me = Pid(nix::unistd::getpid().as_raw());
    attribute(me, me.leader(), "current") != Some(label) || !lsm::may_signal_itself()
}

/// An attribute of a thread; None where there is none or the thread has ended.
fn attribute(pid: Pid, tid: Tid, name: &str) -> Option<Vec<u8>> {
    let file = std::fs::read(format!("/proc/{pid}/task/{tid}/attr/{name}")).ok()?;
    let label = lsm::label(&file);
    (!label.is_empty()).then(|| label.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_entered_by_name_is_carried() {
        assert_eq!(obstacle(b"unconfined", b"unconfined"), None);
        assert_eq!(obstacle(b"unconfined", b"shop (enforce)"), None);
        assert_eq!(obstacle(b"shop (enforce)", b"shop (enforce)"), None);
        for (ours, label) in [
            ("unconfined", ":guest:shop (enforce)"),
            ("unconfined", "shop//null-/bin/ls (complain)"),
            ("shop (enforce)", "unconfined"),
            ("shop (enforce)", "inn (enforce)"),
        ] {
            let found = obstacle(ours.as_bytes(), label.as_bytes());
            assert!(found.is_some(), "{ours} {label}");
        }
    }
}
