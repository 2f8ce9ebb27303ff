//! The operator's shell itself: the one through which the lab drives the guest.

use anyhow::Result;

use super::{Pause, Program, SHORT, identity, same};
use crate::guest::Shell;

/// A variable, its terminal's settings and its identity must stay.
#[derive(Default)]
pub(crate) struct OperatorShell {
    before: String,
}

impl OperatorShell {
    fn facts(shell: &mut Shell) -> Result<String> {
        let text = shell.must(
            "echo $$ $lab_token $PWD $(tty) $(stty -g) $(umask) $(ulimit -n)",
            SHORT,
        )?;
        let pid = text.split_whitespace().next().unwrap_or("0").parse()?;
        Ok(format!("{} / {}", text.trim(), identity(shell, pid)?))
    }
}

impl Program for OperatorShell {
    fn name(&self) -> String {
        "operator's shell".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        shell.must("lab_token=$RANDOM$RANDOM; umask 027; cd /var/lab", SHORT)?;
        Ok(())
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.before = Self::facts(shell)?;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        same("its state", &self.before, &Self::facts(shell)?)?;
        Ok(format!(
            "process {}, terminal and variables as they were",
            self.before.split(' ').next().unwrap_or_default()
        ))
    }
}
