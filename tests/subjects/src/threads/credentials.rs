//! User and group ids: each thread has its own, since these are raw system calls.

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, procfs, sys, tid};

fn call(number: i64, a: u64, b: u64, c: u64) -> Result<i64> {
    // SAFETY: the calls below take numbers, or a pointer to numbers that are alive.
    sys("setting ids", unsafe { libc::syscall(number, a, b, c) })
}

/// Three threads with three sets of ids; the first thread stays root.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for base in [1000_u64, 2000, 3000] {
        crew.add(move || {
            let groups = [base as u32 + 30, base as u32 + 10, base as u32 + 20];
            call(libc::SYS_setgroups, 3, groups.as_ptr() as u64, 0)?;
            call(libc::SYS_setresgid, base + 1, base + 2, base + 3)?;
            call(libc::SYS_setfsgid, base + 4, 0, 0)?;
            call(libc::SYS_setresuid, base + 5, base + 6, base + 5)?;
            let task = format!("self/task/{}", tid());
            Ok(Watch::keep(move || {
                let field = |name| procfs::status(&task, name);
                Ok([field("Uid")?, field("Gid")?, field("Groups")?])
            })?
            .spoiled_by(move || call(libc::SYS_setresuid, base + 5, base + 5, base + 5).map(drop)))
        })?;
    }
    let main = Watch::keep(|| {
        Ok([
            procfs::status("thread-self", "Uid")?,
            procfs::status("thread-self", "Groups")?,
        ])
    })?;
    Ok(crew.watch().and(main))
}

/// As many groups as there can be (`NGROUPS_MAX`), in two threads.
pub(crate) fn most_groups(_: &Setting) -> Result<Watch> {
    const MOST: u32 = 65_536;
    let mut crew = Crew::default();
    for first in [7_u32, 9] {
        crew.add(move || {
            let groups: Vec<u32> = (0..MOST).map(|number| first + 3 * number).collect();
            call(libc::SYS_setgroups, MOST.into(), groups.as_ptr() as u64, 0)?;
            // The first that is another one, and how many there are.
            let has = move || {
                let mut has = vec![0_u32; MOST as usize];
                let into = has.as_mut_ptr() as u64;
                let count = call(libc::SYS_getgroups, MOST.into(), into, 0)?;
                let other = has.iter().zip(&groups).position(|(one, two)| one != two);
                Ok((count, other))
            };
            Ok(Watch::keep(has)?.spoiled_by(|| call(libc::SYS_setgroups, 0, 0, 0).map(drop)))
        })?;
    }
    Ok(crew.watch())
}
