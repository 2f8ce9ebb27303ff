//! A process whose first thread has ended.

use anyhow::{Context, Result, bail};

use crate::kit::{Kin, Setting, Watch, procfs, same};

/// The child's second thread goes on.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let mut child = Kin::start_in_thread(setting, "child", |_| {
        let pid = std::process::id();
        Ok(Watch::new(move || {
            same("the process", &pid, &std::process::id())?;
            let state =
                procfs::status(&format!("self/task/{pid}"), "State").context("the leader")?;
            if !state.starts_with('Z') {
                bail!("the leader is {state}");
            }
            same("threads", "2", &procfs::status("self", "Threads")?)
        }))
    })?;
    Ok(Watch::new(move || child.check()))
}
