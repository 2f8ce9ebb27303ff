//! Requests that wait for futexes, a child and an epoll, which Linux has since 6.7 and 6.15.

use std::cell::Cell;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use super::ring::{EPOLL_WAIT, Entry, FUTEX_WAIT, FUTEX_WAITV, Ring, WAITID};
use crate::kit::{Setting, Watch, args, files, not_here, raw, same, sys};

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`, and without the latter.
const PRIVATE: u32 = 2 | 128;
const SHARED: u32 = 2;

/// A ring whose kernel knows a kind of request.
fn ring_for(opcode: u8) -> Result<Ring> {
    /// `IORING_REGISTER_PROBE`, `IO_URING_OP_SUPPORTED`
    const PROBE: u64 = 8;
    let ring = Ring::new(8, 16, 0)?;
    // struct io_uring_probe: the last kind, how many follow, and for each its flags.
    let mut probe = [0_u64; 258];
    ring.register(PROBE, probe.as_mut_ptr() as u64, 256)?;
    let flags = (probe[2 + usize::from(opcode)] >> 16) as u16;
    match flags & 1 {
        0 => not_here("requests of io_uring of this kind"),
        _ => Ok(ring),
    }
}

fn word() -> &'static AtomicU32 {
    Box::leak(Box::new(AtomicU32::new(7)))
}

fn wake(word: &AtomicU32, mask: u32) -> Result<()> {
    /// `FUTEX_WAKE_BITSET`
    const WAKE: u64 = 10;
    let args = args([word.as_ptr() as u64, WAKE, 1, 0, 0, mask.into()]);
    same("woken", &1, &sys("futex", raw(libc::SYS_futex, args))?)
}

/// A wait for a futex whose value is another one by now, by one of its bits; and one for one of two futexes.
pub(crate) fn futexes(_: &Setting) -> Result<Watch> {
    let ring = ring_for(FUTEX_WAITV)?;
    let (own, first, second) = (word(), word(), word());
    let begin = move || {
        own.store(7, Ordering::SeqCst);
        ring.add(Entry {
            opcode: FUTEX_WAIT,
            fd: SHARED as i32,
            address: own.as_ptr() as u64,
            offset: 7,
            third: 0b10,
            data: 1,
            ..Entry::default()
        });
        let mut all = [
            [7, first.as_ptr() as u64, 2],
            [7, second.as_ptr() as u64, PRIVATE.into()],
        ];
        all[0][2] = SHARED.into();
        ring.add(Entry {
            opcode: FUTEX_WAITV,
            address: all.as_ptr() as u64,
            len: 2,
            data: 2,
            ..Entry::default()
        });
        ring.submit(2)?;
        own.store(8, Ordering::SeqCst);
        // It has been read.
        all = [[0; 3]; 2];
        std::hint::black_box(&all);
        anyhow::Ok(())
    };
    begin()?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        let args = args([own.as_ptr() as u64, 10, 1, 0, 0, 1]);
        same("another bit", &0, &raw(libc::SYS_futex, args))?;
        wake(own, 0b10)?;
        same("woken", &vec![(1, 0)], &ring.wait(1)?)?;
        wake_private(second)?;
        same("the second of two", &vec![(2, 1)], &ring.wait(1)?)?;
        begin()
    })
    .spoiled_by(move || wake(own, 0b10)))
}

fn wake_private(word: &AtomicU32) -> Result<()> {
    /// `FUTEX_WAKE_PRIVATE`
    const WAKE: u64 = 1 | 128;
    let args = args([word.as_ptr() as u64, WAKE, 1]);
    same("woken", &1, &sys("futex", raw(libc::SYS_futex, args))?)
}

/// A request that waits for the end of a child.
pub(crate) fn child(_: &Setting) -> Result<Watch> {
    let ring = ring_for(WAITID)?;
    let told = Box::leak(Box::new([0_u32; 32])).as_mut_ptr();
    let begin = move || {
        let child = std::process::Command::new("sleep").arg("1000000").spawn()?;
        ring.add(Entry {
            opcode: WAITID,
            fd: child.id() as i32,
            // `P_PID`
            len: 1,
            file_index: libc::WEXITED as u32,
            offset: told as u64,
            data: 3,
            ..Entry::default()
        });
        ring.submit(1)?;
        anyhow::Ok(child.id() as i32)
    };
    let child = Rc::new(Cell::new(begin()?));
    let spoiled = child.clone();
    let kill = |child: &Cell<i32>| {
        let child = nix::unistd::Pid::from_raw(child.get());
        nix::sys::signal::kill(child, nix::sys::signal::SIGKILL)
    };
    Ok(Watch::new(move || {
        ring.expect_none()?;
        kill(&child)?;
        same("its end", &vec![(3, 0)], &ring.wait(1)?)?;
        // SAFETY: the memory stays, and the kernel has written it.
        let info = unsafe { told.cast::<[i32; 32]>().read_volatile() };
        // struct siginfo: signal, error, code; process, user, status.
        let found = [info[0], info[2], info[4], info[6]];
        let expected = [libc::SIGCHLD, libc::CLD_KILLED, child.get(), libc::SIGKILL];
        same("who", &expected, &found)?;
        child.set(begin()?);
        Ok(())
    })
    .spoiled_by(move || {
        kill(&spoiled)?;
        ring.wait(1).map(drop)
    }))
}

/// A request that waits for an epoll.
pub(crate) fn epoll(_: &Setting) -> Result<Watch> {
    let ring = ring_for(EPOLL_WAIT)?;
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty())?;
    let (from, to) = nix::unistd::pipe()?;
    let events = nix::sys::epoll::EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, 77);
    epoll.add(&from, events)?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let number = epoll.0.as_raw_fd();
    let told = Box::leak(Box::new([0_u32; 3])).as_mut_ptr();
    let begin = move || {
        ring.add(Entry {
            opcode: EPOLL_WAIT,
            fd: number,
            address: told as u64,
            len: 1,
            data: 4,
            ..Entry::default()
        });
        ring.submit(1)
    };
    begin()?;
    Ok(Watch::new(move || {
        let _ = &epoll;
        ring.expect_none()?;
        files::write(to, b"x")?;
        same("an event", &vec![(4, 1)], &ring.wait(1)?)?;
        // SAFETY: the memory stays, and the kernel has written it.
        let event = unsafe { told.cast::<[u32; 3]>().read_volatile() };
        same("what", &[libc::EPOLLIN as u32, 77, 0], &event)?;
        same("read", &b"x".to_vec(), &files::read(from, 1)?)?;
        begin()
    })
    .spoiled_by(move || {
        files::write(to, b"x")?;
        match ring.wait(1)?.len() {
            1 => Ok(()),
            other => bail!("{other} events"),
        }
    }))
}
