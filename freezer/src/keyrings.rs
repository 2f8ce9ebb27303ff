//! Keys in keyrings of a process's own (thread-keyring(7), process-keyring(7)), and of its session
//! (session-keyring(7)).
//!
//! Their payloads may be nobody's to read, and new ones would have other serial numbers. That they are there is
//! read from the kernel's memory; where that cannot be, nobody can tell.

use crate::kernel::{self, Kernel, Unreadable, word};
use crate::{Refusal, proc};
use std::collections::BTreeSet;
use sys::{Pid, Tid};

/// Nodes of the largest keyring there may be (include/linux/assoc_array_priv.h).
const MOST: usize = 1 << 16;
/// `ASSOC_ARRAY_FAN_OUT`
const SLOTS: usize = 16;
const WRONG: Unreadable = Unreadable::Inconsistent("a keyring");

/// Why a process is not carried, if it has keys that would be lost. On one kernel the session of this process is
/// that of who restores, too.
pub(crate) fn refusal(pid: Pid, whole_host: bool) -> Option<Refusal> {
    let threads = proc::threads(pid).unwrap_or_default();
    let keys = |keyring| kernel::look(|kernel| has_keys(kernel, &threads, keyring));
    let own = ["process_keyring", "thread_keyring"]
        .into_iter()
        .find(|keyring| keys(keyring).unwrap_or(false));
    let found = match own {
        Some(keyring) => format!("its {}", keyring.replace('_', " ")),
        None => {
            let lost = kernel::look(|kernel| lost_with_session(kernel, &threads, whole_host));
            format!("its session keyring ({})", lost.unwrap_or(None)?)
        }
    };
    Some(Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "keys".into(),
        reason: format!("it has keys in {found}, which is not carried"),
    })
}

/// The keyring of a kind that each of these threads has, 0 for none.
fn keyrings(
    kernel: &mut Kernel,
    threads: &[Tid],
    keyring: &str,
) -> Result<Vec<Option<u64>>, Unreadable> {
    let in_credentials = kernel.btf().field("cred", keyring)?.offset;
    let credentials = kernel.credentials(threads)?;
    kernel.words_within(&credentials, in_credentials)
}

/// Whether a keyring in the credentials of any of these threads has something in it.
fn has_keys(kernel: &mut Kernel, threads: &[Tid], keyring: &str) -> Result<bool, Unreadable> {
    let count = kernel.btf().field("key", "keys.nr_leaves_on_tree")?.offset;
    let keyrings = keyrings(kernel, threads, keyring)?;
    let keyrings: Vec<_> = keyrings
        .into_iter()
        .map(|found| found.filter(|at| *at != 0))
        .collect();
    let counts = kernel.words_within(&keyrings, count)?;
    Ok(counts.into_iter().flatten().any(|count| count != 0))
}

/// A key of the threads' sessions that somebody would miss.
fn lost_with_session(
    kernel: &mut Kernel,
    threads: &[Tid],
    whole_host: bool,
) -> Result<Option<String>, Unreadable> {
    const KEYRING: &str = "session_keyring";
    let found = keyrings(kernel, threads, KEYRING)?;
    let mut found: BTreeSet<u64> = found.into_iter().flatten().filter(|at| *at != 0).collect();
    if !whole_host && !found.is_empty() {
        let me = Tid(nix::unistd::gettid().as_raw());
        for own in keyrings(kernel, &[me], KEYRING)?.into_iter().flatten() {
            found.remove(&own);
        }
    }
    for keyring in found {
        for key in members(kernel, keyring)? {
            let (kind, name) = named(kernel, key)?;
            if !comes_of_itself(&kind, &name) {
                return Ok(Some(format!("{kind} {name}")));
            }
        }
    }
    Ok(None)
}

/// Whether a session has a key without anybody's having put it there: the keyrings of its user
/// (user-keyring(7)), and the number that systemd gives to each start of a service, which is in its
/// environment, too.
fn comes_of_itself(kind: &str, name: &str) -> bool {
    match kind {
        "keyring" => name.starts_with("_uid"),
        "user" => name == "invocation_id",
        _ => false,
    }
}

/// The keys of a keyring (lib/assoc_array.c).
fn members(kernel: &mut Kernel, keyring: u64) -> Result<Vec<u64>, Unreadable> {
    /// Bits of a pointer: it leads to a node or a shortcut, not to a key; to a shortcut.
    const META: u64 = 1;
    const SHORTCUT: u64 = 2;
    const BOTH: u64 = META | SHORTCUT;
    let root = kernel.btf().field("key", "keys.root")?.offset;
    let slots = kernel.btf().field("assoc_array_node", "slots")?.offset;
    let next = kernel
        .btf()
        .field("assoc_array_shortcut", "next_node")?
        .offset;
    let mut found = Vec::new();
    let mut left = vec![kernel.word(keyring.wrapping_add(root), "a keyring")?];
    let mut seen = 0;
    while let Some(at) = left.pop() {
        let address = at & !BOTH;
        seen += 1;
        match at & BOTH {
            _ if seen > MOST => return Err(WRONG),
            _ if at == 0 => {}
            META => {
                let node = kernel.read(&[(address.wrapping_add(slots), SLOTS * 8)])?;
                let node = node.into_iter().next().flatten().ok_or(WRONG)?;
                left.extend((0..SLOTS as u64).filter_map(|slot| word(&node, slot * 8)));
            }
            BOTH => left.push(kernel.word(address.wrapping_add(next), "a keyring")?),
            // Keyrings in it are marked with the other bit.
            _ => found.push(address),
        }
    }
    Ok(found)
}

/// The type and the description of a key.
fn named(kernel: &mut Kernel, key: u64) -> Result<(String, String), Unreadable> {
    let kind = kernel.btf().field("key", "index_key.type")?.offset;
    let name = kernel.btf().field("key", "index_key.description")?.offset;
    let of_kind = kernel.btf().field("key_type", "name")?.offset;
    let kind = kernel.word(key.wrapping_add(kind), "a key")?;
    let kind = kernel.word(kind.wrapping_add(of_kind), "a key")?;
    let name = kernel.word(key.wrapping_add(name), "a key")?;
    Ok((text(kernel, kind)?, text(kernel, name)?))
}

/// The beginning of a text, read in words: what is behind it may not be there.
fn text(kernel: &mut Kernel, address: u64) -> Result<String, Unreadable> {
    const WORDS: u64 = 8;
    let words: Vec<u64> = (0..WORDS)
        .map(|n| (address & !7).wrapping_add(n * 8))
        .collect();
    let words = kernel.words(&words)?;
    let bytes = words
        .into_iter()
        .map_while(|word| word)
        .flat_map(u64::to_le_bytes);
    let bytes = bytes
        .skip((address & 7) as usize)
        .take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_has_of_itself() {
        assert!(comes_of_itself("keyring", "_uid.1000"));
        assert!(comes_of_itself("keyring", "_uid_ses.0"));
        assert!(comes_of_itself("user", "invocation_id"));
        assert!(!comes_of_itself("user", "secret"));
        assert!(!comes_of_itself("logon", "invocation_id"));
        assert!(!comes_of_itself("keyring", "other"));
    }
}
