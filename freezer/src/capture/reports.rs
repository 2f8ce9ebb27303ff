//! What a process has not been told yet about its children (wait(2)).

use persist_mem::manifest::ChildReport;
use sys::Pid;
use sys::batch::Batch;
use sys::tracee::{Tracee, TraceeError};

const WAITID: i64 = 247;
const P_PID: i32 = 1;
const WNOHANG: i32 = 1;
const WSTOPPED: i32 = 2;
const WCONTINUED: i32 = 8;
const WNOWAIT: i32 = 0x0100_0000;
const WALL: i32 = 0x4000_0000;
const SIGINFO: usize = 128;
/// `si_code` values.
const CLD_STOPPED: u32 = 5;
const CLD_CONTINUED: u32 = 6;

/// Asks, without taking the reports.
pub(super) fn capture(
    first: &mut Tracee,
    children: &[Pid],
) -> Result<Vec<(Pid, ChildReport)>, TraceeError> {
    let mut found = Vec::new();
    for some in children.chunks(64) {
        let mut batch = Batch::new();
        let mut asked = Vec::new();
        for child in some {
            let info = batch.space(SIGINFO);
            let how = WNOHANG | WSTOPPED | WCONTINUED | WNOWAIT | WALL;
            let args = [
                P_PID.into(),
                child.0.into(),
                info.into(),
                how.into(),
                0.into(),
            ];
            batch.try_call("asking for a child", WAITID, args);
            asked.push((*child, info));
        }
        let out = first.run(&batch)?;
        for (child, info) in asked {
            // si_signo, si_errno, si_code
            match out.u32(info, 2) {
                CLD_STOPPED => found.push((child, ChildReport::Stopped)),
                CLD_CONTINUED => found.push((child, ChildReport::Continued)),
                _ => {}
            }
        }
    }
    Ok(found)
}
