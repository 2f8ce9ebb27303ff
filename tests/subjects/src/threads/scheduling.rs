//! How threads are scheduled: each has its own.

use anyhow::Result;

use crate::kit::{Crew, Kin, Setting, Watch, not_here, procfs, sys, tid};

/// Threads that each set a value and keep seeing it.
fn each<T: Copy + Send + 'static>(
    values: &[T],
    other: T,
    set: fn(T) -> Result<()>,
    get: fn() -> Result<String>,
) -> Result<Watch> {
    let mut crew = Crew::default();
    for value in values {
        let value = *value;
        crew.add(move || {
            set(value)?;
            Ok(Watch::keep(get)?.spoiled_by(move || set(other)))
        })?;
    }
    Ok(crew.watch().and(Watch::keep(get)?))
}

/// Policies with the flag SCHED_RESET_ON_FORK on one.
pub(crate) fn policies(_: &Setting) -> Result<Watch> {
    let values = [
        (libc::SCHED_BATCH, 0),
        (libc::SCHED_IDLE, 0),
        (libc::SCHED_FIFO, 7),
        (libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 23),
    ];
    each(
        &values,
        (libc::SCHED_OTHER, 0),
        |(policy, priority)| {
            let param = libc::sched_param {
                sched_priority: priority,
            };
            // SAFETY: the structure is alive; 0 is this thread.
            let done = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &param) };
            if done != 0 && policy & libc::SCHED_RR != 0 {
                return not_here("real-time scheduling is not allowed");
            }
            sys("sched_setscheduler", done).map(drop)
        },
        || {
            let mut param = libc::sched_param { sched_priority: 0 };
            // SAFETY: the structure is alive; 0 is this thread.
            let policy = unsafe {
                sys(
                    "sched_getparam",
                    libc::syscall(libc::SYS_sched_getparam, 0, &mut param),
                )?;
                sys(
                    "sched_getscheduler",
                    libc::syscall(libc::SYS_sched_getscheduler, 0),
                )?
            };
            Ok(format!(
                "policy {policy:#x} priority {}",
                param.sched_priority
            ))
        },
    )
}

/// `struct sched_attr`, SCHED_ATTR_SIZE_VER0: size and policy, flags, nice and priority, runtime.
fn attributes(call: i64, attr: &mut [u64]) -> Result<()> {
    let size = if call == libc::SYS_sched_getattr {
        size_of_val(attr)
    } else {
        0
    };
    // SAFETY: the structure is alive; 0 is this thread.
    let done = unsafe { libc::syscall(call, 0, attr.as_mut_ptr(), size, 0) };
    sys("sched_getattr or sched_setattr", done).map(drop)
}

/// Time slices that threads have asked for.
pub(crate) fn slices(_: &Setting) -> Result<Watch> {
    let slice = || -> Result<u64> {
        let mut attr = [0; 6];
        attributes(libc::SYS_sched_getattr, &mut attr)?;
        Ok(attr[3])
    };
    if slice()? == 0 {
        return not_here("no time slices to be had");
    }
    each(
        &[
            (libc::SCHED_OTHER, 300_000),
            (libc::SCHED_BATCH, 50_000_000),
            (libc::SCHED_IDLE, 7_000_000),
        ],
        (libc::SCHED_OTHER, 1_000_000),
        |(policy, slice)| {
            let set = |policy: i32| {
                let mut attr = [48 | (policy as u64) << 32, 0, 0, slice, 0, 0];
                attributes(libc::SYS_sched_setattr, &mut attr)
            };
            // SCHED_IDLE leaves alone what another policy has set.
            if policy == libc::SCHED_IDLE {
                set(libc::SCHED_OTHER)?;
            }
            set(policy)
        },
        || {
            let mut attr = [0; 6];
            attributes(libc::SYS_sched_getattr, &mut attr)?;
            Ok(format!("policy {} slice {}", attr[0] >> 32, attr[3]))
        },
    )
}

/// Priorities of SCHED_IDLE by a nice value that is set with it, which the thread's own is not by.
pub(crate) fn idle(_: &Setting) -> Result<Watch> {
    let set = |nice: i32| {
        let nice = u64::from(nice.cast_unsigned());
        let idle = (libc::SCHED_IDLE as u64) << 32;
        attributes(libc::SYS_sched_setattr, &mut [48, 0, 0, 0, 0, 0])?;
        attributes(libc::SYS_sched_setattr, &mut [48 | idle, 0, nice, 0, 0, 0])
    };
    each(&[-7, 0, 11], 3, set, || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", tid()))?;
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = behind.split_whitespace().collect();
        // Priority, nice value, policy.
        Ok([15, 16, 38].map(|at| fields[at]).join(" "))
    })
}

/// Bounds of the utilisation that threads are taken to have (`CONFIG_UCLAMP_TASK`).
pub(crate) fn utilisation(_: &Setting) -> Result<Watch> {
    const SIZE: u64 = 56;
    // SCHED_FLAG_KEEP_ALL | SCHED_FLAG_UTIL_CLAMP
    const FLAGS: u64 = 0x78;
    fn bounds() -> Result<u64> {
        let mut attr = [0; 7];
        attributes(libc::SYS_sched_getattr, &mut attr)?;
        Ok(attr[6])
    }
    if bounds()? == 0 {
        return not_here("no bounds of utilisation");
    }
    each(
        &[(100, 700), (0, 512)],
        (1, 1024),
        |(least, most): (u64, u64)| {
            let mut attr = [SIZE, FLAGS, 0, 0, 0, 0, least | most << 32];
            attributes(libc::SYS_sched_setattr, &mut attr)
        },
        || Ok(format!("{:#x}", bounds()?)),
    )
}

/// Nice values from one end to the other.
pub(crate) fn nice(_: &Setting) -> Result<Watch> {
    each(
        &[-20, -7, 0, 5, 19],
        1,
        |value| {
            sys(
                "setpriority",
                // SAFETY: takes numbers; 0 is this thread.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) },
            )
            .map(drop)
        },
        || {
            Ok(sys(
                "getpriority",
                // SAFETY: takes numbers; the raw call returns 20 - nice, so -1 is an error only.
                unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) },
            )?
            .to_string())
        },
    )
}

fn status(field: &str) -> Result<String> {
    procfs::status(&format!("self/task/{}", tid()), field)
}

/// One thread per processor, and one that may run on all.
pub(crate) fn affinity(_: &Setting) -> Result<Watch> {
    // SAFETY: sysconf takes a number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    if count < 2 {
        return not_here("there is one processor only");
    }
    each(
        &[0b01_u64, 0b11, 0b10],
        0b11,
        |mask| {
            let pointer = &raw const mask;
            // SAFETY: the mask has the length that is given; 0 is this thread.
            sys("sched_setaffinity", unsafe {
                libc::syscall(libc::SYS_sched_setaffinity, 0, 8, pointer)
            })
            .map(drop)
        },
        || status("Cpus_allowed"),
    )
}

/// Class and level.
pub(crate) fn ioprio(_: &Setting) -> Result<Watch> {
    each(
        &[1_u64 << 13 | 2, 2 << 13 | 6, 3 << 13],
        2 << 13 | 1,
        |value| {
            sys(
                "ioprio_set",
                // SAFETY: takes numbers; IOPRIO_WHO_PROCESS 0 is this thread.
                unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) },
            )
            .map(drop)
        },
        || {
            Ok(sys(
                "ioprio_get",
                // SAFETY: takes numbers; IOPRIO_WHO_PROCESS 0 is this thread.
                unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) },
            )?
            .to_string())
        },
    )
}

/// Nanoseconds that timers may be late.
pub(crate) fn slack(_: &Setting) -> Result<Watch> {
    each(
        &[1_u64, 123_456, 4_000_000_000],
        50_000,
        |value| {
            sys(
                "prctl",
                // SAFETY: takes numbers.
                unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, value) },
            )
            .map(drop)
        },
        || {
            Ok(sys(
                "prctl",
                // SAFETY: takes numbers.
                unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_TIMERSLACK) },
            )?
            .to_string())
        },
    )
}

fn set_slack(value: u64) -> Result<()> {
    // SAFETY: takes numbers.
    let done = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, value) };
    sys("prctl", done).map(drop)
}

/// The timer slack of this thread, and what it goes back to.
fn slacks() -> Result<[i64; 2]> {
    let get = || {
        // SAFETY: takes numbers.
        let slack = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_TIMERSLACK) };
        sys("prctl", slack)
    };
    let now = get()?;
    set_slack(0)?;
    let first = get()?;
    set_slack(now.cast_unsigned())?;
    Ok([now, first])
}

/// Timer slack that threads and a child have from who has made them; a thread of a real-time policy has none.
pub(crate) fn first_slack(setting: &Setting) -> Result<Watch> {
    let own = |value: u64| {
        set_slack(value)?;
        Ok(Watch::keep(slacks)?.spoiled_by(|| set_slack(9_999)))
    };
    let policy = |policy: i32, sched_priority: i32| {
        let param = libc::sched_param { sched_priority };
        // SAFETY: the structure is alive; 0 is this thread.
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const param) }
    };
    let mut crew = Crew::default();
    crew.add(move || own(80_000))?;
    set_slack(123_456)?;
    crew.add(move || own(70_000))?;
    let child = Kin::start(setting, "child", move |_| own(60_000))?;
    set_slack(50_000)?;
    if policy(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 5) == 0 {
        crew.add(move || own(0))?;
        sys("sched_setscheduler", policy(libc::SCHED_OTHER, 0))?;
    }
    set_slack(90_000)?;
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let watch = Watch::new(move || child.borrow_mut().check());
    Ok(crew.watch().and(watch).and(Watch::keep(slacks)?))
}
