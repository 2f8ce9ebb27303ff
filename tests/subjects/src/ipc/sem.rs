//! System V semaphores.

use anyhow::Result;
use libc::{GETALL, GETPID, IPC_CREAT, IPC_RMID, IPC_STAT, SEM_UNDO, SETALL};

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::kit::{Kin, SOON, Setting, Watch, args, raw, same, sys, tid, until};

fn create(key: i32, count: u64) -> Result<i32> {
    let old = raw(libc::SYS_semget, args([key as u64]));
    if old >= 0 {
        raw(libc::SYS_semctl, args([old as u64, 0, IPC_RMID as u64]));
    }
    let flags = (IPC_CREAT | 0o640) as u64;
    Ok(sys(
        "semget",
        raw(libc::SYS_semget, args([key as u64, count, flags])),
    )? as i32)
}

fn control(id: i32, number: u64, command: i32, argument: u64) -> Result<i64> {
    let done = raw(
        libc::SYS_semctl,
        args([id as u64, number, command as u64, argument]),
    );
    if done < 0 {
        anyhow::bail!("semctl of {id}: error {}", -done);
    }
    Ok(done)
}

fn values<const N: usize>(id: i32) -> Result<[u16; N]> {
    let mut values = [0_u16; N];
    control(id, 0, GETALL, values.as_mut_ptr() as u64)?;
    Ok(values)
}

fn change(id: i32, number: u16, by: i16, flags: i32) -> Result<()> {
    let operation = libc::sembuf {
        sem_num: number,
        sem_op: by,
        sem_flg: flags as i16,
    };
    sys(
        "semop",
        raw(
            libc::SYS_semop,
            args([id as u64, &raw const operation as u64, 1]),
        ),
    )
    .map(drop)
}

/// A set by its key, after one that is gone.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let gone = create(0x6b75_0010, 1)?;
    let id = create(0x6b75_0011, 4)?;
    control(gone, 0, IPC_RMID, 0)?;
    let set = [0_u16, 5, 32767, 1];
    control(id, 0, SETALL, set.as_ptr() as u64)?;
    change(id, 3, 2, 0)?;
    let observe = move || {
        let mut state = [0_u64; 16];
        control(id, 0, IPC_STAT, state.as_mut_ptr() as u64)?;
        // struct semid64_ds: key and ids (32 bytes and more), change time, count.
        let by_key = raw(libc::SYS_semget, args([0x6b75_0011]));
        Ok((
            by_key,
            values::<4>(id)?,
            state[..6].to_vec(),
            state[10],
            control(id, 3, GETPID, 0)?,
        ))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || change(id, 1, 1, 0)))
}

/// What a child has taken comes back when the child ends, and not before.
pub(crate) fn undo(setting: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0012, 2)?;
    let set = [10_u16, 10];
    control(id, 0, SETALL, set.as_ptr() as u64)?;
    change(id, 0, -1, SEM_UNDO)?;
    let taker = setting.clone();
    let start = move || {
        Kin::start(&taker, "taker", move |_| {
            change(id, 0, -3, SEM_UNDO)?;
            change(id, 1, 4, SEM_UNDO)?;
            Ok(Watch::new(|| Ok(())))
        })
    };
    let mut child = start()?;
    Ok(Watch::new(move || {
        child.check()?;
        same("the values", &[6, 14], &values::<2>(id)?)?;
        end(child.pid)?;
        same("the values after its end", &[9, 10], &values::<2>(id)?)?;
        child = start()?;
        Ok(())
    })
    .spoiled_by(move || change(id, 0, 1, 0)))
}

fn end(pid: i32) -> Result<()> {
    // SAFETY: ends the child of ours and reaps it.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        sys("wait", libc::waitpid(pid, std::ptr::null_mut(), 0))?;
    }
    Ok(())
}

/// A child's threads have taken, and somebody else was the last to change the semaphores.
pub(crate) fn undo_threads(setting: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0013, 3)?;
    let set = [10_u16, 10, 0];
    control(id, 0, SETALL, set.as_ptr() as u64)?;
    let taker = setting.clone();
    let start = move || {
        let child = Kin::start(&taker, "taker", move |_| {
            change(id, 0, -3, SEM_UNDO)?;
            let (send, done) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let _ = send.send(change(id, 1, -4, SEM_UNDO));
                std::thread::park();
            });
            done.recv()??;
            // A list of its own, which is undone at the end of the thread.
            let (send, done) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let taken = nix::sched::unshare(nix::sched::CloneFlags::CLONE_SYSVSEM)
                    .map_err(anyhow::Error::from)
                    .and_then(|()| change(id, 2, 5, SEM_UNDO));
                let _ = send.send(taken);
                std::thread::park();
            });
            done.recv()??;
            Ok(Watch::new(|| Ok(())))
        })?;
        for number in 0..2 {
            change(id, number, 1, 0)?;
        }
        let last = super::users::gone(|| {
            change(id, 2, 1, 0)?;
            change(id, 2, -1, 0)
        })?;
        Ok::<_, anyhow::Error>((child, last))
    };
    let (mut child, mut last) = start()?;
    let mut given = 1;
    Ok(Watch::new(move || {
        child.check()?;
        let before = [7 + given, 6 + given, 5];
        same("the values", &before, &values::<3>(id)?)?;
        let me = i64::from(std::process::id());
        for number in 0..2 {
            same("who changed it", &me, &control(id, number, GETPID, 0)?)?;
        }
        same(
            "who has ended and changed it",
            &i64::from(last),
            &control(id, 2, GETPID, 0)?,
        )?;
        end(child.pid)?;
        let after = [10 + given, 10 + given, 0];
        same("the values after its end", &after, &values::<3>(id)?)?;
        (child, last) = start()?;
        given += 1;
        Ok(())
    })
    .spoiled_by(move || change(id, 1, 1, 0)))
}

/// A child and its child have one list: it is undone when both have ended.
pub(crate) fn undo_shared(setting: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0014, 1)?;
    let set = [10_u16];
    control(id, 0, SETALL, set.as_ptr() as u64)?;
    let taker = setting.clone();
    let start = move || {
        Kin::start(&taker, "taker", move |setting| {
            change(id, 0, -2, SEM_UNDO)?;
            let mut other = Kin::start_with(setting, "other", libc::CLONE_SYSVSEM, move |_| {
                change(id, 0, -3, SEM_UNDO)?;
                Ok(Watch::new(|| Ok(())))
            })?;
            Ok(Watch::new(move || {
                other.check()?;
                end(other.pid)?;
                same("the value after the end of one", &5, &values::<1>(id)?[0])
            }))
        })
    };
    let mut child = start()?;
    Ok(Watch::new(move || {
        same("the value", &5, &values::<1>(id)?[0])?;
        child.check()?;
        end(child.pid)?;
        same("the value after the end of both", &10, &values::<1>(id)?[0])?;
        child = start()?;
        Ok(())
    })
    .spoiled_by(move || change(id, 0, 1, 0)))
}

/// Threads that share a list, and the first thread has not: what one of them has taken comes back when both have ended.
pub(crate) fn undo_of_others(_: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0015, 1)?;
    let set = [10_u16];
    control(id, 0, SETALL, set.as_ptr() as u64)?;
    let (mut older, mut younger) = pair(id)?;
    let is = move |value: u16| values::<1>(id).is_ok_and(|found| found == [value]);
    Ok(Watch::new(move || {
        same("the value", &[5], &values::<1>(id)?)?;
        older.end()?;
        std::thread::sleep(Duration::from_millis(30));
        same("when one has ended", &[5], &values::<1>(id)?)?;
        younger.end()?;
        until("both have ended", SOON, || is(10))?;
        (older, younger) = pair(id)?;
        Ok(())
    })
    .spoiled_by(move || change(id, 0, 1, 0)))
}

/// A thread that ends when it is told to.
struct Waits(Option<Sender<()>>, i32);

impl Waits {
    fn end(&mut self) -> Result<()> {
        drop(self.0.take());
        let task = format!("/proc/self/task/{}", self.1);
        until("the end of a thread", SOON, || {
            !std::fs::exists(&task).unwrap_or(true)
        })
    }
}

/// A thread that leaves its process's list, and one that it makes.
fn pair(id: i32) -> Result<(Waits, Waits)> {
    let (tell, told) = channel();
    let ((end, ended), (end_of_other, other_ended)) = (channel::<()>(), channel::<()>());
    std::thread::spawn(move || {
        let taken = nix::sched::unshare(nix::sched::CloneFlags::CLONE_SYSVSEM)
            .map_err(anyhow::Error::from)
            .and_then(|()| change(id, 0, -2, SEM_UNDO));
        let _ = tell.send((taken, tid()));
        std::thread::spawn(move || {
            let _ = tell.send((change(id, 0, -3, SEM_UNDO), tid()));
            let _ = other_ended.recv();
        });
        let _ = ended.recv();
    });
    let (taken, older) = told.recv()?;
    taken?;
    let (taken, younger) = told.recv()?;
    taken?;
    Ok((Waits(Some(end), older), Waits(Some(end_of_other), younger)))
}
