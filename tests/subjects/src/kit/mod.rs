//! What subjects are made with.

mod area;
pub(crate) mod files;
mod kin;
pub(crate) mod net;
pub(crate) mod procfs;
mod threads;
mod waiter;

use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub(crate) use area::{Area, PAGE};
pub(crate) use kin::{Kin, fork, fork_with};
pub(crate) use net::loopback;
pub(crate) use threads::{Crew, tid};
pub(crate) use waiter::{
    Gaps, LONG_TERM, TERM, args, blocked, hear, raw, take_signal, timed, timed_long, waits,
    waits_with,
};

/// Where a subject lives.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    prefix: String,
}

impl Setting {
    /// Files of the subject have names that begin with `prefix`.
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The file `PREFIX.ENDING`.
    pub(crate) fn path(&self, ending: &str) -> PathBuf {
        PathBuf::from(format!("{}.{ending}", self.prefix))
    }

    /// The same without anything left there by an earlier run.
    pub(crate) fn fresh(&self, ending: &str) -> PathBuf {
        let path = self.path(ending);
        // Most often nothing is there.
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    /// The setting of a part of the subject.
    pub(crate) fn part(&self, name: &str) -> Setting {
        Setting {
            prefix: format!("{}.{name}", self.prefix),
        }
    }
}

/// Watches over the state that a subject has built.
pub(crate) struct Watch {
    check: Box<dyn FnMut() -> Result<()>>,
    spoil: Option<Box<dyn FnMut() -> Result<()>>>,
}

impl Watch {
    /// `check` finds nothing changed, or says what.
    pub(crate) fn new(check: impl FnMut() -> Result<()> + 'static) -> Self {
        Self {
            check: Box::new(check),
            spoil: None,
        }
    }

    /// `observe` must see the same again as now.
    pub(crate) fn keep<T: PartialEq + Debug + 'static>(
        mut observe: impl FnMut() -> Result<T> + 'static,
    ) -> Result<Self> {
        let before = observe()?;
        Ok(Self::new(move || same("it", &before, &observe()?)))
    }

    /// Breaks the state as a wrong restore would: the next check must fail. The lab does this
    /// with every subject that says how.
    pub(crate) fn spoiled_by(mut self, spoil: impl FnMut() -> Result<()> + 'static) -> Self {
        self.spoil = Some(Box::new(spoil));
        self
    }

    /// Both checks must pass.
    pub(crate) fn and(self, mut other: Watch) -> Self {
        let mut check = self.check;
        let spoil = self.spoil.or(other.spoil.take());
        Self {
            check: Box::new(move || {
                check()?;
                other.check()
            }),
            spoil,
        }
    }

    /// Checks.
    pub(crate) fn check(&mut self) -> Result<()> {
        (self.check)()
    }

    /// Breaks it.
    pub(crate) fn spoil(&mut self) -> Result<()> {
        match &mut self.spoil {
            Some(spoil) => spoil(),
            None => bail!("nobody said how to break it"),
        }
    }
}

/// What a subject needs does not exist on this machine or kernel.
#[derive(Debug)]
pub(crate) struct NotHere(pub(crate) String);

impl std::error::Error for NotHere {}

impl Display for NotHere {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.0)
    }
}

/// The error of a machine that lacks something.
pub(crate) fn not_here<T>(what: &str) -> Result<T> {
    Err(NotHere(what.to_owned()).into())
}

/// Complains when something is not what it was.
pub(crate) fn same<T: PartialEq + Debug + ?Sized>(what: &str, before: &T, now: &T) -> Result<()> {
    if before != now {
        bail!("{what} was {before:?} and is {now:?}");
    }
    Ok(())
}

/// The result of a system call; a failure becomes an error that names it: -1 of the C library's
/// functions, and the negative error numbers of [`raw`].
pub(crate) fn sys(what: &str, ret: impl Ret) -> Result<i64> {
    match ret.number() {
        -1 => bail!("{what}: {}", std::io::Error::last_os_error()),
        error @ -4095..-1 => bail!(
            "{what}: {}",
            std::io::Error::from_raw_os_error(-error as i32)
        ),
        result => Ok(result),
    }
}

/// What system calls return.
pub(crate) trait Ret {
    /// As a number.
    fn number(self) -> i64;
}

impl Ret for i32 {
    fn number(self) -> i64 {
        self.into()
    }
}

impl Ret for i64 {
    fn number(self) -> i64 {
        self
    }
}

impl Ret for isize {
    fn number(self) -> i64 {
        self as i64
    }
}

/// [`sys`] for a descriptor.
pub(crate) fn fd(what: &str, ret: i32) -> Result<i32> {
    sys(what, ret).map(|_| ret)
}

/// Closes what whoever started the subject has left open: it belongs to others, too.
pub(crate) fn close_inherited() {
    // SAFETY: the subject has opened nothing yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// The error number of the last call.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Has a thread that never rests run when nobody else has to: others share its machine.
pub(crate) fn give_way() {
    // SAFETY: takes numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Waits until something holds.
pub(crate) fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + patience;
    while !holds() {
        if Instant::now() > end {
            bail!("{what}: not within {patience:?}");
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// For what should happen at once, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
