//! seccomp filters of a thread, and who is asked about the calls that they leave open (kernel/seccomp.c).

use super::{Kernel, Unreadable};

const WRONG: Unreadable = Unreadable::Inconsistent("the seccomp filters of a thread");
/// More filters than a thread can have, and more calls than wait to be decided about.
const MOST: usize = 1 << 13;
/// `SECCOMP_NOTIFY_SENT`
const SENT: u64 = 1;

/// A filter (`struct seccomp_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilterAt {
    /// Where the kernel has it: processes that have the same one have it from each other.
    pub(crate) address: u64,
    /// Somebody is asked (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
    pub(crate) listened: bool,
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`
    pub(crate) killable: bool,
}

impl Kernel {
    /// The filters of a thread, the one installed first at the start.
    pub(crate) fn filters(&mut self, task: u64) -> Result<Vec<FilterAt>, Unreadable> {
        const FILTER: &str = "seccomp_filter";
        // Since Linux 5.19.
        let killable = self.btf.field(FILTER, "wait_killable_recv").is_ok();
        let mut fields = vec!["prev", "notif"];
        fields.extend(killable.then_some("wait_killable_recv"));
        let first = self.fields(task, "task_struct", &["seccomp.filter"])?;
        let mut at = first.first().copied().ok_or(WRONG)?;
        let mut found = Vec::new();
        while at != 0 {
            let values = self.fields(at, FILTER, &fields)?;
            let [prev, notif, ref killable @ ..] = values[..] else {
                return Err(WRONG);
            };
            found.push(FilterAt {
                address: at,
                listened: notif != 0,
                killable: killable.first().is_some_and(|set| *set != 0),
            });
            if found.len() > MOST {
                return Err(WRONG);
            }
            at = prev;
        }
        found.reverse();
        Ok(found)
    }

    /// The filter of an open file that is known to be a listener of one.
    pub(crate) fn filter_listened(&mut self, file: u64) -> Result<u64, Unreadable> {
        let found = self.fields(file, "file", &["private_data"])?;
        found.first().copied().filter(|at| *at != 0).ok_or(WRONG)
    }

    /// Whether a call was told to who listens, and is not decided about yet.
    pub(crate) fn is_undecided(&mut self, filter: u64) -> Result<bool, Unreadable> {
        const CALL: &str = "seccomp_knotif";
        let head = self.btf.field("notification", "notifications")?.offset;
        let link = self.btf.field(CALL, "list")?.offset;
        let notif = self.fields(filter, "seccomp_filter", &["notif"])?;
        let head = match notif[..] {
            [notif] if notif != 0 => notif.wrapping_add(head),
            _ => return Ok(false),
        };
        let mut next = self.word(head, "calls to be decided about")?;
        for _ in 0..MOST {
            if next == head {
                return Ok(false);
            }
            let state = self.fields(next.wrapping_sub(link), CALL, &["state"])?;
            if state[..] == [SENT] {
                return Ok(true);
            }
            next = self.word(next, "calls to be decided about")?;
        }
        Err(WRONG)
    }
}
