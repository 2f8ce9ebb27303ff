//! Addresses of the Internet as sockets have them (ip(7), ipv6(7)).

/// Host and port: an IPv4 address inside an IPv6 one is the same as the IPv4 address.
pub(super) fn plain(address: &[u8]) -> Vec<u8> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let port = address.get(2..4).unwrap_or(&[]);
    let host = match address.first() {
        Some(2) => address.get(4..8),
        _ if address.get(8..20) == Some(&MAPPED) => address.get(20..24),
        _ => address.get(8..24),
    };
    [port, host.unwrap_or(&[])].concat()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn mapped_addresses_are_the_same() {
        let v4 = [2, 0, 0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v6 = vec![10, 0, 0, 7, 0, 0, 0, 0];
        v6.extend([0; 10]);
        v6.extend([0xff, 0xff, 10, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(plain(&v4), [0, 7, 10, 0, 0, 9]);
        assert_eq!(plain(&v6), plain(&v4));
        v6[23] = 8;
        assert_ne!(plain(&v6), plain(&v4));
    }
}
