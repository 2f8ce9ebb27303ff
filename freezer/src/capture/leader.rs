//! A leader that has ended while other threads of its process run.
//!
//! It holds nothing any more, but everybody sees its name, who it was, how it was scheduled and its exit
//! code, and signals to the process are permitted by its credentials.

use super::{attributes, credentials};
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{EndedLeader, Remains, Scheduling};
use sys::Pid;

/// SCHED_DEADLINE, whose parameters are gone with the thread.
const SCHED_DEADLINE: i64 = 6;
/// Field of `/proc/PID/stat`: the wait status.
const EXIT_CODE: usize = 52;

pub(super) fn capture(pid: Pid) -> Result<EndedLeader, FreezerError> {
    let leader = pid.leader();
    let stat = Stat::read(pid, &format!("task/{leader}/stat"))?;
    let status = Status::read(pid, &format!("task/{leader}/status"))?;
    let code = exit_code(pid, &stat).map_err(|found| FreezerError::Refused(vec![found]))?;
    Ok(EndedLeader {
        code,
        remains: remains(pid, &stat, &status)?,
    })
}

/// What is seen of a leader that has ended.
pub(super) fn remains(pid: Pid, stat: &Stat, status: &Status) -> Result<Remains, FreezerError> {
    let policy = stat.field(41);
    let slack = proc::read_text(pid, "timerslack_ns")?;
    Ok(Remains {
        comm: stat.comm().to_vec(),
        sigmask: status.mask("SigBlk"),
        credentials: credentials::capture(status, 0),
        scheduling: Scheduling {
            policy: if policy == SCHED_DEADLINE {
                0
            } else {
                policy as i32
            },
            priority: stat.field(40) as i32,
            nice: stat.field(19) as i32,
            affinity: status.cpu_mask("Cpus_allowed"),
            timer_slack: slack.trim().parse().unwrap_or(0),
            ..Scheduling::default()
        },
        no_new_privs: status.mask("NoNewPrivs") != 0,
        personality: attributes::number(pid, "personality", 16)? as u32,
    })
}

/// Why a leader that has ended is not carried, found without stopping its process.
pub(crate) fn refusal(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    let stat = Stat::read(pid, &format!("task/{}/stat", pid.leader()))?;
    Ok(exit_code(pid, &stat).err())
}

/// The code it gave to exit(2). In its place newer kernels show the signal that has stopped a process.
fn exit_code(pid: Pid, stat: &Stat) -> Result<u8, Refusal> {
    let status = stat.field(EXIT_CODE);
    if status & 0xff == 0 {
        return Ok((status >> 8) as u8);
    }
    let reason = "its leading thread has ended, and how is not known: the process is stopped now, or a \
                  seccomp filter has killed that thread";
    Err(Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "thread".into(),
        reason: reason.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_no_exit_code() {
        let stat = |status: i32| {
            let line = format!("7 (a) Z {}{status}", "0 ".repeat(48));
            Stat::parse(line.as_bytes()).unwrap()
        };
        assert_eq!(exit_code(Pid(7), &stat(7 << 8)), Ok(7));
        assert!(exit_code(Pid(7), &stat(19)).is_err());
    }
}
