//! Which processes are stopped.

use crate::{FreezerError, proc};
use sys::Pid;

pub(super) enum Scope<'a> {
    /// A process and its descendants.
    Tree(Pid),
    /// Every process of user space, but for this one and `skip`.
    All {
        /// Left running.
        skip: &'a [Pid],
    },
}

impl Scope<'_> {
    /// The processes there are now.
    pub(super) fn pids(&self) -> Result<Vec<Pid>, FreezerError> {
        match self {
            Scope::Tree(root) => proc::tree(*root),
            Scope::All { skip } => {
                let me = Pid(nix::unistd::getpid().as_raw());
                let mut pids = proc::everyone()?;
                pids.retain(|pid| *pid != me && !skip.contains(pid));
                Ok(pids)
            }
        }
    }

    /// Whether it is an error when this process is gone.
    pub(super) fn must_exist(&self, pid: Pid) -> bool {
        matches!(self, Scope::Tree(root) if *root == pid)
    }
}
