//! When nothing can be restored: the host boots the ordinary way, with all of its memory.

use super::cmdline::CommandLine;
use super::kmsg::announce;
use super::root::{RootSpec, mount_root, wait_for};
use super::switch::{NEW_ROOT, discard_overlay, switch_root};
use super::{EarlyError, Result, basics, load};
use crate::modules::Stage;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use persist_mem::handback::HandBack;
use persist_mem::meminfo::mem_total;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What an ordinary boot of this host needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The root file system.
    pub root: Option<String>,
    /// Mount options (`rootflags=`).
    pub root_options: String,
    /// Init programs to try, in order; paths in the host's root.
    pub inits: Vec<PathBuf>,
    /// Arguments for init.
    pub arguments: Vec<String>,
    /// How long to wait for the root disk.
    pub wait: Duration,
    /// How long the message stays on the console before the machine restarts, when not even a
    /// shell can be had.
    pub linger: Duration,
}

impl Fallback {
    /// Takes `root=`, `rootflags=`, `init=` and init's arguments from the command line.
    #[must_use]
    pub fn from_command_line(line: &CommandLine) -> Fallback {
        let mut inits: Vec<PathBuf> = line.get("init").map(PathBuf::from).into_iter().collect();
        inits.extend(["/sbin/init", "/etc/init", "/bin/init"].map(PathBuf::from));
        Fallback {
            root: line.get("root").map(str::to_owned),
            root_options: line.get("rootflags").unwrap_or("").to_owned(),
            inits,
            arguments: line.init_arguments(),
            wait: Duration::from_secs(30),
            linger: Duration::from_secs(30),
        }
    }
}

/// Says on the console what is lost.
fn report(reason: &str) {
    announce("=================================================================");
    announce(&format!("the processes could not be carried: {reason}"));
    announce("the host boots as after a restart");
    announce("=================================================================");
}

/// Boots the host without restoring anything, as PID 1 in the initramfs. Never returns: it ends in
/// the host's init, in a shell, or in a restart of the machine.
pub fn fallback_boot(plan: &Fallback, reason: &str) -> ! {
    report(reason);
    if let Err(error) = basics::mount_basics() {
        announce(&error.to_string());
    }
    for stage in [Stage::Root, Stage::World] {
        if let Err(error) = load::load_modules(Path::new("/"), stage) {
            announce(&error.to_string());
        }
    }
    return_all_memory();
    let Err(error) = boot_host(plan);
    give_up(plan, &error)
}

/// The same when the root was changed already and nothing runs in it: what was mounted beside it
/// is let go, and the host's init starts.
pub fn fallback_here(plan: &Fallback, reason: &str) -> ! {
    report(reason);
    // What the supervisor held back must not be held back from the host's init.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // Whatever /proc is mounted now may show another PID namespace.
    if let Err(error) = basics::mount_basics() {
        announce(&error.to_string());
    }
    return_all_memory();
    leave_mounts();
    let Err(error) = start_init(plan);
    give_up(plan, &error)
}

/// Unmounts everything but the root, the last one first. What stays is in the way of nobody but
/// the one who mounts it again.
fn leave_mounts() {
    let mounts = crate::mounts::capture::survey().map(|table| table.mounts);
    let mut points: Vec<PathBuf> = mounts
        .unwrap_or_default()
        .into_iter()
        .map(|m| PathBuf::from(std::ffi::OsString::from_vec(m.point)))
        .filter(|point| point != Path::new("/"))
        .collect();
    while let Some(point) = points.pop() {
        if let Err(errno) = umount2(&point, MntFlags::MNT_DETACH) {
            log::debug!("{} stays mounted: {errno}", point.display());
        }
    }
}

/// The end of all means: a shell, then a restart.
fn give_up(plan: &Fallback, error: &EarlyError) -> ! {
    announce(&format!("the host's own system cannot be started: {error}"));
    shell();
    announce(&format!("the machine restarts in {:?}", plan.linger));
    std::thread::sleep(plan.linger);
    nix::unistd::sync();
    let refused = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        // PID 1 must not end: that would be a panic.
        announce(&format!(
            "the restart was refused ({refused:?}); please restart the machine"
        ));
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Hands all soft-reserved memory to the kernel; says how it went.
fn return_all_memory() {
    let before = mem_total();
    let report = HandBack::new(Path::new("/sys")).and_then(|mut back| back.give_all());
    match report {
        Ok(report) => {
            for left in &report.left {
                log::warn!("memory not handed back: {left}");
            }
            log::info!(
                "{} MiB handed back in {:?}; MemTotal {} -> {} MiB",
                report.bytes() >> 20,
                report.took,
                before.unwrap_or(0) >> 20,
                mem_total().unwrap_or(0) >> 20
            );
        }
        Err(error) => announce(&format!("the host runs with little memory: {error}")),
    }
}

/// Mounts the host's root, makes it `/`, and starts its init.
fn boot_host(plan: &Fallback) -> Result<std::convert::Infallible> {
    let root = Path::new(NEW_ROOT);
    let spec = plan
        .root
        .as_deref()
        .ok_or_else(|| EarlyError::BadRootSpec(String::new()))?;
    let found = wait_for(&RootSpec::parse(spec)?, plan.wait)?;
    mount_root(&found, root, &plan.root_options)?;
    discard_overlay();
    switch_root(root)?;
    start_init(plan)
}

/// Becomes the first init that can be started.
fn start_init(plan: &Fallback) -> Result<std::convert::Infallible> {
    let mut last = None;
    for init in &plan.inits {
        if !init.exists() {
            continue;
        }
        announce(&format!("starting {}", init.display()));
        let source = become_program(init, &plan.arguments);
        announce(&format!("{}: {source}", init.display()));
        last = Some(EarlyError::File {
            path: init.clone(),
            source,
        });
    }
    Err(last.unwrap_or_else(|| EarlyError::File {
        path: "/sbin/init".into(),
        source: std::io::ErrorKind::NotFound.into(),
    }))
}

/// A command with the console as its standard files.
fn on_console(path: &Path) -> Command {
    let mut command = Command::new(path);
    let console = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/console")
    };
    if let (Ok(input), Ok(output), Ok(errors)) = (console(), console(), console()) {
        command
            .stdin::<File>(input)
            .stdout::<File>(output)
            .stderr::<File>(errors);
    }
    command
}

/// execve(2); gives the error when it fails.
fn become_program(path: &Path, arguments: &[String]) -> std::io::Error {
    on_console(path).args(arguments).exec()
}

/// Runs a shell when the present root has one, until it is left.
fn shell() {
    for (shell, argument) in [
        ("/bin/sh", None),
        ("/usr/bin/sh", None),
        ("/bin/busybox", Some("sh")),
    ] {
        if !Path::new(shell).exists() {
            continue;
        }
        announce("a shell for repairs; when it is left, the machine restarts");
        match on_console(Path::new(shell)).args(argument).status() {
            Ok(_) => return,
            Err(error) => announce(&format!("{shell}: {error}")),
        }
    }
    announce("there is no shell");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tells_how_to_boot() {
        let line =
            CommandLine::parse("root=UUID=1 rootflags=noatime init=/lib/systemd/systemd single");
        let plan = Fallback::from_command_line(&line);
        assert_eq!(plan.root.as_deref(), Some("UUID=1"));
        assert_eq!(plan.root_options, "noatime");
        assert_eq!(
            plan.inits[..2],
            [PathBuf::from("/lib/systemd/systemd"), "/sbin/init".into()]
        );
        assert_eq!(plan.arguments, ["single"]);
    }
}
