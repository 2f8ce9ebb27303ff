//! Children of a subject that are subjects themselves.

use anyhow::{Context, Result};

use super::{SOON, Setting, Watch, sys};
use crate::protocol;

/// A child that watches over state of its own.
pub(crate) struct Kin {
    /// Its process.
    pub(crate) pid: i32,
    setting: Setting,
    asked: u32,
}

impl Kin {
    /// Forks a child that builds its state and waits until the state stands. The subject must
    /// have one thread.
    pub(crate) fn start(
        setting: &Setting,
        name: &str,
        build: impl FnOnce(&Setting) -> Result<Watch>,
    ) -> Result<Self> {
        Self::start_with(setting, name, 0, build)
    }

    /// The same with flags of clone(2) for what the child shares.
    pub(crate) fn start_with(
        setting: &Setting,
        name: &str,
        flags: i32,
        build: impl FnOnce(&Setting) -> Result<Watch>,
    ) -> Result<Self> {
        let part = setting.part(name);
        let child = part.clone();
        Self::born(part, flags, move || {
            protocol::serve(&child, || build(&child))
        })
    }

    /// The same with a child whose first thread ends with the code that `leave` gives: another one serves.
    pub(crate) fn start_in_thread(
        setting: &Setting,
        name: &str,
        leave: impl FnOnce() -> i32,
        build: impl FnOnce(&Setting) -> Result<Watch> + Send + 'static,
    ) -> Result<Self> {
        let part = setting.part(name);
        let child = part.clone();
        Self::born(part, 0, move || {
            std::thread::spawn(move || protocol::serve(&child, || build(&child)));
            let code = leave();
            // SAFETY: ends this thread only; nothing of it is used by the other one.
            unsafe { libc::syscall(libc::SYS_exit, code) };
            Ok(())
        })
    }

    /// The same with a child that knows its files by another name than the subject does.
    pub(crate) fn start_as(
        setting: &Setting,
        build: impl FnOnce() -> Result<(Setting, Watch)>,
    ) -> Result<Self> {
        Self::born(setting.clone(), 0, move || {
            let (inside, watch) = build()?;
            protocol::serve(&inside, || Ok(watch))
        })
    }

    fn born(part: Setting, flags: i32, life: impl FnOnce() -> Result<()>) -> Result<Self> {
        for ending in ["ready", "ask", "result"] {
            let _ = part.fresh(ending);
        }
        let pid = fork_with(flags, || {
            if let Err(error) = life() {
                protocol::complain(&format!("a child: {error:#}"));
            }
        })?;
        protocol::wait_for(&part.path("ready"), "READY ", SOON).context("a child")?;
        Ok(Self {
            pid,
            setting: part,
            asked: 0,
        })
    }

    /// Asks it whether all is as it was.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.asked += 1;
        protocol::ask(&self.setting, &self.asked.to_string(), 2 * SOON)
            .with_context(|| format!("child {}", self.pid))
    }

    /// Has it break what it watches over.
    pub(crate) fn spoil(&self) -> Result<()> {
        protocol::ask(&self.setting, protocol::SPOIL, SOON)
    }
}

/// Forks a child that runs `life` and ends. The subject must have one thread.
pub(crate) fn fork(life: impl FnOnce()) -> Result<i32> {
    fork_with(0, life)
}

/// The same with flags of clone(2), other than CLONE_VM.
pub(crate) fn fork_with(flags: i32, life: impl FnOnce()) -> Result<i32> {
    // SAFETY: without CLONE_VM the child has a copy of the memory; the subject has one thread,
    // so the child finds no lock held.
    let pid = unsafe {
        match flags {
            0 => libc::fork().into(),
            flags => libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0),
        }
    };
    sys("clone", pid)?;
    if pid == 0 {
        life();
        std::process::exit(0);
    }
    Ok(i32::try_from(pid)?)
}
