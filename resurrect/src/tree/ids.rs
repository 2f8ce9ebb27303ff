//! The ids that processes and threads must have, before anything is made.

use crate::ResurrectError;
use crate::restore::Restore;
use std::time::{Duration, Instant};
use sys::{Pid, procdir};

/// How long an ended process may keep its id until its parent has waited for it.
const ZOMBIES_WITHIN: Duration = Duration::from_secs(10);

/// Waits for an id that no process is seen to have and that cannot be given to a new one. Since Linux 6.15 whoever
/// waits for a process gives its id back a moment after it has left `/proc` (release_task in kernel/exit.c), and
/// that of a session or a group is given back with its last process.
pub(crate) struct GivenBack {
    end: Instant,
}

impl GivenBack {
    pub(crate) fn begin() -> GivenBack {
        GivenBack {
            end: Instant::now() + ZOMBIES_WITHIN,
        }
    }

    /// Whether it may be free now.
    pub(crate) fn again(&self, id: Pid) -> bool {
        let hopeful = !matches!(holder(id), Holder::Running(_)) && Instant::now() < self.end;
        if hopeful {
            std::thread::sleep(Duration::from_millis(1));
        }
        hopeful
    }
}

/// Who has an id.
enum Holder {
    Nobody,
    /// An ended process that was not waited for yet.
    Ended,
    Running(String),
}

/// Sees that every id is free; waits for ended processes that still have one.
pub(crate) fn check(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    if restore.is_upgrade() {
        // In a namespace of their own all ids are free.
        return Ok(());
    }
    let end = Instant::now() + ZOMBIES_WITHIN;
    for process in &restore.manifest.processes {
        let threads = process
            .live()
            .map(|l| l.threads.as_slice())
            .unwrap_or_default();
        let ids = threads.iter().map(|t| Pid(t.tid.0)).chain([process.pid]);
        for id in ids {
            wait_until_free(id, end)?;
        }
    }
    Ok(())
}

fn wait_until_free(id: Pid, end: Instant) -> Result<(), ResurrectError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match holder(id) {
            Holder::Nobody => return Ok(()),
            Holder::Running(comm) => {
                let comm = format!(" ({comm})");
                return Err(ResurrectError::Taken { pid: id, comm });
            }
            Holder::Ended if Instant::now() > end => {
                let comm = " that has ended and whose parent does not wait for it".into();
                return Err(ResurrectError::Taken { pid: id, comm });
            }
            Holder::Ended => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
    }
}

fn holder(id: Pid) -> Holder {
    let Ok(stat) = procdir::read(id, "stat") else {
        return Holder::Nobody;
    };
    let text = String::from_utf8_lossy(&stat);
    let (Some(open), Some(close)) = (text.find('('), text.rfind(')')) else {
        return Holder::Nobody;
    };
    let state = text[close + 1..].trim_start().chars().next();
    match state {
        Some('Z' | 'X') => Holder::Ended,
        _ => Holder::Running(text[open + 1..close].to_owned()),
    }
}
