//! What stands in the way of carrying a traced process.

use super::seen::Seen;
use super::stands::{Stands, look};
use crate::FreezerError;
use crate::freeze::traced::{stands_still, tracer_of};
use crate::proc::{self, Stat, Status};
use core::cmp::Ordering;
use persist_mem::manifest::TracedStop;
use std::time::Duration;
use sys::by_tracer::CallStop;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid};

/// SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const JOBS: core::ops::RangeInclusive<i32> = 18..=22;
/// `CAP_SYS_PTRACE`, to attach to anybody, and `CAP_KILL`, to send it the signal of its stop.
const ANYBODY: u64 = 1 << 19 | 1 << 5;
/// `SUID_DUMP_USER`: who has the same ids may attach.
const DUMPABLE: u8 = 1;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How often one is looked at until it stands still.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

impl Seen {
    /// Why it is not carried in the stop it is in.
    pub(super) fn obstacle(
        &self,
        pid: Pid,
        stop: TracedStop,
        stands: &Stands,
    ) -> Result<Option<String>, FreezerError> {
        let told = |why: &str| Ok(Some(why.to_owned()));
        let fits = match stop {
            TracedStop::Entry => self.call == CallStop::Entry,
            TracedStop::Exit => self.call == CallStop::Exit,
            TracedStop::Signal(_) | TracedStop::Interrupted => self.call == CallStop::None,
        };
        if !fits || self.info.is_empty() {
            return told("its stop is not understood");
        }
        let status = Status::read(pid, "status")?;
        if status.mask("SigBlk") != self.sigmask {
            return told("its signal mask is to be put back");
        }
        let waiting = status.mask("SigPnd") | status.mask("ShdPnd");
        let waits = |signal: i32| waiting >> (signal - 1) & 1 != 0;
        let comes = match stop {
            TracedStop::Signal(signal) => Some(signal),
            _ => None,
        };
        // Signals that stop and SIGCONT take each other away (kernel/signal.c, prepare_signal).
        let takes = !stands.seized || comes.is_some_and(|signal| JOBS.contains(&signal));
        if comes.is_some_and(waits) || takes && JOBS.clone().any(waits) {
            return told("more signals of the kind of its stop wait for it");
        }
        if stop == TracedStop::Entry {
            let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
            let code = mem.read_vec(self.regs.rip.wrapping_sub(2), 2);
            if code.ok().as_deref() != Some(&SYSCALL) {
                return told("its system call is none of the 64-bit ones");
            }
        }
        Ok(None)
    }
}

/// Why a process that `tracer` traces is not carried, found without stopping it.
pub(crate) fn obstacle(pid: Pid, tracer: Tid) -> Result<Option<String>, FreezerError> {
    let told = |why: &str| Ok(Some(why.to_owned()));
    if proc::threads(pid)? != [pid.leader()] {
        return told("it has several threads");
    }
    let mut looks = LOOKS;
    while !stands_still(pid, pid.leader()) {
        looks -= 1;
        if looks == 0 {
            return told("it runs, and nobody but its tracer can stop it");
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let status = Status::read(pid, "status")?;
    // The process of a thread has its directory under the thread's number, too.
    let its_tracer = Status::read(Pid(tracer.0), "status")?;
    if tracer_of(Pid(tracer.0), tracer).is_some() {
        return told("its tracer is traced itself");
    }
    if status.mask("Seccomp") != 0 {
        return told("it has seccomp filters");
    }
    if status.value("THP_enabled") == Some("0") {
        return told("huge pages are switched off for it");
    }
    for key in ["Speculation_Store_Bypass", "SpeculationIndirectBranch"] {
        if status.value(key) != its_tracer.value(key) {
            return told("it speculates as its tracer does not");
        }
    }
    let stat = Stat::read(pid, "stat")?;
    if stat.field(41) != 0 {
        return told("it has a scheduling policy");
    }
    if !proc::read(pid, "timers")?.is_empty() {
        return told("it has POSIX timers");
    }
    if has_policies(pid)? {
        return told("its memory has policies");
    }
    // ptrace(2), PTRACE_MODE_ATTACH_REALCREDS; that it is a child satisfies Yama.
    let ids = |of: &Status| (of.numbers("Uid"), of.numbers("Gid"));
    let anybody = its_tracer.mask("CapEff") & ANYBODY == ANYBODY;
    let own = stat.pid(4) == Pid(tracer.0)
        && ids(&status) == ids(&its_tracer)
        && status.mask("CapPrm") & !its_tracer.mask("CapPrm") == 0;
    let forbidden = || told("its tracer might not be allowed to attach to it once more");
    if !anybody && !own {
        return forbidden();
    }
    let relatives = proc::children(pid)?.into_iter().chain([stat.pid(4)]);
    let shares = |other: Pid| {
        let same = kcmp(pid.leader(), other.leader(), KcmpKind::Vm, 0, 0);
        same.is_ok_and(Ordering::is_eq)
    };
    if relatives.into_iter().any(shares) {
        return told("others have its memory");
    }
    Ok(match look(pid, 0) {
        Ok(stands) if !anybody && stands.memory.dumpable != DUMPABLE => return forbidden(),
        Ok(stands) => stands.obstacle.or(stands.stop.err()).map(str::to_owned),
        Err(why) => Some(why.to_string()),
    })
}

/// Policies of nodes, of its own or of mappings (`/proc/PID/numa_maps`: address, policy, the rest).
fn has_policies(pid: Pid) -> Result<bool, FreezerError> {
    let text = match proc::read_text(pid, "numa_maps") {
        Ok(text) => text,
        // A kernel without CONFIG_NUMA.
        Err(FreezerError::Proc { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    let policy = |line: &str| line.split(' ').nth(1).is_some_and(|word| word != "default");
    Ok(text.lines().any(policy))
}
