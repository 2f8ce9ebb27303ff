//! Ids of a tree that processes outside of it keep in use.
//!
//! A number is not free for a new process while anybody has it as a process group or session (setpgid(2), setsid(2)):
//! the tree could be ended, and not be restored.

use crate::proc::{self, Stat};
use crate::{FreezerError, Refusal};
use sys::Pid;

/// Fields of `/proc/PID/stat` (proc(5)).
const USES: [(usize, &str); 2] = [(5, "process group"), (6, "session")];

/// Who outside is in a group or session that has its number from a process of the tree, of which `pids` were found.
///
/// # Errors
/// When the processes cannot be listed.
pub(crate) fn used_outside(root: Pid, pids: &[Pid]) -> Result<Vec<Refusal>, FreezerError> {
    let mut found = users(&proc::everyone()?, pids);
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Processes of the tree that are new since it was looked at are no strangers, nor those that end meanwhile.
    let now = proc::tree(root)?;
    found.retain(|user| !now.contains(&user.pid));
    let mut others: Vec<Pid> = found.iter().map(|user| user.pid).collect();
    // One is there for its group and for its session.
    others.dedup();
    Ok(users(&others, pids)
        .into_iter()
        .map(User::refusal)
        .collect())
}

/// A process that uses the id of another one.
struct User {
    pid: Pid,
    id: Pid,
    what: &'static str,
}

impl User {
    fn refusal(self) -> Refusal {
        let User { pid, id, what } = self;
        let comm = proc::comm(pid);
        Refusal {
            pid: id,
            comm: proc::comm(id),
            resource: what.into(),
            reason: format!(
                "process {pid} ({comm}), which is not part of the tree, is in it: the id would not be free at a restore"
            ),
        }
    }
}

/// Those of `others` that use an id of `pids`.
fn users(others: &[Pid], pids: &[Pid]) -> Vec<User> {
    let outside = others.iter().filter(|other| !pids.contains(other));
    let of = |pid: &Pid| {
        let stat = Stat::read(*pid, "stat").ok()?;
        // What has ended lets go of it as soon as its parent waits.
        (!matches!(stat.state(), 'Z' | 'X')).then_some((*pid, stat))
    };
    let uses = |(pid, stat): (Pid, Stat)| {
        USES.map(|(field, what)| User {
            pid,
            id: stat.pid(field),
            what,
        })
    };
    let all = outside.filter_map(of).flat_map(uses);
    all.filter(|user| pids.contains(&user.id)).collect()
}
