//! Pipes and sockets that reach out of a tree: what a process outside holds as well would be cut off.

use super::ends::{End, Ours};
use super::outsiders::{Outsiders, lives_outside};
use crate::diag::UnixInfo;
use crate::{Externals, Refusal, diag, nettcp, proc};
use std::collections::HashMap;
use sys::Pid;

/// Every pipe and socket of the tree that reaches out of it.
pub(crate) fn shared(
    ours: &Ours,
    outsiders: &Outsiders,
    inside: &[Pid],
    externals: &Externals,
) -> Vec<Refusal> {
    // Without unix_diag every unix socket is refused by itself.
    let (unix, tcp) = if ours.keys().any(|end| matches!(end, End::Socket(_))) {
        (diag::unix().unwrap_or_default(), tcp_peers(ours))
    } else {
        (HashMap::new(), HashMap::new())
    };
    let mut ends = touching(ours, &unix, &tcp);
    ends.retain(|end, (ours, ..)| {
        let again = |inode| {
            let info: Option<&UnixInfo> = unix.get(inode);
            info.is_some_and(|info| externals.reconnects(&info.name))
        };
        !matches!(end, End::Socket(inode) if end != ours && again(inode))
    });
    let mut found: HashMap<End, Refusal> = HashMap::new();
    for (other, theirs) in outsiders.ends() {
        for end in theirs {
            let Some((ours, holder, how)) = ends.get(end) else {
                continue;
            };
            // The tree may have grown since it was listed, or `other` have ended.
            if !lives_outside(other, inside) {
                break;
            }
            let (pid, fd) = *holder;
            found.entry(*ours).or_insert_with(|| Refusal {
                pid,
                comm: proc::comm(pid),
                resource: format!("fd {fd} ({ours})"),
                reason: format!(
                    "process {other} ({}), which is not part of the tree, {how}",
                    proc::comm(other)
                ),
            });
        }
    }
    let mut found: Vec<Refusal> = found.into_values().collect();
    found.sort_by(|a, b| (a.pid, &a.resource).cmp(&(b.pid, &b.resource)));
    found
}

/// What nobody outside may hold: which of our ends it touches, who holds that, and how it touches it.
type Touching = HashMap<End, (End, (Pid, i32), &'static str)>;

fn touching(ours: &Ours, unix: &HashMap<u64, UnixInfo>, tcp: &HashMap<u64, Vec<u64>>) -> Touching {
    let mut found: Touching = HashMap::new();
    for (end, holder) in ours {
        if matches!(end, End::Pipe(_) | End::Socket(_)) {
            found.insert(*end, (*end, *holder, "holds it too"));
        }
        let End::Socket(inode) = end else { continue };
        let peers = tcp.get(inode).into_iter().flatten();
        for peer in peers.map(|peer| End::Socket(*peer)) {
            if !ours.contains_key(&peer) {
                found.insert(peer, (*end, *holder, "holds the other end"));
            }
        }
        let Some(info) = unix.get(inode) else {
            continue;
        };
        let clients = info
            .waiting
            .iter()
            .map(|client| (*client, "waits to be accepted by it"));
        let peer = info.peer.map(|peer| (peer, "holds the other end"));
        for (other, how) in clients.chain(peer) {
            let other = End::Socket(other);
            if !ours.contains_key(&other) {
                found.insert(other, (*end, *holder, how));
            }
        }
    }
    found
}

/// Inodes of our TCP sockets and of the other ends of their connections, where they are sockets of this host.
fn tcp_peers(ours: &Ours) -> HashMap<u64, Vec<u64>> {
    let mut found: HashMap<u64, Vec<u64>> = HashMap::new();
    let peers = nettcp::Table::read().peers(|inode| ours.contains_key(&End::Socket(inode)));
    for (inode, peer) in peers {
        found.entry(inode).or_default().push(peer);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_process_that_holds_the_other_end_is_named() {
        let (end, other) = UnixStream::pair().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(std::os::fd::OwnedFd::from(end))
            .spawn()
            .unwrap();
        let inside = [Pid(child.id().cast_signed())];
        let outsiders = Outsiders::look(&inside);
        let ours = crate::files::ends::of_tree(&inside);
        let found = shared(&ours, &outsiders, &inside, &Externals::default());
        let me = std::process::id();
        let text = format!("process {me} (");
        child.kill().unwrap();
        child.wait().unwrap();
        drop(other);
        assert!(
            found
                .iter()
                .any(|r| r.reason.contains(&text) && r.reason.contains("other end")),
            "{found:?}"
        );
    }
}
