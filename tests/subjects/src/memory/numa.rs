//! On which nodes memory is to be: the policies of threads and of mappings.

use anyhow::{Result, bail};

use crate::kit::{Area, Crew, Setting, Watch, args, not_here, raw};

const MPOL_DEFAULT: u64 = 0;
const MPOL_PREFERRED: u64 = 1;
const MPOL_BIND: u64 = 2;
const MPOL_INTERLEAVE: u64 = 3;
const MPOL_F_ADDR: u64 = 2;
const BITS: u64 = 1024;
/// Node 0, which is everywhere.
const NODES: [u64; 16] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn done(what: &str, result: i64) -> Result<()> {
    if result < 0 {
        bail!(
            "{what}: {}",
            std::io::Error::from_raw_os_error(-result as i32)
        );
    }
    Ok(())
}

/// The policy of this thread, or that of an address: its number and the nodes.
fn policy(address: u64, flags: u64) -> Result<(i32, [u64; 16])> {
    let (mut mode, mut nodes) = (0_i32, [0; 16]);
    let (to, into) = ((&raw mut mode) as u64, nodes.as_mut_ptr() as u64);
    let asked = args([to, into, BITS, address, flags]);
    done("get_mempolicy", raw(libc::SYS_get_mempolicy, asked))?;
    Ok((mode, nodes))
}

fn set(mode: u64) -> Result<()> {
    let nodes = if mode == MPOL_DEFAULT {
        0
    } else {
        NODES.as_ptr() as u64
    };
    let asked = args([mode, nodes, if nodes == 0 { 0 } else { BITS }]);
    done("set_mempolicy", raw(libc::SYS_set_mempolicy, asked))
}

/// Has a range spread over the nodes, where the kernel knows of policies.
pub(super) fn interleave(start: *mut libc::c_void, len: usize) -> Result<()> {
    let nodes = NODES.as_ptr() as u64;
    let asked = args([start as u64, len as u64, MPOL_INTERLEAVE, nodes, BITS, 0]);
    match raw(libc::SYS_mbind, asked) {
        none if none == -i64::from(libc::ENOSYS) => Ok(()),
        result => done("mbind", result),
    }
}

/// Two threads and three neighbouring mappings that differ.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    if raw(libc::SYS_get_mempolicy, args([0, 0, 0, 0, 0])) == -i64::from(libc::ENOSYS) {
        return not_here("this kernel has no memory policies");
    }
    let area = Area::anonymous(6)?;
    area.fill(31);
    for (page, mode) in [(0, MPOL_BIND), (2, MPOL_INTERLEAVE)] {
        let place = area.page(page) as u64;
        let asked = args([place, 8192, mode, NODES.as_ptr() as u64, BITS, 0]);
        done("mbind", raw(libc::SYS_mbind, asked))?;
    }
    let mut crew = Crew::default();
    for mode in [MPOL_PREFERRED, MPOL_INTERLEAVE] {
        crew.add(move || {
            set(mode)?;
            Ok(Watch::keep(|| policy(0, 0))?.spoiled_by(|| set(MPOL_DEFAULT)))
        })?;
    }
    let mappings = move || {
        [0, 2, 4]
            .map(|page| policy(area.page(page) as u64, MPOL_F_ADDR))
            .into_iter()
            .collect::<Result<Vec<_>>>()
    };
    Ok(crew
        .watch()
        .and(Watch::keep(|| policy(0, 0))?)
        .and(Watch::keep(mappings)?)
        .and(Watch::new(move || area.check(31))))
}
