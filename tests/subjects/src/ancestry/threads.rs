//! Children of threads that are not the first of their process.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, spawn};

use anyhow::{Context, Result, anyhow, bail};

use crate::kit::{SOON, Setting, Watch, same, sys, tid, until};

/// A thread and its child, which is killed when the thread ends.
struct Pair {
    thread: JoinHandle<()>,
    end: Sender<()>,
    tid: i32,
    child: i32,
}

impl Pair {
    fn make() -> Result<Self> {
        let (end, ends) = channel();
        let (tell, told) = channel();
        let (mut ready, asked) = std::io::pipe()?;
        let thread = spawn(move || {
            // SAFETY: the child makes system calls only.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: takes numbers, and a byte that is alive.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::write(asked.as_raw_fd(), c"r".as_ptr().cast(), 1);
                    libc::close(asked.as_raw_fd());
                    loop {
                        libc::pause();
                    }
                }
            }
            drop(asked);
            let _ = tell.send((tid(), child));
            let _ = ends.recv();
        });
        let (tid, child) = told.recv_timeout(SOON).context("a thread is silent")?;
        sys("fork", child)?;
        ready.read_exact(&mut [0]).context("the child is silent")?;
        Ok(Self {
            thread,
            end,
            tid,
            child,
        })
    }

    /// The thread is its parent, and its end is that of the child.
    fn check(self) -> Result<()> {
        let list = fs::read_to_string(format!("/proc/self/task/{}/children", self.tid))?;
        same(
            "its children",
            &self.child.to_string(),
            &list.trim().to_owned(),
        )?;
        same("the child's end", &None, &ended(self.child)?)?;
        let child = self.child;
        self.end()?;
        let mut status = None;
        until("the child is killed with its parent", SOON, || {
            status = ended(child).unwrap_or(Some(-1));
            status.is_some()
        })?;
        same("the status of the child", &Some(libc::SIGKILL), &status)
    }

    fn end(self) -> Result<()> {
        let _ = self.end.send(());
        self.thread
            .join()
            .map_err(|_| anyhow!("a thread has panicked"))
    }
}

/// The status of a child that has ended.
fn ended(child: i32) -> Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: reaps a child of ours.
    match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        done if done == child => Ok(Some(status)),
        _ => bail!("it is no child: {}", std::io::Error::last_os_error()),
    }
}

/// One pair that stays, and one that is ended and made anew at every check.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut spare = Some(Pair::make()?);
    let kept = Pair::make()?;
    let path = format!("/proc/self/task/{}/children", kept.tid);
    let mut kept = Some(kept);
    let list = Watch::keep(move || Ok(fs::read_to_string(&path)?))?;
    Ok(list
        .spoiled_by(move || kept.take().map_or(Ok(()), Pair::end))
        .and(Watch::new(move || {
            spare.take().context("there is no spare pair")?.check()?;
            spare = Some(Pair::make()?);
            Ok(())
        })))
}
