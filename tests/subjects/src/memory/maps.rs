//! What /proc tells of the address space and the program.

use std::fs;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::kit::{Setting, Watch, procfs};

/// All of it as before, but for the kernel's own mappings and their address in auxv: where a vdso was, that
/// kernel's stays, for addresses in it are known to the program. The heap may have grown by what the
/// check itself needs, the stack has not.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let places = Mutex::new(Vec::new());
    let watch = Watch::keep(move || {
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        places.push(vdso()?);
        let mut maps = procfs::maps()?;
        maps.retain(|line| !line.contains("[heap]"));
        maps.retain(|line| procfs::range(line).is_none_or(|range| !places.contains(&range)));
        let mut told = vec![maps.join("\n")];
        for name in ["cmdline", "environ", "comm", "personality", "auxv"] {
            told.push(format!("{:?}", read(name)?));
        }
        told.push(format!("{:?}", fs::read_link("/proc/self/exe")?));
        Ok(told)
    })?;
    Ok(watch.spoiled_by(|| fs::write("/proc/self/comm", "other").map_err(Into::into)))
}

/// Where it is.
fn vdso() -> Result<(u64, u64)> {
    fs::read_to_string("/proc/self/maps")?
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .and_then(procfs::range)
        .context("there is no vdso")
}

fn read(name: &str) -> Result<Vec<u8>> {
    let mut bytes = fs::read(format!("/proc/self/{name}"))?;
    if name == "auxv" {
        // AT_SYSINFO_EHDR is where the vdso lies: another kernel may put it elsewhere. Where a
        // kernel appends entries of its own does not matter to the ones that were there.
        let ehdr = 33_u64.to_ne_bytes();
        if let Some(at) = bytes.chunks(16).position(|entry| entry.starts_with(&ehdr)) {
            bytes.drain(at * 16..at * 16 + 16);
        }
    }
    Ok(bytes)
}
