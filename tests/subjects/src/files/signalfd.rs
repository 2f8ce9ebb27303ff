//! signalfd(2)

use anyhow::Result;
use libc::{SFD_CLOEXEC, SFD_NONBLOCK};

use crate::kit::files::{read, seen};
use crate::kit::{Setting, Watch, args, fd, raw, same, sys};

/// USR1, USR2 and signal 40.
const MASK: u64 = 1 << 9 | 1 << 11 | 1 << 39;

/// Pending signals come out of it with their values; others do not.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mask = MASK | 1 << 40;
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let wanted = MASK;
    let flags = (SFD_NONBLOCK | SFD_CLOEXEC) as u64;
    let made = raw(
        libc::SYS_signalfd4,
        args([u64::MAX, &raw const wanted as u64, 8, flags]),
    );
    let signals = fd("signalfd", i32::try_from(made)?)?;
    let put = |signal: i32, value: usize| {
        let value = libc::sigval {
            sival_ptr: value as *mut _,
        };
        // SAFETY: a signal that is blocked, for this process.
        sys("sigqueue", unsafe {
            libc::sigqueue(libc::getpid(), signal, value)
        })
    };
    let fill = move || {
        put(41, 1)?;
        put(40, 2)?;
        put(libc::SIGUSR1, 3)?;
        put(40, 4)?;
        anyhow::Ok(())
    };
    fill()?;
    let observe = move || {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{signals}"))?;
        let mask = info
            .lines()
            .find(|line| line.starts_with("sigmask"))
            .map(str::to_owned);
        let (description, descriptor, _) = seen(signals)?;
        Ok((description, descriptor, mask))
    };
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            // Bytes 0 and 48 of struct signalfd_siginfo: the signal and the value.
            for (signal, value) in [(libc::SIGUSR1 as u8, 3), (40, 2), (40, 4)] {
                let info = read(signals, 128)?;
                same("signal and value", &(signal, value), &(info[0], info[48]))?;
            }
            same("a fourth one", &true, &read(signals, 128).is_err())?;
            let (other, none, mut info) = (1_u64 << 40, [0_u64; 2], [0_u64; 16]);
            let arguments = [
                &raw const other as u64,
                info.as_mut_ptr() as u64,
                none.as_ptr() as u64,
                8,
            ];
            same(
                "the one beside it",
                &41,
                &raw(libc::SYS_rt_sigtimedwait, args(arguments)),
            )?;
            fill()
        })
        .spoiled_by(move || read(signals, 128).map(drop)),
    ))
}
