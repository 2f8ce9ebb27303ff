//! Options that can be set and not be asked for, and uses of a socket that nobody tells: read from the kernel's
//! memory. What is carried becomes an option as setsockopt(2) takes it; the rest is refused.

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Kernel, Unreadable};
use nix::libc as c;
use persist_mem::manifest::SocketOption;
use std::os::fd::AsFd;

const WRONG: Unreadable = Unreadable::Inconsistent("the options of a socket");
/// include/uapi/asm-generic/socket.h
const SO_BUSY_POLL_BUDGET: i32 = 70;
/// include/net/busy_poll.h, `BUSY_POLL_BUDGET`
const BUDGET: u64 = 8;
/// include/uapi/linux/tcp.h
const TCP_MD5SIG_EXT: i32 = 32;
/// More keys than anybody gives a socket.
const MOST_KEYS: usize = 4096;

/// What is found: options, or why it is refused.
type Found = Result<Vec<SocketOption>, &'static str>;

/// The options of a socket that cannot be asked for.
pub(super) fn examine(open: &Open<'_>, common: &Common) -> Result<Vec<SocketOption>, FreezerError> {
    let internet = [c::AF_INET, c::AF_INET6].contains(&common.domain);
    if !internet && common.domain != c::AF_UNIX {
        return Ok(Vec::new());
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        if let Some(why) = used_by_the_kernel(kernel, sk)? {
            return Ok(Err(why));
        }
        let mut options = general(kernel, sk)?;
        if common.domain == c::AF_INET6 {
            match of_ipv6(kernel, sk)? {
                Ok(more) => options.extend(more),
                refused => return Ok(refused),
            }
        }
        if internet && common.kind != c::SOCK_STREAM {
            options.extend(multicast_interface(kernel, sk)?);
        } else if internet && common.protocol == c::IPPROTO_TCP {
            // What has one signs with it, and takes only what is signed.
            if optional(kernel, sk, "tcp_sock", "ao_info")?.is_some_and(|info| info != 0) {
                return Ok(Err("keys of TCP-AO (TCP_AO_ADD_KEY) are not carried"));
            }
            options.extend(largest_segment(kernel, sk)?);
            options.extend(signatures(kernel, sk)?);
        }
        Ok(Ok(options))
    });
    match found {
        Ok(Ok(options)) => Ok(options),
        Ok(Err(why)) => Err(open.refuse(why)),
        Err(why) => {
            log::debug!("fd {}: options that cannot be asked for: {why}", open.fd);
            Ok(Vec::new())
        }
    }
}

fn field(kernel: &mut Kernel, at: u64, structure: &str, path: &str) -> Result<u64, Unreadable> {
    let found = kernel.fields(at, structure, &[path])?;
    found.first().copied().ok_or(WRONG)
}

/// As [`field`]; None when this kernel is built without it.
fn optional(
    kernel: &mut Kernel,
    at: u64,
    structure: &str,
    path: &str,
) -> Result<Option<u64>, Unreadable> {
    match field(kernel, at, structure, path) {
        Ok(found) => Ok(Some(found)),
        Err(Unreadable::NoField(_)) => Ok(None),
        Err(why) => Err(why),
    }
}

fn used_by_the_kernel(kernel: &mut Kernel, sk: u64) -> Result<Option<&'static str>, Unreadable> {
    // A map of sockets, a tunnel, a multiplexer: whoever has it leaves its own data there.
    if field(kernel, sk, "sock", "sk_user_data")? != 0 {
        return Ok(Some(
            "something in the kernel uses it (a BPF map of sockets, a tunnel, KCM)",
        ));
    }
    if let Ok(policies) = kernel.btf().field("sock", "sk_policy") {
        let at = sk.wrapping_add(policies.offset);
        let found = kernel.words(&[at, at.wrapping_add(8)])?;
        if found.iter().any(|policy| *policy != Some(0)) {
            return Ok(Some(
                "policies of IPsec of its own (IP_XFRM_POLICY) are not carried",
            ));
        }
    }
    Ok(None)
}

fn general(kernel: &mut Kernel, sk: u64) -> Result<Vec<SocketOption>, Unreadable> {
    let budget = optional(kernel, sk, "sock", "sk_busy_poll_budget")?;
    let budget = budget.filter(|budget| ![0, BUDGET].contains(budget));
    let option = |budget: u64| SocketOption {
        level: c::SOL_SOCKET,
        name: SO_BUSY_POLL_BUDGET,
        value: (budget as i32).to_ne_bytes().to_vec(),
    };
    Ok(budget.map(option).into_iter().collect())
}

/// The interface of IP_MULTICAST_IF: asking gives an address only. `struct ip_mreqn`: group, address, index.
fn multicast_interface(kernel: &mut Kernel, sk: u64) -> Result<Option<SocketOption>, Unreadable> {
    let index = field(kernel, sk, "inet_sock", "mc_index")? as u32;
    let address = field(kernel, sk, "inet_sock", "mc_addr")? as u32;
    let words = [0, address, index];
    Ok((index != 0).then(|| SocketOption {
        level: c::SOL_IP,
        name: c::IP_MULTICAST_IF,
        value: words.into_iter().flat_map(u32::to_ne_bytes).collect(),
    }))
}

fn of_ipv6(kernel: &mut Kernel, sk: u64) -> Result<Found, Unreadable> {
    const INFO: &str = "ipv6_pinfo";
    let info = field(kernel, sk, "inet_sock", "pinet6")?;
    if field(kernel, info, INFO, "ipv6_ac_list")? != 0 {
        return Ok(Err("anycast addresses (IPV6_JOIN_ANYCAST) are not carried"));
    }
    if field(kernel, info, INFO, "ipv6_fl_list")? != 0 {
        return Ok(Err("flow labels (IPV6_FLOWLABEL_MGR) are not carried"));
    }
    // struct in6_pktinfo: address, index.
    let sticky = kernel.btf().field(INFO, "sticky_pktinfo")?;
    let at = (info.wrapping_add(sticky.offset), 20);
    let value = kernel.read(&[at])?.pop().flatten().ok_or(WRONG)?;
    Ok(Ok(if value.iter().all(|byte| *byte == 0) {
        Vec::new()
    } else {
        vec![SocketOption {
            level: c::SOL_IPV6,
            name: c::IPV6_PKTINFO,
            value,
        }]
    }))
}

/// What TCP_MAXSEG was set to: a connection shows what came of it.
fn largest_segment(kernel: &mut Kernel, sk: u64) -> Result<Option<SocketOption>, Unreadable> {
    let size = field(kernel, sk, "tcp_sock", "rx_opt.user_mss")? as i32;
    // A connection made before it was set keeps what it has.
    let used = field(kernel, sk, "tcp_sock", "mss_cache")? as i32;
    Ok((size != 0 && used <= size).then(|| SocketOption {
        level: c::SOL_TCP,
        name: c::TCP_MAXSEG,
        value: size.to_ne_bytes().to_vec(),
    }))
}

/// Whether an option is a key of TCP_MD5SIG.
pub(super) fn is_signature(option: &SocketOption) -> bool {
    (option.level, option.name) == (c::SOL_TCP, TCP_MD5SIG_EXT)
}

/// Keys of TCP_MD5SIG (tcp(7)), as TCP_MD5SIG_EXT takes them.
fn signatures(kernel: &mut Kernel, sk: u64) -> Result<Vec<SocketOption>, Unreadable> {
    const INFO: &str = "tcp_md5sig_info";
    const KEY: &str = "tcp_md5sig_key";
    let mut found = Vec::new();
    let Some(info) = optional(kernel, sk, "tcp_sock", "md5sig_info")?.filter(|info| *info != 0)
    else {
        return Ok(found);
    };
    let mut key = field(kernel, info, INFO, "head.first")?;
    while key != 0 {
        found.push(signature(kernel, key)?);
        if found.len() > MOST_KEYS {
            return Err(WRONG);
        }
        key = field(kernel, key, KEY, "node.next")?;
    }
    // The last one that was added is the first one.
    found.reverse();
    Ok(found)
}

fn signature(kernel: &mut Kernel, key: u64) -> Result<SocketOption, Unreadable> {
    const KEY: &str = "tcp_md5sig_key";
    /// The prefix' length counts; the interface does.
    const PREFIX: u8 = 1;
    const INTERFACE: u8 = 2;
    /// `TCP_MD5SIG_MAXKEYLEN`
    const LONGEST: usize = 80;
    let names = ["keylen", "family", "prefixlen", "flags", "l3index"];
    let found = kernel.fields(key, KEY, &names)?;
    let [len, family, prefix, flags, interface] = found[..] else {
        return Err(WRONG);
    };
    let at = |kernel: &Kernel, name| Ok(key.wrapping_add(kernel.btf().field(KEY, name)?.offset));
    let requests = [(at(kernel, "addr")?, 16), (at(kernel, "key")?, LONGEST)];
    let mut parts = kernel.read(&requests)?.into_iter().flatten();
    let (Some(host), Some(mut secret)) = (parts.next(), parts.next()) else {
        return Err(WRONG);
    };
    secret.get_mut(len as usize..).ok_or(WRONG)?.fill(0);
    // struct sockaddr_storage, then flags, prefix' length, key's length, interface, key.
    let mut address = (family as u16).to_ne_bytes().to_vec();
    match family as i32 {
        c::AF_INET => address.extend([&[0; 2], &host[..4]].concat()),
        c::AF_INET6 => address.extend([&[0; 6], &host[..]].concat()),
        _ => return Err(WRONG),
    }
    address.resize(128, 0);
    let flags = PREFIX | (flags as u8 & INTERFACE);
    let value = [
        &address[..],
        &[flags, prefix as u8],
        &(len as u16).to_ne_bytes(),
        &(interface as u32).to_ne_bytes(),
        &secret,
    ];
    Ok(SocketOption {
        level: c::SOL_TCP,
        name: TCP_MD5SIG_EXT,
        value: value.concat(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::socket;

    fn look<T>(look: impl FnOnce(&mut Kernel) -> Result<T, Unreadable>) -> Option<T> {
        kernel::readable(kernel::look(look))
    }

    #[test]
    fn keys_of_signatures_come_as_they_were_given() {
        let fd = socket::socket(c::AF_INET, c::SOCK_STREAM, 0).unwrap();
        let mut value = vec![2, 0, 0, 0, 10, 0, 0, 9];
        value.resize(128, 0);
        value.extend([1, 24, 3, 0, 0, 0, 0, 0]);
        value.extend(b"key");
        value.resize(216, 0);
        match socket::set_option(fd.as_fd(), c::SOL_TCP, 32, &value) {
            Err(sys::Errno::ENOPROTOOPT) => return,
            done => done.unwrap(),
        }
        // The host's part of the address does not count.
        value[7] = 0;
        let found = look(|kernel| {
            let sk = kernel.own_sock(fd.as_fd())?;
            signatures(kernel, sk)
        });
        let Some(found) = found else { return };
        let found: Vec<_> = found.into_iter().map(|one| one.value).collect();
        assert_eq!(found[0][..4], value[..4]);
        assert_eq!(found[0][128..], value[128..]);
    }

    #[test]
    fn the_interface_of_multicast_is_known_by_its_index() {
        let fd = socket::socket(c::AF_INET, c::SOCK_DGRAM, 0).unwrap();
        let value = [0u32, 0, 1].map(u32::to_ne_bytes).concat();
        socket::set_option(fd.as_fd(), c::SOL_IP, c::IP_MULTICAST_IF, &value).unwrap();
        let found = look(|kernel| {
            let sk = kernel.own_sock(fd.as_fd())?;
            multicast_interface(kernel, sk)
        });
        let Some(found) = found else { return };
        assert_eq!(found.map(|one| one.value), Some(value));
    }
}
