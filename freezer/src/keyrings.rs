//! Keys in keyrings of a process's own (thread-keyring(7), process-keyring(7)).
//!
//! They end with their process, their payloads may be nobody's to read, and new ones would have other serial
//! numbers. That they are there is read from the kernel's memory; where that cannot be, nobody can tell.

use crate::kernel::{self, Kernel, Unreadable};
use crate::{Refusal, proc};
use sys::{Pid, Tid};

/// Why a process is not carried, if it has keys of its own.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    let threads = proc::threads(pid).unwrap_or_default();
    let keys = |keyring| kernel::look(|kernel| has_keys(kernel, &threads, keyring));
    let found = ["process_keyring", "thread_keyring"]
        .into_iter()
        .find(|keyring| keys(keyring).unwrap_or(false))?;
    let keyring = found.replace('_', " ");
    Some(Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "keys".into(),
        reason: format!("it has keys in its {keyring}, which is not carried"),
    })
}

/// Whether a keyring in the credentials of any of these threads has something in it.
fn has_keys(kernel: &mut Kernel, threads: &[Tid], keyring: &str) -> Result<bool, Unreadable> {
    let in_credentials = kernel.btf().field("cred", keyring)?.offset;
    let count = kernel.btf().field("key", "keys.nr_leaves_on_tree")?.offset;
    let credentials = kernel.credentials(threads)?;
    let keyrings = kernel.words_within(&credentials, in_credentials)?;
    let keyrings: Vec<_> = keyrings
        .into_iter()
        .map(|found| found.filter(|at| *at != 0))
        .collect();
    let counts = kernel.words_within(&keyrings, count)?;
    Ok(counts.into_iter().flatten().any(|count| count != 0))
}
