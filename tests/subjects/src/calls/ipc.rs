//! Waiting on queues and semaphores.

use anyhow::{Result, bail};
use libc::{IPC_CREAT, IPC_PRIVATE};

use super::sleeping::{now, spec};
use crate::kit::{LONG_TERM, Setting, TERM, Watch, args, blocked, raw, sys, timed, timed_long};

/// A message of type 7 with eight bytes.
const MESSAGE: [u64; 2] = [7, 0x1234];

fn send(queue: i64) -> i64 {
    raw(
        libc::SYS_msgsnd,
        args([queue as u64, MESSAGE.as_ptr() as u64, 8]),
    )
}

fn receive(queue: i64) -> i64 {
    let mut message = [0_u64; 2];
    let got = raw(
        libc::SYS_msgrcv,
        args([queue as u64, message.as_mut_ptr() as u64, 8, 7]),
    );
    if got < 0 || message == MESSAGE {
        got
    } else {
        -1000
    }
}

fn queue() -> Result<i64> {
    // SAFETY: takes numbers.
    sys("msgget", unsafe {
        libc::msgget(IPC_PRIVATE, IPC_CREAT | 0o600)
    })
}

/// An empty queue.
pub(crate) fn msgrcv(_: &Setting) -> Result<Watch> {
    let queue = queue()?;
    blocked(
        libc::SYS_msgrcv,
        move || receive(queue),
        8,
        move || sys("msgsnd", send(queue)).map(drop),
    )
}

/// A queue with no room.
pub(crate) fn msgsnd(_: &Setting) -> Result<Watch> {
    let queue = queue()?;
    // SAFETY: zeros are a valid structure, and the kernel fills it.
    unsafe {
        let mut state: libc::msqid_ds = std::mem::zeroed();
        sys(
            "msgctl",
            libc::msgctl(queue as i32, libc::IPC_STAT, &raw mut state),
        )?;
        state.msg_qbytes = 64;
        sys(
            "msgctl",
            libc::msgctl(queue as i32, libc::IPC_SET, &raw mut state),
        )?;
    }
    for _ in 0..8 {
        sys("msgsnd", send(queue))?;
    }
    blocked(
        libc::SYS_msgsnd,
        move || send(queue),
        0,
        move || sys("msgrcv", receive(queue)).map(drop),
    )
}

fn semaphore() -> Result<i64> {
    // SAFETY: takes numbers.
    sys("semget", unsafe {
        libc::semget(IPC_PRIVATE, 1, IPC_CREAT | 0o600)
    })
}

fn change(semaphore: i64, by: i16, time: u64) -> i64 {
    let operation = libc::sembuf {
        sem_num: 0,
        sem_op: by,
        sem_flg: 0,
    };
    raw(
        libc::SYS_semtimedop,
        args([semaphore as u64, &raw const operation as u64, 1, time]),
    )
}

/// A semaphore at zero.
pub(crate) fn semop(_: &Setting) -> Result<Watch> {
    let semaphore = semaphore()?;
    blocked(
        libc::SYS_semtimedop,
        move || change(semaphore, -2, 0),
        0,
        move || sys("semop", change(semaphore, 2, 0)).map(drop),
    )
}

/// The same with a time-out.
pub(crate) fn semtimedop(_: &Setting) -> Result<Watch> {
    let semaphore = semaphore()?;
    timed(
        libc::SYS_semtimedop,
        move || change(semaphore, -1, spec(TERM).as_ptr() as u64),
        -i64::from(libc::EAGAIN),
    )
}

/// The same, stopped more than once.
pub(crate) fn semtimedop_twice(_: &Setting) -> Result<Watch> {
    let semaphore = semaphore()?;
    timed_long(
        libc::SYS_semtimedop,
        move || change(semaphore, -1, spec(LONG_TERM).as_ptr() as u64),
        -i64::from(libc::EAGAIN),
    )
}

/// The same with SEM_UNDO: what it takes when it is woken is undone at its end.
pub(crate) fn semop_undo(_: &Setting) -> Result<Watch> {
    let semaphore = semaphore()?;
    let operate = move |by: i16, flags: i16| {
        let operation = libc::sembuf {
            sem_num: 0,
            sem_op: by,
            sem_flg: flags,
        };
        let at = &raw const operation as u64;
        raw(libc::SYS_semop, args([semaphore as u64, at, 1]))
    };
    let undo = libc::SEM_UNDO as i16;
    blocked(
        libc::SYS_semop,
        move || operate(-2, undo),
        0,
        move || sys("semop", operate(2, 0)).map(drop),
    )
}

/// A POSIX queue, which has no name any more.
fn mq() -> Result<i32> {
    let name = std::ffi::CString::new(format!("/kupgrade-{}", std::process::id()))?;
    // SAFETY: the name is a C string; the default sizes are used.
    let queue = unsafe {
        let none = std::ptr::null::<libc::mq_attr>();
        let queue = libc::mq_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600, none);
        libc::mq_unlink(name.as_ptr());
        queue
    };
    if queue < 0 {
        bail!("mq_open: {}", std::io::Error::last_os_error());
    }
    Ok(queue)
}

fn take(queue: i32, until: u64) -> i64 {
    let mut bytes = vec![0_u8; 8192];
    let at = bytes.as_mut_ptr() as u64;
    raw(
        libc::SYS_mq_timedreceive,
        args([queue as u64, at, 8192, 0, until]),
    )
}

/// An empty queue.
pub(crate) fn mq_receive(_: &Setting) -> Result<Watch> {
    let queue = mq()?;
    blocked(
        libc::SYS_mq_timedreceive,
        move || take(queue, 0),
        5,
        move || {
            let text = b"hello".as_ptr() as u64;
            sys(
                "mq_send",
                raw(libc::SYS_mq_timedsend, args([queue as u64, text, 5])),
            )
            .map(drop)
        },
    )
}

/// The same with an absolute time-out.
pub(crate) fn mq_timedreceive(_: &Setting) -> Result<Watch> {
    let queue = mq()?;
    timed(
        libc::SYS_mq_timedreceive,
        move || {
            take(
                queue,
                spec(now(libc::CLOCK_REALTIME) + TERM).as_ptr() as u64,
            )
        },
        -i64::from(libc::ETIMEDOUT),
    )
}
