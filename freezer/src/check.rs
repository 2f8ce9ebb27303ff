//! What could not be carried, found without stopping anything.

use crate::capture::{Finder, Prepared};
use crate::confinement::Confinements;
use crate::files::Facts;
use crate::files::outsiders::Outsiders;
use crate::freeze::{compat, traced};
use crate::held_groups::HeldGroups;
use crate::objects::Objects;
use crate::proc::{self, Status};
use crate::{Externals, FreezerError, Refusal, capture, files, ids, tables};
use std::time::Duration;
use sys::{Pid, Tid};

/// A look at the processes of a whole host: what is asked of the kernel for all of them is asked once.
pub struct HostCheck(Facts, HeldGroups);

impl HostCheck {
    /// To be asked for one process after the other, soon.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is a moment's look")]
    pub fn new() -> HostCheck {
        HostCheck(Facts::of_running(None), HeldGroups::find())
    }

    /// Why a process would be refused; empty when it is carried. A process that ends meanwhile has nothing to refuse.
    ///
    /// # Errors
    /// When a file of `/proc` is not understood.
    pub fn check(&mut self, pid: Pid) -> Result<Vec<Refusal>, FreezerError> {
        let HostCheck(facts, held) = self;
        let mut found = check_one(pid, &mut Objects::default(), &Externals::default(), facts)?;
        found.extend(held.refusal(pid, None));
        Ok(found)
    }
}

/// Why a process of a whole host would be refused.
///
/// # Errors
/// As [`HostCheck::check`].
pub fn check(pid: Pid) -> Result<Vec<Refusal>, FreezerError> {
    HostCheck::new().check(pid)
}

/// How often a process is looked at until what is read of it fits together: one that ends loses its
/// memory and its files before it is a zombie, one that starts another program changes them.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

fn check_one(
    pid: Pid,
    objects: &mut Objects,
    externals: &Externals,
    facts: &mut Facts,
) -> Result<Vec<Refusal>, FreezerError> {
    let mut looks = LOOKS;
    let found = loop {
        let found = examine(pid, objects, externals, facts);
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return Ok(Vec::new());
        }
        looks -= 1;
        match found {
            Err(FreezerError::Proc { cause, .. }) if looks > 0 && proc::gone(&cause) => {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            found => break found,
        }
    };
    match found {
        Err(FreezerError::Proc { what, cause, .. })
            if cause.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            let reason = "it cannot be looked into: privileges are missing".to_owned();
            Ok(vec![Refusal {
                pid,
                comm: proc::comm(pid),
                resource: what,
                reason,
            }])
        }
        found => found.map(files::apart::named),
    }
}

/// Why a process tree would be refused: every process of it, and what they share with others.
///
/// # Errors
/// As [`HostCheck::check`].
pub fn check_tree(root: Pid) -> Result<Vec<Refusal>, FreezerError> {
    check_tree_with(root, &Externals::default()).map(|(found, _)| found)
}

/// As [`check_tree`], for a tree of which something is external. What is prepared is for
/// [`crate::capture_with`].
///
/// # Errors
/// As [`HostCheck::check`].
pub fn check_tree_with(
    root: Pid,
    externals: &Externals,
) -> Result<(Vec<Refusal>, Prepared), FreezerError> {
    let pids = proc::tree(root)?;
    let mut found = Vec::new();
    let mut objects = Objects::default();
    let mut finder = Finder::default();
    let mut facts = Facts::of_running(Some(&pids));
    let held = HeldGroups::find();
    let inside = pids.iter().copied().collect();
    for pid in &pids {
        found.extend(check_one(*pid, &mut objects, externals, &mut facts)?);
        found.extend(held.refusal(*pid, Some(&inside)));
        finder.learn(*pid);
    }
    found.extend(tables::shared(&pids)?);
    found.extend(ids::used_outside(root, &pids)?);
    found.extend(crate::ipc::undo::cut_off(&pids));
    found.extend(objects.shared_outside(&pids));
    found.extend(files::userfault::told_outside(&pids));
    found.extend(files::listener::asked_outside(&pids));
    let outsiders = Outsiders::look(&pids);
    let ours = files::ends::of_tree(&pids);
    let reaching_out = files::reaching_out(&ours, &outsiders, &pids, externals);
    found.extend(files::apart::named(reaching_out));
    Ok((found, Prepared { outsiders, finder }))
}

fn examine(
    pid: Pid,
    objects: &mut Objects,
    externals: &Externals,
    facts: &mut Facts,
) -> Result<Vec<Refusal>, FreezerError> {
    let whole_host = facts.inside().is_none();
    // All its threads have ended: little is left that could not be carried.
    let Some(representative) = proc::representative(pid) else {
        let core = if whole_host {
            None
        } else {
            crate::core_dump::refusal(pid)?
        };
        return Ok(core.into_iter().collect());
    };
    let mut found = attributes(pid, representative, facts.inside())?;
    if representative != pid.leader() {
        found.extend(capture::leader_refusal(pid)?);
    }
    found.extend(tables::of_threads(pid, representative)?);
    found.extend(crate::namespaces::refusals(pid)?);
    found.extend(crate::ipc::undo::refusal(pid));
    let mut domains = core::mem::take(&mut facts.domains);
    found.extend(crate::landlock::refusals(pid, &mut domains, facts.inside()));
    facts.domains = domains;
    found.extend(crate::ports::refusal(pid));
    found.extend(crate::probes::refusal(pid)?);
    found.extend(crate::keyrings::refusal(pid, whole_host));
    found.extend(Confinements::look().refusals(pid, whole_host)?);
    found.extend(capture::memory_refusals(pid, objects)?);
    for table in files::apart::tables_of(pid) {
        found.extend(files::refusals(table, objects, externals, facts)?);
    }
    found.extend(directories(pid, "")?);
    Ok(found)
}

/// What keeps directories of a process from being carried, or of a thread for which `task` is `task/TID/`.
pub(crate) fn directories(pid: Pid, task: &str) -> Result<Vec<Refusal>, FreezerError> {
    let mut found = Vec::new();
    for name in ["cwd", "root"] {
        let link = format!("{task}{name}");
        match files::reference(pid, &link) {
            Err(FreezerError::Refused(_))
                if name == "cwd"
                    && (files::removed_cwd(pid, &link)
                        || files::removed_directory(pid, &link).is_some()) => {}
            Ok(_) => {}
            Err(FreezerError::Refused(more)) => found.extend(more),
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn attributes(
    pid: Pid,
    representative: Tid,
    inside: Option<&[Pid]>,
) -> Result<Vec<Refusal>, FreezerError> {
    let comm = proc::comm(pid);
    let status = Status::read(pid, &format!("task/{representative}/status"))?;
    let mut found = Vec::new();
    let mut refuse = |resource: &str, reason: String| {
        found.push(Refusal {
            pid,
            comm: comm.clone(),
            resource: resource.into(),
            reason,
        });
    };
    let threads = proc::threads(pid)?;
    let tracer = threads.iter().find_map(|tid| traced::tracer_of(pid, *tid));
    if let Some(tracer) = tracer {
        let refused = traced_by(pid, tracer, inside)?;
        if let Some(why) = refused {
            refuse("ptrace", format!("{tracer} traces it: {why}"));
        }
    }
    if status.value("Seccomp").is_some_and(|mode| mode != "0") && !may_suspend_seccomp()? {
        let why =
            "its filters cannot be suspended: this takes CAP_SYS_ADMIN and no filters of our own";
        refuse("seccomp", why.into());
    }
    if tags_addresses(&status) {
        let why = "it has tags in its addresses (ARCH_ENABLE_TAGGED_ADDR), which is not carried";
        refuse("memory", why.into());
    }
    if may_nobody_trace() {
        let why = "kernel.yama.ptrace_scope is 3: nobody can stop it, until the next boot";
        refuse("ptrace", why.into());
    }
    if is_32_bit(pid) {
        refuse("exe", "32-bit programs are not carried".into());
    }
    if let Some(tid) = threads.iter().find(|tid| compat::waits(pid, **tid)) {
        let why = format!(
            "thread {tid} waits for a time in a 32-bit call: {}",
            compat::NOT_CARRIED
        );
        refuse("thread", why);
    }
    found.extend(capture::marker_refusal(pid, &threads));
    found.extend(capture::room_refusal(pid, &status)?);
    Ok(found)
}

/// Why a traced process is not carried.
fn traced_by(
    pid: Pid,
    tracer: Tid,
    inside: Option<&[Pid]>,
) -> Result<Option<String>, FreezerError> {
    let has = |of: &Pid| proc::threads(*of).is_ok_and(|threads| threads.contains(&tracer));
    if inside.is_some_and(|pids| !pids.iter().any(has)) {
        return Ok(Some("that one is not part of the tree".into()));
    }
    capture::traced_obstacle(pid, tracer)
}

/// Whether the processor leaves bits of the process's addresses aside (linear address masking, Linux 6.4).
fn tags_addresses(status: &Status) -> bool {
    let mask = status.value("untag_mask");
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim_start_matches("0x"), 16).ok());
    mask.is_some_and(|mask| mask != u64::MAX)
}

/// `YAMA_SCOPE_NO_ATTACH` (security/yama/yama_lsm.c).
fn may_nobody_trace() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    scope.is_ok_and(|scope| scope.trim() == "3")
}

/// What `PTRACE_O_SUSPEND_SECCOMP` takes (kernel/ptrace.c, check_ptrace_options).
fn may_suspend_seccomp() -> Result<bool, FreezerError> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = Status::read(Pid(nix::unistd::getpid().as_raw()), "status")?;
    Ok(status.mask("CapEff") & CAP_SYS_ADMIN != 0 && status.value("Seccomp") == Some("0"))
}

/// `EI_CLASS` of the executable (elf(5)). What cannot be read is found out elsewhere.
fn is_32_bit(pid: Pid) -> bool {
    use std::io::Read;
    const ELFCLASS32: u8 = 1;
    let mut head = [0; 5];
    let read = proc::open(pid, "exe").is_ok_and(|mut exe| exe.read_exact(&mut head).is_ok());
    read && head[4] == ELFCLASS32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tags_addresses_is_told_by_its_mask() {
        let tags = |text: &str| tags_addresses(&Status::from_text(text));
        assert!(!tags("Pid:\t1\nuntag_mask:\t0xffffffffffffffff\n"));
        assert!(tags("untag_mask:\t0x81ffffffffffffff\n"));
        assert!(!tags("Pid:\t1\n"), "a kernel without");
    }
}
