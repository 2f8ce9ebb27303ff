//! Processes that AppArmor confines, and its policy.

use anyhow::Result;

use super::{Pause, Program, SHORT, same};
use crate::guest::Shell;

const FOLDER: &str = "/sys/kernel/security/apparmor";
const PREFIX: &str = "/var/lab/confined";

/// Threads and a child in profiles, and the list of these.
#[derive(Default)]
pub(crate) struct Confined {
    profiles: String,
    looks: u32,
}

impl Program for Confined {
    fn name(&self) -> String {
        "profiles of AppArmor".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        shell.must(
            &format!(
                "mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security; \
                 cd {FOLDER} && cat /opt/kupgrade/lab/policy > .load && printf gone > .remove && cd / && \
                 (setsid python3 /opt/kupgrade/lab/confined.py {PREFIX} </dev/null >{PREFIX}.log 2>&1 &) && \
                 for i in $(seq 300); do [ -e {PREFIX}.ready ] && break; sleep 0.1; done; \
                 cat {PREFIX}.log; [ -e {PREFIX}.ready ]"
            ),
            SHORT,
        )?;
        Ok(())
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.profiles = profiles(shell)?;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        same("the list of profiles", &self.profiles, &profiles(shell)?)?;
        let look = self.looks;
        self.looks += 1;
        let told = shell.must(
            &format!(
                "touch {PREFIX}.ask-{look}; for i in $(seq 200); do [ -e {PREFIX}.told-{look} ] && break; sleep 0.1; done; \
                 cat {PREFIX}.log {PREFIX}.told-{look}"
            ),
            SHORT,
        )?;
        same("what it tells", "right", told.trim())?;
        Ok("all threads are in theirs".into())
    }
}

fn profiles(shell: &mut Shell) -> Result<String> {
    shell.must(&format!("sort {FOLDER}/profiles"), SHORT)
}
