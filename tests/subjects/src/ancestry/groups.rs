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

/// Who calls setsid(2) when its child is there, and so do `depth` generations; the last stays where it was.
fn forked_before(setting: &Setting, depth: u32) -> Result<Watch> {
    if depth == 0 {
        return Watch::keep(|| place(0));
    }
    let mut child = Kin::start(setting, "child", move |setting| {
        forked_before(setting, depth - 1)
    })?;
    // SAFETY: takes nothing.
    sys("setsid", unsafe { libc::setsid() })?;
    Ok(Watch::keep(|| place(0))?.and(Watch::new(move || child.check())))
}

/// Generations of session leaders whose descendants are still in the first session; and such a leader that was
/// orphaned, of a session whose leader lives.
pub(crate) fn forked_before_setsid(setting: &Setting) -> Result<Watch> {
    let mut generations = Kin::start(setting, "generations", |setting| forked_before(setting, 3))?;
    // SAFETY: takes numbers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    })?;
    let left = setting.part("left");
    let seen = left.clone();
    let mut leader = Kin::start(setting, "leader", move |_| {
        // SAFETY: takes nothing.
        sys("setsid", unsafe { libc::setsid() })?;
        let between = fork(move || {
            let _ = fork(|| {
                let _ = crate::protocol::serve(&seen, || forked_before(&seen, 1));
            });
        })?;
        // SAFETY: reaps the one between.
        sys("wait", unsafe {
            libc::waitpid(between, std::ptr::null_mut(), 0)
        })?;
        Watch::keep(|| place(0))
    })?;
    let text = crate::protocol::wait_for(&left.path("ready"), "READY ", SOON)?;
    let orphan: i32 = text.trim().parse()?;
    let mut asked = 0;
    Ok(Watch::new(move || {
        generations.check()?;
        leader.check()?;
        same("the orphan's session", &[orphan; 2], &place(orphan)?)?;
        asked += 1;
        crate::protocol::ask(&left, &asked.to_string(), SOON)
    })
    .spoiled_by(move || end(orphan, true)))
}

/// Two founders of groups, each in the other's.
pub(crate) fn swapped_groups(setting: &Setting) -> Result<Watch> {
    let [one, two, between] = ["one", "two", "between"].map(|name| member(setting, name));
    let (one, two, between) = (one?.pid, two?.pid, between?.pid);
    let into = |pid: i32, group: i32| {
        // SAFETY: takes numbers.
        sys("setpgid", unsafe { libc::setpgid(pid, group) }).map(drop)
    };
    into(one, one)?;
    into(two, two)?;
    into(between, one)?;
    into(one, two)?;
    into(two, one)?;
    end(between, true)?;
    Ok(Watch::new(move || {
        same("the group of one", &two, &place(one)?[0])?;
        same("the group of two", &one, &place(two)?[0])
    })
    .spoiled_by(move || into(one, one)))
}
