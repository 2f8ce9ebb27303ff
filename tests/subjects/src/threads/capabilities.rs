//! Capabilities of threads.

use anyhow::Result;
use libc::{PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAPBSET_DROP, PR_SET_SECUREBITS};

use crate::kit::{Crew, Setting, Watch, procfs, sys, tid};

/// struct __user_cap_header_struct and two __user_cap_data_struct of version 3 (capset(2)).
pub(super) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    let header = [0x2008_0522_u32, 0];
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    // SAFETY: both structures have the layout of version 3.
    sys("capset", unsafe {
        libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr())
    })
    .map(drop)
}

/// What this thread may have.
pub(super) fn permitted() -> Result<u64> {
    let set = procfs::status(&format!("self/task/{}", tid()), "CapPrm")?;
    Ok(u64::from_str_radix(set.trim(), 16)?)
}

/// All sets, securebits and the like of this thread.
fn observed() -> Result<Watch> {
    let task = format!("self/task/{}", tid());
    Watch::keep(move || {
        let mut seen = Vec::new();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            seen.push(procfs::status(&task, set)?);
        }
        // SAFETY: takes nothing.
        let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
        seen.push(format!("securebits {bits:#x}"));
        Ok(seen)
    })
}

const NET_BIND_SERVICE: u64 = 10;
const NET_RAW: u64 = 13;
const SYS_PTRACE: u64 = 19;
const WAKE_ALARM: u64 = 35;

/// Two threads with sets of their own.
pub(crate) fn sets(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    crew.add(|| {
        capset(
            1 << NET_RAW,
            1 << NET_RAW | 1 << WAKE_ALARM,
            1 << SYS_PTRACE,
        )?;
        observed()
    })?;
    crew.add(|| {
        capset(0, 1 << NET_RAW, 0)?;
        Ok(observed()?.spoiled_by(|| capset(1 << NET_RAW, 1 << NET_RAW, 0)))
    })?;
    Ok(crew.watch().and(observed()?))
}

/// What execve(2) would hand on.
pub(crate) fn ambient(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    crew.add(|| {
        let set = 1 << NET_BIND_SERVICE | 1 << NET_RAW | 1 << 8;
        capset(set, set, 1 << NET_BIND_SERVICE | 1 << NET_RAW)?;
        // SAFETY: these prctl(2) calls take numbers only.
        unsafe {
            sys(
                "ambient",
                libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, NET_BIND_SERVICE, 0, 0),
            )?;
            sys(
                "bounding",
                libc::prctl(PR_CAPBSET_DROP, SYS_PTRACE, 0, 0, 0),
            )?;
            sys(
                "bounding",
                libc::prctl(PR_CAPBSET_DROP, WAKE_ALARM, 0, 0, 0),
            )?;
            // SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | its lock
            sys(
                "securebits",
                libc::prctl(PR_SET_SECUREBITS, 0b1101, 0, 0, 0),
            )?;
        }
        Ok(observed()?.spoiled_by(|| {
            // SAFETY: as above.
            sys("ambient", unsafe {
                libc::prctl(PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
            })
            .map(drop)
        }))
    })?;
    Ok(crew.watch())
}

/// Sets that can only be come by in one order: inheritable capabilities outside of the bounding set, ambient ones
/// that may not be raised any more, and locks of securebits that are off.
pub(crate) fn orders(_: &Setting) -> Result<Watch> {
    const SETPCAP: u64 = 8;
    const SET: u64 = 1 << NET_RAW | 1 << NET_BIND_SERVICE | 1 << SETPCAP;
    /// `SECBIT_NO_CAP_AMBIENT_RAISE` and its lock, and the lock of `SECBIT_NO_SETUID_FIXUP`.
    const NO_MORE: u64 = 0b1100_1000;
    let mut crew = Crew::default();
    crew.add(|| {
        capset(SET, SET, 1 << NET_RAW)?;
        // SAFETY: these prctl(2) calls take numbers only.
        unsafe {
            let raise = PR_CAP_AMBIENT_RAISE;
            sys("ambient", libc::prctl(PR_CAP_AMBIENT, raise, NET_RAW, 0, 0))?;
            sys("bounding", libc::prctl(PR_CAPBSET_DROP, NET_RAW, 0, 0, 0))?;
            sys("securebits", libc::prctl(PR_SET_SECUREBITS, NO_MORE))?;
        }
        capset(1 << NET_RAW, 1 << NET_RAW, 1 << NET_RAW)?;
        Ok(observed()?.spoiled_by(|| capset(0, 0, 0)))
    })?;
    Ok(crew.watch())
}
