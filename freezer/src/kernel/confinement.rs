//! What AppArmor keeps of a thread (security/apparmor/include/task.h): `/proc/PID/attr/prev` and `exec` tell of who reads
//! them, whoever they belong to (`apparmor_getprocattr`).

use super::{Kernel, Unreadable, half};
use sys::Tid;

/// Where a thread may go from the profile that it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transitions {
    /// It is in a hat, and may come back (aa_change_hat(2)).
    pub(crate) back: bool,
    /// The next program is to be in another one (aa_change_onexec(2)).
    pub(crate) at_exec: bool,
}

impl Kernel {
    /// Those of threads, none for such as are not there.
    pub(crate) fn transitions(&mut self, tids: &[Tid]) -> Result<Vec<Transitions>, Unreadable> {
        const SIZES: Unreadable =
            Unreadable::Inconsistent("where AppArmor keeps what it knows of threads");
        let of_threads = self.btf.field("lsm_blob_sizes", "lbs_task")?.offset;
        let fields = ["previous", "onexec"].map(|name| self.btf.field("aa_task_ctx", name));
        // They are offsets once the kernel has started (security/security.c, lsm_set_blob_size).
        let sizes = self.symbol("apparmor_blob_sizes").ok_or(SIZES)?;
        let place = self
            .read(&[(sizes.wrapping_add(of_threads), 4)])?
            .pop()
            .flatten();
        let place = place.and_then(|bytes| half(&bytes, 0)).ok_or(SIZES)?;
        let added = self.tables(tids, "security")?;
        let mut found = vec![Transitions::default(); tids.len()];
        for (is_next, field) in [false, true].into_iter().zip(fields) {
            let labels = self.words_within(&added, u64::from(place) + field?.offset)?;
            for (one, label) in found.iter_mut().zip(labels) {
                let there = label.is_some_and(|at| at != 0);
                match is_next {
                    true => one.at_exec = there,
                    false => one.back = there,
                }
            }
        }
        Ok(found)
    }
}
