//! Pipes and sockets that reach out of a tree: what a process outside holds as well would be cut off.

use crate::diag::UnixInfo;
use crate::{Externals, FreezerError, Refusal, diag, nettcp, proc};
use std::collections::HashMap;
use sys::Pid;

/// What two processes may each hold an end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Node {
    /// A pipe by its inode: both ends have the same.
    Pipe(u64),
    /// A socket by its inode: its peer has another.
    Socket(u64),
}

impl core::fmt::Display for Node {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Node::Pipe(inode) => write!(f, "pipe:[{inode}]"),
            Node::Socket(inode) => write!(f, "socket:[{inode}]"),
        }
    }
}

impl Node {
    /// From a link of `/proc/PID/fd`.
    fn parse(link: &[u8]) -> Option<Node> {
        let text = std::str::from_utf8(link).ok()?;
        let (kind, inode) = text.strip_suffix(']')?.split_once(":[")?;
        let inode = inode.parse().ok()?;
        match kind {
            "pipe" => Some(Node::Pipe(inode)),
            "socket" => Some(Node::Socket(inode)),
            _ => None,
        }
    }
}

/// The inode in a link of `/proc/PID/fd`, when it is a socket.
pub(crate) fn socket_inode(link: &[u8]) -> Option<u64> {
    match Node::parse(link) {
        Some(Node::Socket(inode)) => Some(inode),
        _ => None,
    }
}

/// Refuses what a process outside of the tree holds as well, or holds the other end of. Asked before
/// any descriptor is copied: after that this process holds them too.
///
/// # Errors
/// [`FreezerError::Refused`].
pub(crate) fn refuse(inside: &[Pid], externals: &Externals) -> Result<(), FreezerError> {
    let found = externals.excuse(shared(inside, externals));
    if found.is_empty() {
        Ok(())
    } else {
        Err(FreezerError::Refused(found))
    }
}

/// Every pipe and socket of the tree that reaches out of it.
pub(crate) fn shared(inside: &[Pid], externals: &Externals) -> Vec<Refusal> {
    let mut ours: HashMap<Node, (Pid, i32)> = HashMap::new();
    for pid in inside {
        for (fd, node) in nodes(*pid) {
            ours.entry(node).or_insert((*pid, fd));
        }
    }
    // Without unix_diag every unix socket is refused by itself.
    let unix = if ours.keys().any(|node| matches!(node, Node::Socket(_))) {
        diag::unix().unwrap_or_default()
    } else {
        HashMap::new()
    };
    let mut ends = ends(&ours, &unix, &tcp_peers(&ours));
    ends.retain(|end, (ours, ..)| {
        let again = |inode| {
            let info: Option<&UnixInfo> = unix.get(inode);
            info.is_some_and(|info| externals.reconnects(&info.name))
        };
        !matches!(end, Node::Socket(inode) if end != ours && again(inode))
    });
    let mut found: HashMap<Node, Refusal> = HashMap::new();
    for other in others(inside) {
        for (_, node) in nodes(other) {
            let Some((ours, holder, how)) = ends.get(&node) else {
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

/// What nobody outside may hold: which of our nodes it touches, who holds that, and how it touches it.
type Ends = HashMap<Node, (Node, (Pid, i32), &'static str)>;

fn ends(
    ours: &HashMap<Node, (Pid, i32)>,
    unix: &HashMap<u64, UnixInfo>,
    tcp: &HashMap<u64, u64>,
) -> Ends {
    let mut found: Ends = HashMap::new();
    for (node, holder) in ours {
        found.insert(*node, (*node, *holder, "holds it too"));
        let Node::Socket(inode) = node else { continue };
        if let Some(peer) = tcp.get(inode).map(|peer| Node::Socket(*peer))
            && !ours.contains_key(&peer)
        {
            found.insert(peer, (*node, *holder, "holds the other end"));
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
            let other = Node::Socket(other);
            if !ours.contains_key(&other) {
                found.insert(other, (*node, *holder, how));
            }
        }
    }
    found
}

/// Inodes of the other ends of our TCP connections, where they are sockets of this host.
fn tcp_peers(ours: &HashMap<Node, (Pid, i32)>) -> HashMap<u64, u64> {
    let all = nettcp::connections();
    let ours = all
        .iter()
        .filter(|(_, inode)| ours.contains_key(&Node::Socket(**inode)));
    let peer = |((local, remote), inode): (&(Vec<u8>, Vec<u8>), &u64)| {
        let peer = all.get(&(remote.clone(), local.clone()))?;
        (*peer != 0).then_some((*inode, *peer))
    };
    ours.filter_map(peer).collect()
}

fn others(inside: &[Pid]) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
        .filter(|pid| !inside.contains(pid))
        .collect()
}

/// Whether a process is there and none of its ancestors is part of the tree.
fn lives_outside(pid: Pid, inside: &[Pid]) -> bool {
    let mut pid = pid;
    while pid.0 > 1 {
        let Ok(stat) = proc::Stat::read(pid, "stat") else {
            return false;
        };
        pid = stat.pid(4);
        if inside.contains(&pid) {
            return false;
        }
    }
    true
}

/// Descriptor and node of every pipe and socket of a process; none when it has ended.
fn nodes(pid: Pid) -> Vec<(i32, Node)> {
    let fds = proc::numbers(pid, "fd").unwrap_or_default().into_iter();
    let node = |fd: i32| Node::parse(&proc::link(pid, &format!("fd/{fd}")).ok()?);
    fds.filter_map(|fd| Some((fd, node(fd)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn links_of_proc() {
        assert_eq!(Node::parse(b"pipe:[12]"), Some(Node::Pipe(12)));
        assert_eq!(Node::parse(b"socket:[9]"), Some(Node::Socket(9)));
        assert_eq!(Node::parse(b"/tmp/pipe:[12]"), None);
        assert_eq!(Node::parse(b"anon_inode:[eventfd]"), None);
    }

    #[test]
    fn descendants_are_not_outside() {
        let me = Pid(std::process::id().cast_signed());
        let parent = Pid(nix::unistd::getppid().as_raw());
        assert!(!lives_outside(me, &[parent]));
        assert!(lives_outside(parent, &[me]));
        assert!(!lives_outside(Pid(i32::MAX), &[me]), "it does not exist");
    }

    #[test]
    fn the_process_that_holds_the_other_end_is_named() {
        let (end, other) = UnixStream::pair().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(std::os::fd::OwnedFd::from(end))
            .spawn()
            .unwrap();
        let inside = [Pid(child.id().cast_signed())];
        let found = shared(&inside, &Externals::default());
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
