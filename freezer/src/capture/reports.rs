//! What a process has not been told yet about its children (wait(2)).

use persist_mem::manifest::ChildReport;
use sys::Pid;
use sys::batch::{Batch, Buffer, Output};
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

/// Children that are asked for in one batch.
const AT_ONCE: usize = 64;

/// The question for some children.
pub(super) struct Asked(Vec<(Pid, Buffer)>);

/// Asks for the first of them, without taking the reports.
pub(super) fn ask(batch: &mut Batch, children: &[Pid]) -> Asked {
    let ask = |child: &Pid| {
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
        (*child, info)
    };
    Asked(children.iter().take(AT_ONCE).map(ask).collect())
}

/// What was asked, and the reports of the other children.
pub(super) fn read(
    asked: &Asked,
    out: &Output,
    first: &mut Tracee,
    children: &[Pid],
) -> Result<Vec<(Pid, ChildReport)>, TraceeError> {
    let mut found = asked.answers(out);
    for some in children.chunks(AT_ONCE).skip(1) {
        let mut batch = Batch::new();
        let asked = ask(&mut batch, some);
        let out = first.run(&batch)?;
        found.extend(asked.answers(&out));
    }
    Ok(found)
}

impl Asked {
    fn answers(&self, out: &Output) -> Vec<(Pid, ChildReport)> {
        let answer = |(child, info): &(Pid, Buffer)| {
            // si_signo, si_errno, si_code
            match out.u32(*info, 2) {
                CLD_STOPPED => Some((*child, ChildReport::Stopped)),
                CLD_CONTINUED => Some((*child, ChildReport::Continued)),
                _ => None,
            }
        };
        self.0.iter().filter_map(answer).collect()
    }
}
