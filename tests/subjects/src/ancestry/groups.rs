//! Process groups and sessions.

use anyhow::{Result, bail};

use crate::kit::{Kin, SOON, Setting, Watch, fork, procfs, same, sys, until};

/// Group and session of a process.
fn place(pid: i32) -> Result<[i32; 2]> {
    // SAFETY: these take numbers.
    let (group, session) = unsafe { (libc::getpgid(pid), libc::getsid(pid)) };
    if group == -1 || session == -1 {
        bail!("process {pid} is gone");
    }
    Ok([group, session])
}

fn member(setting: &Setting, name: &str) -> Result<Kin> {
    Kin::start(setting, name, |_| Watch::keep(|| place(0)))
}

/// Ends a child and reaps it, or leaves it a zombie.
fn end(pid: i32, reap: bool) -> Result<()> {
    // SAFETY: takes numbers.
    sys("kill", unsafe { libc::kill(pid, libc::SIGKILL) })?;
    if reap {
        // SAFETY: reaps a child of ours.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0)
        })?;
        return Ok(());
    }
    until("it is a zombie", SOON, || {
        procfs::status(&pid.to_string(), "State").is_ok_and(|state| state.starts_with('Z'))
    })
}

fn group_with(setting: &Setting, reap: bool) -> Result<Watch> {
    let leader = member(setting, "leader")?.pid;
    // SAFETY: takes numbers.
    sys("setpgid", unsafe { libc::setpgid(leader, leader) })?;
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let join = leader;
        members.push(Kin::start(setting, name, move |_| {
            // SAFETY: takes numbers.
            sys("setpgid", unsafe { libc::setpgid(0, join) })?;
            Watch::keep(|| place(0))
        })?);
    }
    end(leader, reap)?;
    let first = members[0].pid;
    Ok(Watch::new(move || {
        for member in &mut members {
            same("its group", &leader, &place(member.pid)?[0])?;
            member.check()?;
        }
        if !reap {
            same(
                "the leader",
                "Z (zombie)",
                &procfs::status(&leader.to_string(), "State")?,
            )?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers; its group is the subject's again.
        sys("setpgid", unsafe { libc::setpgid(first, libc::getpgid(0)) }).map(drop)
    }))
}

/// The leader is gone, two members are left.
pub(crate) fn groups(setting: &Setting) -> Result<Watch> {
    group_with(setting, true)
}

/// The leader is a zombie.
pub(crate) fn zombie_leader(setting: &Setting) -> Result<Watch> {
    group_with(setting, false)
}

/// A session of its own with two groups, and one whose leader is gone.
pub(crate) fn sessions(setting: &Setting) -> Result<Watch> {
    // SAFETY: takes nothing.
    let setsid = || sys("setsid", unsafe { libc::setsid() });
    let mut with = Kin::start(setting, "with", move |setting| {
        setsid()?;
        let mut inner = Kin::start(setting, "inner", |_| {
            // SAFETY: takes numbers.
            sys("setpgid", unsafe { libc::setpgid(0, 0) })?;
            Watch::keep(|| place(0))
        })?;
        Ok(Watch::keep(|| place(0))?.and(Watch::new(move || inner.check())))
    })?;
    // SAFETY: takes numbers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    })?;
    let left = setting.part("left");
    let seen = left.clone();
    let leader = fork(move || {
        let _ = setsid();
        let _ = fork(|| {
            let _ = crate::protocol::serve(&seen, || Watch::keep(|| place(0)));
        });
    })?;
    let text = crate::protocol::wait_for(&left.path("ready"), "READY ", SOON)?;
    // SAFETY: reaps the leader.
    sys("wait", unsafe {
        libc::waitpid(leader, std::ptr::null_mut(), 0)
    })?;
    let orphan: i32 = text.trim().parse()?;
    let mut asked = 0;
    Ok(Watch::new(move || {
        with.check()?;
        same(
            "the session without a leader",
            &[leader, leader],
            &place(orphan)?,
        )?;
        asked += 1;
        crate::protocol::ask(&left, &asked.to_string(), SOON)
    }))
}
