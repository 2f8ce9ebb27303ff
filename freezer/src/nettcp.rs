//! `/proc/net/tcp` and `tcp6`: which socket has which connection (proc(5)).

use std::collections::HashMap;

/// Port and host of both ends of a connection, bytes in network order.
pub(crate) type Ends = (Vec<u8>, Vec<u8>);

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    /// `TCP_ESTABLISHED` and so on (include/net/tcp_states.h).
    state: u8,
    /// Inode of the socket of the first end, 0 when no process has it.
    inode: u64,
}

/// `TCP_SYN_RECV`: asked for, and not made yet.
const ASKED_FOR: u8 = 3;
/// Not made yet, made, ended by the other end: what a listening socket may have in its queue.
const UNACCEPTED: [u8; 3] = [ASKED_FOR, 1, 8];

/// All TCP sockets of this network namespace.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Those with a connection; IPv4 inside IPv6 is IPv4.
    connections: HashMap<Ends, Line>,
    /// Those that listen: port and host, inode.
    listeners: Vec<(Vec<u8>, u64)>,
}

impl Table {
    /// As it is now.
    pub(crate) fn read() -> Table {
        const LISTEN: u8 = 10;
        let mut found = Table::default();
        for table in ["tcp", "tcp6"] {
            let path = format!("/proc/self/net/{table}");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            for (ends, line) in text.lines().skip(1).filter_map(line) {
                if line.state == LISTEN {
                    found.listeners.push((ends.0, line.inode));
                } else {
                    found.connections.insert(ends, line);
                }
            }
        }
        found
    }

    /// A process has the first end.
    pub(crate) fn held(&self, ends: &Ends) -> bool {
        self.connections.get(ends).is_some_and(|one| one.inode != 0)
    }

    /// Its first end is in one of these states, and no process has it.
    pub(crate) fn closed(&self, ends: &Ends, states: &[u8]) -> bool {
        let found = self.connections.get(ends);
        found.is_some_and(|one| one.inode == 0 && states.contains(&one.state))
    }

    /// The connection was asked for at its first end, and is not made yet.
    pub(crate) fn asked_for(&self, ends: &Ends) -> bool {
        self.connections
            .get(ends)
            .is_some_and(|one| one.state == ASKED_FOR)
    }

    /// Which sockets the other ends of those that `ours` knows are: of a connection that was not accepted
    /// yet the listening one.
    pub(crate) fn peers(&self, ours: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for ((local, remote), line) in &self.connections {
            if line.inode == 0 || !ours(line.inode) {
                continue;
            }
            let Some(other) = self.connections.get(&(remote.clone(), local.clone())) else {
                continue;
            };
            if other.inode != 0 {
                found.push((line.inode, other.inode));
            } else if UNACCEPTED.contains(&other.state) {
                let hears = |(at, _): &&(Vec<u8>, u64)| hears(at, remote);
                let mut all = self.listeners.iter().filter(hears);
                // Of several nobody knows which one it is.
                if !all.clone().any(|(_, inode)| ours(*inode)) {
                    found.extend(all.next().map(|(_, listener)| (line.inode, *listener)));
                }
            }
        }
        found.extend(self.clients(&ours));
        found
    }

    /// Our listening sockets, with the sockets of clients that wait to be accepted.
    fn clients(&self, ours: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let waiting = self
            .connections
            .iter()
            .filter(|(_, line)| line.inode == 0 && UNACCEPTED.contains(&line.state));
        let pair = |((local, remote), _): (&Ends, &Line)| {
            let mut hearing = self.listeners.iter().filter(|(at, _)| hears(at, local));
            let (_, listener) = hearing.find(|(_, inode)| ours(*inode))?;
            let client = self.connections.get(&(remote.clone(), local.clone()))?;
            (client.inode != 0).then_some((*listener, client.inode))
        };
        waiting.filter_map(pair).collect()
    }
}

/// Whether a socket that listens at a port and host gets what is sent to another: the same, or any host.
pub(crate) fn hears(at: &[u8], to: &[u8]) -> bool {
    at == to || (at.get(..2) == to.get(..2) && at.iter().skip(2).all(|byte| *byte == 0))
}

/// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode ...`
fn line(line: &str) -> Option<(Ends, Line)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    let inode = words.get(9)?.parse().ok()?;
    let ends = (end(words.get(1)?)?, end(words.get(2)?)?);
    Some((ends, Line { state, inode }))
}

/// `HOST:PORT`, the host in words of this machine's byte order.
fn end(text: &str) -> Option<Vec<u8>> {
    let (host, port) = text.split_once(':')?;
    let mut bytes = u16::from_str_radix(port, 16).ok()?.to_be_bytes().to_vec();
    let mut words = Vec::new();
    for at in (0..host.len()).step_by(8) {
        let word = u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?;
        words.extend_from_slice(&word.to_ne_bytes());
    }
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    match words.strip_prefix(&MAPPED) {
        Some(v4) => bytes.extend_from_slice(v4),
        None => bytes.extend_from_slice(&words),
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        assert_eq!(end("0100007F:1F90"), Some(vec![0x1f, 0x90, 127, 0, 0, 1]));
        let mapped = end("0000000000000000FFFF00000100007F:0050");
        assert_eq!(mapped, Some(vec![0, 0x50, 127, 0, 0, 1]));
        assert_eq!(end("nonsense"), None);
    }

    #[test]
    fn both_ends_of_a_connection_are_found() {
        use std::net::TcpStream;
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::MetadataExt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let inode = |fd: i32| {
            std::fs::metadata(format!("/proc/self/fd/{fd}"))
                .unwrap()
                .ino()
        };
        let port = |n: u16| [&n.to_be_bytes()[..], &[127, 0, 0, 1]].concat();
        let (c, s) = (
            client.local_addr().unwrap().port(),
            server.local_addr().unwrap().port(),
        );
        let all = Table::read().connections;
        assert_eq!(all[&(port(c), port(s))].inode, inode(client.as_raw_fd()));
        assert_eq!(all[&(port(s), port(c))].inode, inode(server.as_raw_fd()));
        let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let [one, other] = [inode(waiting.as_raw_fd()), inode(listener.as_raw_fd())];
        let table = Table::read();
        assert!(table.peers(|inode| inode == one).contains(&(one, other)));
        assert!(table.peers(|inode| inode == other).contains(&(other, one)));
        assert!(
            table
                .peers(|inode| [one, other].contains(&inode))
                .contains(&(other, one))
        );
    }
}
