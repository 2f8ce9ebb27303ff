//! What PID 1 does once the world runs: it reaps, answers the world, and ends the machine when
//! the world's init ends.

use super::control::{self, Request};
use super::{Result, call};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use sys::wait::{Status, poll_children};
use sys::{Errno, Pid};

/// Signals the supervisor takes through a descriptor. SIGINT is what Ctrl-Alt-Delete sends to the
/// first process (reboot(2)).
const TAKEN: [Signal; 3] = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM];

/// Holds these signals back from now on; to be called before the first child is made.
///
/// # Errors
/// `EMFILE`.
pub fn take_signals() -> Result<SignalFd> {
    let set: SigSet = TAKEN.into_iter().collect();
    set.thread_block().map_err(call("sigprocmask"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(call("signalfd"))
}

/// How the world ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Restart,
    PowerOff,
    /// Its init died of itself.
    Lost(Status),
}

/// reboot(2) inside a PID namespace ends its first process by a signal that tells which kind.
fn end_of_world(status: Status) -> End {
    match status {
        Status::Killed(nix::libc::SIGHUP) => End::Restart,
        Status::Killed(nix::libc::SIGINT) => End::PowerOff,
        other => End::Lost(other),
    }
}

/// Serves for ever. `init` is the world's first process, by its id out here.
pub fn serve(signals: &SignalFd, listener: Option<&UnixListener>, init: Pid) -> ! {
    loop {
        reap(init);
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                forward(init, signal.ssi_signo);
            }
        }
        let mut sources = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(listener) = listener {
            sources.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        if let Err(errno) = poll(&mut sources, PollTimeout::NONE)
            && errno != Errno::EINTR
        {
            log::error!("poll: {errno}");
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        let asked = sources.get(1).and_then(PollFd::any).unwrap_or(false);
        if let (true, Some(listener)) = (asked, listener) {
            control::answer(listener, act);
        }
    }
}

fn act(request: Request) -> std::result::Result<String, String> {
    match request {
        Request::Ping => Ok("here".to_owned()),
        Request::Jump => {
            log::info!("the world asks for the jump");
            match sys::kexec::jump() {
                Ok(never) => match never {},
                Err(errno) => Err(format!("reboot(KEXEC): {errno}")),
            }
        }
    }
}

/// Hands Ctrl-Alt-Delete and the like to the world's init, which may ignore it.
fn forward(init: Pid, signal: u32) {
    let number = i32::try_from(signal).unwrap_or(0);
    if let Err(errno) = sys::process::kill(init, number) {
        log::warn!("signal {number} does not reach the world's init: {errno}");
    }
}

fn reap(init: Pid) {
    while let Ok(Some((tid, status))) = poll_children() {
        if tid == init.leader() {
            end_machine(end_of_world(status));
        }
    }
}

/// The world's init ended, and with it every process.
fn end_machine(end: End) -> ! {
    let mode = match end {
        End::Restart => RebootMode::RB_AUTOBOOT,
        End::PowerOff => RebootMode::RB_POWER_OFF,
        End::Lost(status) => {
            log::error!("the host's init ended ({status:?}); the machine restarts");
            RebootMode::RB_AUTOBOOT
        }
    };
    nix::unistd::sync();
    let refused = reboot(mode);
    loop {
        // PID 1 must not end: that would be a panic.
        log::error!("{mode:?} was refused ({refused:?}); please restart the machine");
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_end_is_told_by_the_signal() {
        assert_eq!(
            end_of_world(Status::Killed(nix::libc::SIGHUP)),
            End::Restart
        );
        assert_eq!(
            end_of_world(Status::Killed(nix::libc::SIGINT)),
            End::PowerOff
        );
        assert!(matches!(end_of_world(Status::Exited(0)), End::Lost(_)));
    }
}
