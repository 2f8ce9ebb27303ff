//! Profiles of AppArmor (apparmor(7)): a thread enters its own when nothing is left to be done in it that one may forbid.

use super::signals::settled;
use crate::ResurrectError;
use crate::calls::nr;
use crate::error::Subject;
use crate::restore::Restore;
use persist_mem::manifest::{Manifest, Seccomp, Thread};
use sys::batch::Batch;
use sys::ptrace::options;
use sys::tracee::Tracee;
use sys::{Errno, Pid, lsm, procdir, ptrace};

/// What a thread is called that no profile confines.
const UNCONFINED: &[u8] = b"unconfined";
/// `RLIMIT_NOFILE`
const NOFILE: u32 = 7;
const AT_FDCWD: i32 = -100;
const O_WRONLY: i32 = 1;
const O_CLOEXEC: i32 = 0o2_000_000;
/// What a thread writes to, to enter a profile.
const FILE: &[u8] = b"/proc/thread-self/attr/current";
/// `LSM_ATTR_CURRENT`
const CURRENT: u64 = 100;
/// `LSM_ID_APPARMOR`
const APPARMOR: u64 = 104;
/// Bytes of `struct lsm_ctx` before its text.
const HEAD: usize = 32;

/// Who is confined can confine nobody: says so before anything is made.
pub(crate) fn check(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    restore.confined_by = own();
    let own = &restore.confined_by;
    if own != UNCONFINED && !lsm::may_signal_itself() {
        let doing =
            "sending itself a signal, which its profile of AppArmor forbids: restore from outside";
        return Err(ResurrectError::own(doing)(Errno::EACCES));
    }
    let another = |thread: &Thread| profile(thread) != own;
    let mut lives = restore.lives();
    let free = own == UNCONFINED;
    match lives.find(|(_, live)| !free && live.all_threads().any(another)) {
        None => Ok(()),
        Some((pid, _)) => Err(ResurrectError::Impossible {
            pid,
            why: format!(
                "kupgrade is confined ({}), and so would this process be: restore from outside",
                String::from_utf8_lossy(own)
            ),
        }),
    }
}

/// Has threads enter them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let own = core::mem::take(&mut restore.confined_by);
    let calls = lsm::has_calls();
    let room = (!calls).then(|| most(restore.manifest));
    super::each_in(restore, |pid, tracee, _, thread| {
        let Some(profile) = thread.profile.as_ref().filter(|name| **name != own) else {
            return Ok(());
        };
        let mut batch = Batch::new();
        enter(&mut batch, calls, profile);
        keep_from_signals(pid, tracee, thread)?;
        let entered = with_room(pid, tracee, room, |tracee| {
            settled(pid, "entering its profile of AppArmor", tracee, &batch)
        });
        entered.map_err(|error| error.about(Subject::Process(pid)))
    })
}

/// From here on it may be denied to send itself signals.
fn keep_from_signals(pid: Pid, tracee: &mut Tracee, thread: &Thread) -> Result<(), ResurrectError> {
    let suspended = match thread.seccomp {
        Seccomp::Off => 0,
        Seccomp::Strict | Seccomp::Filters(_) => options::SUSPEND_SECCOMP,
    };
    let all = crate::tree::OPTIONS | options::TRACESYSGOOD;
    ptrace::set_options(tracee.tid(), all | suspended)
        .map_err(ResurrectError::call(pid, "setting options of its tracer"))?;
    tracee.set_mute();
    Ok(())
}

/// What a thread is to be confined by.
fn profile(thread: &Thread) -> &[u8] {
    thread.profile.as_deref().unwrap_or(UNCONFINED)
}

/// What this process is confined by.
fn own() -> Vec<u8> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let label = procdir::read(me, "attr/current").unwrap_or_default();
    match lsm::profile(lsm::label(&label)) {
        b"" => UNCONFINED.to_vec(),
        name => name.to_vec(),
    }
}

/// Enters a profile (do_setattr in security/apparmor/lsm.c), by a call where the kernel has it: a file needs a number.
fn enter(batch: &mut Batch, calls: bool, profile: &[u8]) {
    const DOING: &str = "naming the profile";
    let command = [b"changeprofile ", profile].concat();
    if calls {
        let len = HEAD + command.len();
        let head = [APPARMOR, 0, len as u64, command.len() as u64];
        let mut context: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        context.extend_from_slice(&command);
        let context = batch.data(&context);
        let args = [CURRENT.into(), context.into(), len.into(), 0.into()];
        batch.call(DOING, nr::LSM_SET_SELF_ATTR, args);
        return;
    }
    // It must be opened by who writes, with the credentials that it has then (fs/proc/base.c, proc_pid_attr_write).
    let path = batch.string(FILE);
    let flags = O_WRONLY | O_CLOEXEC;
    let args = [AT_FDCWD.into(), path.into(), flags.into()];
    let file = batch.call("opening the file for its profile", nr::OPENAT, args);
    let text = batch.data(&command);
    batch.call(
        DOING,
        nr::WRITE,
        [file.into(), text.into(), command.len().into()],
    );
    batch.call("closing the file for its profile", nr::CLOSE, [file.into()]);
}

/// A limit of open files that leaves a free number in every table.
fn most(manifest: &Manifest) -> u64 {
    let tables = manifest.tables();
    let last = tables
        .filter_map(|table| table.files.last())
        .map(|file| file.fd);
    u64::try_from(last.max().unwrap_or(-1) + 2).unwrap_or(u64::MAX)
}

/// Does something while the process may have at least so many files open.
fn with_room(
    pid: Pid,
    tracee: &mut Tracee,
    most: Option<u64>,
    work: impl FnOnce(&mut Tracee) -> Result<(), ResurrectError>,
) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "raising its limit of open files for a moment");
    let Some(most) = most else {
        return work(tracee);
    };
    let whose = tracee.pid();
    let (soft, hard) = sys::process::prlimit(whose, NOFILE, None).map_err(failed())?;
    if soft >= most {
        return work(tracee);
    }
    sys::process::prlimit(whose, NOFILE, Some((most, hard.max(most)))).map_err(failed())?;
    let done = work(tracee);
    sys::process::prlimit(whose, NOFILE, Some((soft, hard))).map_err(failed())?;
    done
}
