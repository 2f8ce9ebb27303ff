//! `/proc/net/tcp` and `tcp6`: which socket has which connection (proc(5)).

use std::collections::HashMap;

/// Port and host of both ends of a connection, bytes in network order.
pub(crate) type Ends = (Vec<u8>, Vec<u8>);

/// Port and host of both ends, as bytes in network order; IPv4 inside IPv6 is IPv4. The value is the
/// inode of the socket of the first end, 0 when no process has it.
pub(crate) fn connections() -> HashMap<Ends, u64> {
    let mut found = HashMap::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/self/net/{table}");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(line));
    }
    found
}

/// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode ...`
fn line(line: &str) -> Option<(Ends, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let inode = words.get(9)?.parse().ok()?;
    Some(((end(words.get(1)?)?, end(words.get(2)?)?), inode))
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
        let all = connections();
        assert_eq!(all[&(port(c), port(s))], inode(client.as_raw_fd()));
        assert_eq!(all[&(port(s), port(c))], inode(server.as_raw_fd()));
    }
}
