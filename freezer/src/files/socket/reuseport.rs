//! Sockets that share a port (`SO_REUSEPORT`, socket(7)): their order and the program that chooses among them
//! are in the kernel's memory only (net/core/sock_reuseport.c).

use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{Kernel, Unreadable, word};
use nix::libc as c;
use persist_mem::manifest::PortGroup;
use std::os::fd::AsFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a group of sockets of one port");
/// Most instructions of a classic program (`BPF_MAXINSNS`).
const LONGEST: u64 = 4096;

/// Why a group is not carried.
enum Found {
    Nothing,
    Group(PortGroup),
    /// A program that is no classic one.
    Other,
}

/// The group of a socket; None when it has none, or nobody can tell.
pub(super) fn examine(open: &Open<'_>) -> Result<Option<PortGroup>, FreezerError> {
    if super::int(open, c::SOL_SOCKET, c::SO_REUSEPORT)? == 0 {
        return Ok(None);
    }
    let found = crate::kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        group(kernel, sk)
    });
    match found {
        Ok(Found::Group(group)) => Ok(Some(group)),
        Ok(Found::Nothing) => Ok(None),
        Ok(Found::Other) => Err(open.refuse(
            "an eBPF program that chooses among the sockets of its port \
             (SO_ATTACH_REUSEPORT_EBPF) is not carried",
        )),
        Err(why) => {
            log::debug!(
                "fd {}: which sockets it shares its port with: {why}",
                open.fd
            );
            Ok(None)
        }
    }
}

fn group(kernel: &mut Kernel, sk: u64) -> Result<Found, Unreadable> {
    let reuse = kernel.fields(sk, "sock", &["sk_reuseport_cb"])?[0];
    if reuse == 0 {
        return Ok(Found::Nothing);
    }
    let found = kernel.fields(reuse, "sock_reuseport", &["num_socks", "prog"])?;
    let [count, program] = found[..] else {
        return Err(WRONG);
    };
    let socks = kernel.btf().field("sock_reuseport", "socks")?.offset;
    let places: Vec<u64> = (0..count)
        .map(|n| reuse.wrapping_add(socks + n * 8))
        .collect();
    let found = kernel.words(&places)?;
    // One that listens no more is at the end, behind those that count.
    let place = found.iter().position(|one| *one == Some(sk));
    let place = place.unwrap_or(found.len()) as u32;
    Ok(match classic(kernel, program)? {
        Some(program) => Found::Group(PortGroup { place, program }),
        None => Found::Other,
    })
}

/// The classic program that was attached; empty when there is none, None when it was not a classic one.
fn classic(kernel: &mut Kernel, program: u64) -> Result<Option<Vec<u64>>, Unreadable> {
    if program == 0 {
        return Ok(Some(Vec::new()));
    }
    let original = kernel.fields(program, "bpf_prog", &["orig_prog"])?[0];
    if original == 0 {
        return Ok(None);
    }
    let found = kernel.fields(original, "sock_fprog_kern", &["len", "filter"])?;
    let [len, filter] = found[..] else {
        return Err(WRONG);
    };
    if len > LONGEST {
        return Err(WRONG);
    }
    let bytes = kernel.read(&[(filter, len as usize * 8)])?;
    let bytes = bytes.into_iter().flatten().next().ok_or(WRONG)?;
    Ok((0..len).map(|n| word(&bytes, n * 8)).collect())
}
