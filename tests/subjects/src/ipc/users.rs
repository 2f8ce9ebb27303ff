//! Who used System V objects last (`IPC_STAT`, `GETPID`), among them processes that have ended.

use anyhow::Result;
use libc::{GETPID, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_STAT, SETVAL};

use crate::kit::{Kin, Setting, Watch, args, fork, raw, same, sys};

/// A queue, a set of two semaphores, a segment that goes with its last process.
#[derive(Clone, Copy)]
struct Objects {
    queue: i32,
    set: i32,
    segment: i32,
}

impl Objects {
    fn send(self) -> Result<()> {
        let message = [1_u64];
        let at = message.as_ptr() as u64;
        let arguments = [self.queue as u64, at, 0, IPC_NOWAIT as u64];
        sys("msgsnd", raw(libc::SYS_msgsnd, args(arguments))).map(drop)
    }

    fn receive(self) -> Result<()> {
        let mut message = [0_u64];
        let at = message.as_mut_ptr() as u64;
        let arguments = [self.queue as u64, at, 0, 0, IPC_NOWAIT as u64];
        sys("msgrcv", raw(libc::SYS_msgrcv, args(arguments))).map(drop)
    }

    fn attach(self) -> Result<()> {
        sys(
            "shmat",
            raw(libc::SYS_shmat, args([self.segment as u64, 0, 0])),
        )
        .map(drop)
    }

    fn change(self, member: u64) -> Result<()> {
        let arguments = [self.set as u64, member, SETVAL as u64, 7];
        sys("semctl", raw(libc::SYS_semctl, args(arguments))).map(drop)
    }

    /// Of the queue, of the semaphores, of the segment.
    fn users(self) -> Result<Vec<i32>> {
        // SAFETY: zeros are a valid structure, and the kernel fills it.
        let queue = unsafe {
            let mut state: libc::msqid_ds = std::mem::zeroed();
            sys("msgctl", libc::msgctl(self.queue, IPC_STAT, &raw mut state))?;
            [state.msg_lspid, state.msg_lrpid]
        };
        // SAFETY: as above.
        let segment = unsafe {
            let mut state: libc::shmid_ds = std::mem::zeroed();
            sys(
                "shmctl",
                libc::shmctl(self.segment, IPC_STAT, &raw mut state),
            )?;
            [state.shm_cpid, state.shm_lpid]
        };
        let of = |member| {
            let arguments = [self.set as u64, member, GETPID as u64];
            raw(libc::SYS_semctl, args(arguments)) as i32
        };
        Ok([&queue[..], &[of(0), of(1)], &segment].concat())
    }
}

/// Runs `life` in a child that ends.
pub(super) fn gone(life: impl FnOnce() -> Result<()>) -> Result<i32> {
    let pid = fork(|| {
        let done = life();
        std::process::exit(i32::from(done.is_err()));
    })?;
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    sys("waitpid", unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    same("how a child ended", &0, &status)?;
    Ok(pid)
}

/// Two queues: one with a message that one who has ended has sent, one that a child has emptied for good.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let made = |ret: i64| sys("making an object", ret).map(|id| id as i32);
    // SAFETY: these take numbers.
    let (queue, other, set) = unsafe {
        (
            made(libc::msgget(IPC_PRIVATE, 0o600).into())?,
            made(libc::msgget(IPC_PRIVATE, 0o600).into())?,
            made(libc::semget(IPC_PRIVATE, 2, 0o600).into())?,
        )
    };
    let segment_made = setting.fresh("segment");
    let creator = gone(|| {
        // SAFETY: takes numbers.
        let id = made(unsafe { libc::shmget(IPC_PRIVATE, 5000, 0o600) }.into())?;
        Ok(std::fs::write(&segment_made, id.to_string())?)
    })?;
    let segment = std::fs::read_to_string(&segment_made)?.parse()?;
    let first = Objects {
        queue,
        set,
        segment,
    };
    let second = Objects {
        queue: other,
        ..first
    };
    first.attach()?;
    // SAFETY: takes numbers; the segment stays attached.
    sys("shmctl", unsafe {
        libc::shmctl(segment, IPC_RMID, std::ptr::null_mut())
    })?;
    first.send()?;
    first.receive()?;
    second.send()?;
    let kin = Kin::start(setting, "child", move |_| {
        second.receive()?;
        first.change(0)?;
        Ok(Watch::new(|| Ok(())))
    })?;
    let ended = gone(|| {
        first.send()?;
        first.change(1)?;
        first.attach()
    })?;
    // SAFETY: takes no arguments.
    let me = unsafe { libc::getpid() };
    let expected = [
        vec![ended, me, kin.pid, ended, creator, ended],
        vec![me, kin.pid, kin.pid, ended, creator, ended],
    ];
    Ok(Watch::new(move || {
        let now = [first.users()?, second.users()?];
        same("who used them last", &expected, &now)
    })
    .spoiled_by(move || first.change(1)))
}
