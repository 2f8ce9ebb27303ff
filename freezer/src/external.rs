//! Descriptors that lead out of a tree and are handed over at the restore instead of being carried.

use crate::{FreezerError, Refusal, proc};
use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::process::{self, KcmpKind};
use sys::{Pid, Tid};

/// One of them.
#[derive(Debug)]
struct External {
    /// Its number in the tree's first process; the restorer has the replacement under the same.
    number: i32,
    copy: OwnedFd,
    /// Where `/proc/PID/fd/NUMBER` leads.
    link: Vec<u8>,
}

/// Open files that are not carried, by descriptors of the tree's first process (`--external fd[NN]`).
#[derive(Debug, Default)]
pub struct Externals {
    all: Vec<External>,
    /// Names of unix sockets outside that are connected to again (`--external unix:NAME`).
    names: Vec<Vec<u8>>,
}

impl Externals {
    /// Takes copies of the named descriptors of `root`; notes names of unix sockets that are connected to
    /// again.
    ///
    /// # Errors
    /// A descriptor is not open there.
    pub fn of(root: Pid, numbers: &[i32], names: Vec<Vec<u8>>) -> Result<Externals, FreezerError> {
        let pidfd = proc::pidfd(root).map_err(FreezerError::call(root, "opening a pidfd"))?;
        let mut all = Vec::new();
        for &number in numbers {
            let doing = format!("copying the external descriptor {number}");
            let copy = process::pidfd_getfd(pidfd.as_fd(), number)
                .map_err(FreezerError::call(root, doing))?;
            let link = proc::link(root, &format!("fd/{number}"))?;
            all.push(External { number, copy, link });
        }
        Ok(Externals { all, names })
    }

    /// The number under which this open file description is external, if it is.
    pub(crate) fn number(&self, copy: &OwnedFd) -> sys::Result<Option<i32>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let me = Tid(nix::unistd::getpid().as_raw());
        for external in &self.all {
            let theirs = external.copy.as_raw_fd();
            let order = process::kcmp(me, me, KcmpKind::File, theirs, copy.as_raw_fd())?;
            if order == Ordering::Equal {
                return Ok(Some(external.number));
            }
        }
        Ok(None)
    }

    /// Whether a unix socket of this name is connected to again.
    pub(crate) fn reconnects(&self, name: &[u8]) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Whether another description of the same pipe, socket or terminal is external.
    pub(crate) fn touches(&self, link: &[u8]) -> bool {
        self.all.iter().any(|external| external.link == link)
    }

    /// Leaves out refusals of ends that are held outside, where these ends are external.
    pub(crate) fn excuse(&self, refusals: Vec<Refusal>) -> Vec<Refusal> {
        let mut kept = refusals;
        kept.retain(|refusal| {
            !self.all.iter().any(|external| {
                let link = String::from_utf8_lossy(&external.link);
                refusal.resource.contains(&format!("({link})"))
            })
        });
        kept
    }
}
