//! Every TCP socket of a network namespace that has a connection, whoever has it (include/net/inet_hashtables.h).

use super::{Kernel, Unreadable, word};

const WRONG: Unreadable = Unreadable::Inconsistent("the table of TCP connections");
/// More places than the table has on any host.
const MOST: u64 = 1 << 24;
/// Longer than any chain of it.
const LONGEST: u32 = 1 << 16;

impl Kernel {
    /// The `struct sock` of every socket in one of these states (`TCP_FIN_WAIT1` and so on) in the network namespace
    /// of another socket.
    pub(crate) fn connections(&mut self, sk: u64, states: &[u8]) -> Result<Vec<u64>, Unreadable> {
        let space = self.fields(sk, "sock_common", &["skc_net.net"])?;
        let space = space.first().copied().ok_or(WRONG)?;
        let next = self.btf.field("sock_common", "skc_nulls_node")?.offset;
        let mut found = Vec::new();
        let mut nodes = self.places(space)?;
        // Each place leads to a chain; an odd word ends it.
        for _ in 0..LONGEST {
            if nodes.is_empty() {
                return Ok(found);
            }
            let following = self.words(&nodes)?;
            let following = following.into_iter().flatten();
            let following: Vec<u64> = following.filter(|node| node & 1 == 0).collect();
            for node in &nodes {
                let sk = node.wrapping_sub(next);
                // It may have gone meanwhile.
                let Ok(one) = self.fields(sk, "sock_common", &["skc_state", "skc_net.net"]) else {
                    continue;
                };
                if one[1] == space && states.contains(&(one[0] as u8)) {
                    found.push(sk);
                }
            }
            nodes = following;
        }
        Err(WRONG)
    }

    /// The first of every chain of the table.
    fn places(&mut self, space: u64) -> Result<Vec<u64>, Unreadable> {
        let row = self.btf.field("net", "ipv4.tcp_death_row")?;
        let mut at = space.wrapping_add(row.offset);
        // A structure of its own before Linux 6.1.
        if row.pointer {
            at = self.word(at, "the table of TCP connections")?;
        }
        let table = self.fields(at, "inet_timewait_death_row", &["hashinfo"])?;
        let table = table.first().copied().ok_or(WRONG)?;
        let found = self.fields(table, "inet_hashinfo", &["ehash", "ehash_mask"])?;
        let [first, last] = found[..] else {
            return Err(WRONG);
        };
        if self.btf.size_of("inet_ehash_bucket")? != 8 || last >= MOST {
            return Err(WRONG);
        }
        let len = usize::try_from((last + 1) * 8).map_err(|_| WRONG)?;
        let bytes = self.read(&[(first, len)])?.pop().flatten().ok_or(WRONG)?;
        let all = (0..=last).filter_map(|place| word(&bytes, place * 8));
        Ok(all.filter(|node| node & 1 == 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn both_ends_of_a_connection_are_there() {
        const ESTABLISHED: u8 = 1;
        const LISTEN: u8 = 10;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let found = look(|kernel| {
            let own = [client.as_fd(), server.as_fd()].map(|fd| kernel.own_sock(fd));
            let [client, server] = own;
            let (client, server) = (client?, server?);
            let all = kernel.connections(client, &[ESTABLISHED])?;
            let none = kernel.connections(client, &[LISTEN])?;
            Ok((
                all.contains(&client),
                all.contains(&server),
                none.is_empty(),
            ))
        });
        assert_eq!(
            readable(found).unwrap_or((true, true, true)),
            (true, true, true)
        );
    }
}
