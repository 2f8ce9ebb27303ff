//! Bounding a system call that sleeps as long as it likes, but not through a signal.

use crate::Result;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::unistd::alarm;

extern "C" fn nothing(_: i32) {}

/// Runs `call`; after `seconds` a SIGALRM that does nothing interrupts the system call it is in.
/// For programs with one thread that use neither SIGALRM nor alarm(2) themselves.
///
/// # Errors
/// When the handler cannot be installed.
pub fn interrupt_after<T>(seconds: u32, call: impl FnOnce() -> T) -> Result<T> {
    // Without SA_RESTART: the call is to fail with EINTR.
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it is safe in any context.
    let before = unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let only: SigSet = Signal::SIGALRM.into();
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), Some(&mut mask))?;
    alarm::set(seconds.max(1));
    let result = call();
    alarm::cancel();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    // SAFETY: puts back what was there.
    unsafe { sigaction(Signal::SIGALRM, &before) }?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    #[test]
    fn a_read_that_would_last_for_ever_is_interrupted() {
        // The alarm goes to any thread, so the call is made in a process with one.
        let child = crate::process::spawn(0, &[], || {
            let Ok((read, _write)) = nix::unistd::pipe() else {
                return 1;
            };
            let mut read = std::fs::File::from(read);
            let start = Instant::now();
            let result = interrupt_after(1, || {
                // Retries are std's own; one attempt is wanted.
                read.read(&mut [0])
            });
            let interrupted =
                result.is_ok_and(|r| r.is_err_and(|e| e.kind() == std::io::ErrorKind::Interrupted));
            i32::from(!(interrupted && start.elapsed() < Duration::from_secs(5)))
        })
        .unwrap();
        let status = crate::wait::wait_for(child.leader()).unwrap();
        assert_eq!(status, crate::wait::Status::Exited(0));
    }
}
