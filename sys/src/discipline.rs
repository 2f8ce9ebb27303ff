//! How the kernel's clock is kept right (adjtimex(2)): what daemons of NTP have told it.

use crate::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// `ADJ_MICRO` and `ADJ_NANO` (include/uapi/linux/timex.h).
const MICRO: u32 = 0x1000;
const NANO: u32 = 0x2000;
/// Status bits that are the kernel's own (`STA_RONLY`).
const ITS_OWN: i32 = 0xff00;

/// What is lasting of it. A correction that is under way (`ADJ_OFFSET`) is not: the daemon measures the clock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Discipline {
    /// Seconds that CLOCK_TAI is ahead of CLOCK_REALTIME.
    pub tai: i32,
    /// Parts per million, times 65536.
    pub frequency: i64,
    /// Microseconds between two ticks of `USER_HZ`.
    pub tick: i64,
    /// Microseconds.
    pub max_error: i64,
    /// Microseconds.
    pub estimated_error: i64,
    /// Of the loop that follows offsets.
    pub time_constant: i64,
    /// `STA_*`
    pub status: i32,
    /// Offsets are told in nanoseconds.
    pub nanoseconds: bool,
}

impl Discipline {
    /// What the kernel does now.
    ///
    /// # Errors
    /// None that are known.
    pub fn read() -> Result<Discipline> {
        let mut told = none();
        adjust(&mut told)?;
        Ok(Discipline {
            tai: told.tai,
            frequency: told.freq,
            tick: told.tick,
            max_error: told.maxerror,
            estimated_error: told.esterror,
            time_constant: told.constant,
            status: told.status & !ITS_OWN,
            nanoseconds: told.status & libc::STA_NANO != 0,
        })
    }

    /// Has the kernel do this. To be called behind all that sets the clock, which undoes some of it.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_TIME`.
    pub fn set(&self) -> Result<()> {
        // A time constant is taken as it is told only together with nanoseconds (kernel/time/ntp.c).
        let mut asked = libc::timex {
            modes: libc::ADJ_STATUS
                | libc::ADJ_FREQUENCY
                | libc::ADJ_MAXERROR
                | libc::ADJ_ESTERROR
                | libc::ADJ_TIMECONST
                | libc::ADJ_TICK
                | NANO,
            freq: self.frequency,
            tick: self.tick,
            maxerror: self.max_error,
            esterror: self.estimated_error,
            constant: self.time_constant,
            status: self.status,
            ..none()
        };
        adjust(&mut asked)?;
        let mut asked = libc::timex {
            modes: libc::ADJ_TAI | if self.nanoseconds { NANO } else { MICRO },
            constant: self.tai.into(),
            ..none()
        };
        adjust(&mut asked)
    }
}

fn none() -> libc::timex {
    // SAFETY: a timex is made of numbers, and zeros ask for nothing.
    unsafe { core::mem::zeroed() }
}

fn adjust(asked: &mut libc::timex) -> Result<()> {
    // SAFETY: the kernel reads and writes one timex, which outlives the call.
    let state = unsafe { libc::adjtimex(asked) };
    Errno::result(state).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_without_a_change() {
        let told = Discipline::read().unwrap();
        assert!((9_000..=11_000).contains(&told.tick), "{told:?}");
        assert_eq!(told.status & ITS_OWN, 0);
    }
}
