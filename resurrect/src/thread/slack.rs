//! The timer slack that a thread begins with: that of who makes it, which `PR_SET_TIMERSLACK` with 0 sets again.

use crate::calls::nr;
use persist_mem::manifest::Thread;
use sys::batch::Batch;

const PR_SET_TIMERSLACK: i32 = 29;
/// In nanoseconds.
const USUAL: u64 = 50_000;
const SCHED_OTHER: i32 = 0;
const SCHED_FIFO: i32 = 1;
const SCHED_RESET_ON_FORK: i32 = 0x4000_0000;

/// Adds calls that go around those which make `like`, in the thread that makes it.
pub(crate) fn around<T>(
    batch: &mut Batch,
    like: Option<&Thread>,
    make: impl FnOnce(&mut Batch) -> T,
) -> T {
    let slack = like.and_then(|thread| thread.scheduling.first_slack);
    let slack = slack.unwrap_or(USUAL);
    if slack != 0 {
        let args = [PR_SET_TIMERSLACK.into(), slack.into()];
        batch.call("setting a timer slack for another", nr::PRCTL, args);
        return make(batch);
    }
    // Only threads of real-time policies have none (kernel/sched/syscalls.c, __setscheduler_params, since 6.12).
    policy(batch, SCHED_FIFO | SCHED_RESET_ON_FORK, 1);
    let made = make(batch);
    policy(batch, SCHED_OTHER, 0);
    made
}

fn policy(batch: &mut Batch, policy: i32, priority: i32) {
    let priority = batch.data(&priority.to_le_bytes());
    let args = [0.into(), policy.into(), priority.into()];
    // Its control group may have no time for them.
    batch.try_call("having no timer slack", nr::SCHED_SETSCHEDULER, args);
}
