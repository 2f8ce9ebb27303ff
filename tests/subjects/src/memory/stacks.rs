//! Mappings that have grown since a fork, and stacks that cannot shrink again.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use libc::{MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_READ};

use crate::kit::{Area, Kin, PAGE, Setting, Watch, fork, not_here, procfs, same};

const SYS_MSEAL: i64 = 462;

/// Pages that a child has in common with its parent.
const COMMON: usize = 64;

/// The lines of a process's maps from `from` to `to`.
fn lines(pid: &str, from: u64, to: u64) -> Result<Vec<String>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let within = |line: &&str| procfs::range(line).is_some_and(|(a, b)| a < to && from < b);
    Ok(maps.lines().filter(within).map(str::to_owned).collect())
}

fn stack() -> Result<(u64, u64)> {
    let maps = procfs::maps()?;
    let stack = maps.iter().find(|line| line.ends_with("[stack]"));
    stack
        .and_then(|line| procfs::range(line))
        .context("no stack")
}

/// Uses a page of the stack in each of `calls` calls.
#[inline(never)]
fn deep(calls: usize) -> u64 {
    let page = std::hint::black_box([calls as u64; PAGE / 8]);
    let below = if calls == 0 { 0 } else { deep(calls - 1) };
    below + std::hint::black_box(page)[calls % page.len()]
}

fn checked_by(child: Kin) -> Watch {
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let spoilt = child.clone();
    Watch::new(move || child.borrow_mut().check()).spoiled_by(move || spoilt.borrow().spoil())
}

/// The stack of a child that calls deeper than its parent did before the fork. It stays one mapping.
pub(crate) fn grown(setting: &Setting) -> Result<Watch> {
    const DEEP: usize = 300;
    let common = Area::anonymous(COMMON)?;
    common.fill(51);
    let child = Kin::start(setting, "child", move |_| {
        let (start, end) = stack()?;
        std::hint::black_box(deep(DEEP));
        let seen = move || lines("self", start - (2 * DEEP * PAGE) as u64, end);
        if seen()?
            .iter()
            .any(|line| line.starts_with(&format!("{start:x}-")))
        {
            bail!("the stack has not grown: {:?}", seen()?);
        }
        let (lowest, _) = seen()?
            .first()
            .and_then(|line| procfs::range(line))
            .context("no stack")?;
        let lowest = Area::at(lowest as *mut libc::c_void, 1);
        Ok(Watch::keep(seen)?
            .spoiled_by(move || lowest.protect(PROT_READ))
            .and(Watch::new(move || common.check(51))))
    })?;
    Ok(checked_by(child))
}

/// What mremap(2) has made longer stays one mapping.
pub(crate) fn longer(setting: &Setting) -> Result<Watch> {
    let room = Area::anonymous(2 * COMMON + 1)?;
    room.part(COMMON, COMMON + 1).unmap()?;
    Ok(checked_by(lengthened(setting, room)?))
}

/// The same of a private mapping of a file.
pub(crate) fn longer_file(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("longer");
    std::fs::write(&path, vec![0; 2 * COMMON * PAGE])?;
    let file = std::fs::File::open(&path)?;
    let prot = PROT_READ | libc::PROT_WRITE;
    let room = Area::map(2 * COMMON + 1, prot, MAP_PRIVATE, file.as_raw_fd())?;
    room.part(COMMON, COMMON + 1).unmap()?;
    Ok(checked_by(lengthened(setting, room)?))
}

/// The same where the parent has mapped something else right behind since.
pub(crate) fn longer_beside(setting: &Setting) -> Result<Watch> {
    let room = Area::anonymous(2 * COMMON + 1)?;
    room.part(COMMON, COMMON + 1).unmap()?;
    let child = lengthened(setting, room)?;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    let beside = Area::map_at(room.page(COMMON), COMMON / 2, PROT_READ, flags, -1, 0)?;
    let (start, end) = (room.page(0) as u64, room.page(2 * COMMON) as u64);
    let own = Watch::keep(move || lines("self", start, end))?;
    Ok(checked_by(child)
        .and(own)
        .and(Watch::new(move || beside.check_zero(0))))
}

/// A child that has made the first pages of `room`, which it has in common with its parent, longer.
fn lengthened(setting: &Setting, room: Area) -> Result<Kin> {
    let first = room.part(0, COMMON);
    first.fill(52);
    Kin::start(setting, "child", move |_| {
        let (old, new) = (COMMON * PAGE, 2 * COMMON * PAGE);
        // SAFETY: the range is a mapping of ours, and nothing is behind it.
        let at = unsafe { libc::mremap(first.page(0), old, new, 0) };
        if at != first.page(0) {
            return not_here("something lies behind");
        }
        let all = room.part(0, 2 * COMMON);
        all.fill_page(COMMON + 3, 52);
        let (start, end) = (all.page(0) as u64, all.page(0) as u64 + new as u64);
        Ok(Watch::keep(move || lines("self", start, end))?
            .spoiled_by(move || all.part(0, 3).protect(PROT_READ))
            .and(Watch::new(move || {
                all.check_page(7, 52)?;
                all.check_page(COMMON + 3, 52)?;
                all.check_zero(COMMON + 4)
            })))
    })
}

/// A child of a thread: no thread of its own is on its first stack.
pub(crate) fn of_nobody(_: &Setting) -> Result<Watch> {
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let child = fork(|| {
            loop {
                // SAFETY: pause takes nothing.
                unsafe { libc::pause() };
            }
        });
        let _ = told.send(child);
        loop {
            std::thread::park();
        }
    });
    let pid = answer.recv()??;
    let (start, end) = stack()?;
    Ok(
        Watch::keep(move || lines(&pid.to_string(), start - (64 * PAGE) as u64, end))?.spoiled_by(
            move || {
                // SAFETY: the child is ours.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                Ok(())
            },
        ),
    )
}

/// A stack that cannot be changed any more: what it grows by stays.
pub(crate) fn sealed(_: &Setting) -> Result<Watch> {
    let (start, end) = stack()?;
    let len = (end - start) as usize;
    // SAFETY: the stack stays what it is.
    if unsafe { libc::syscall(SYS_MSEAL, start, len, 0) } != 0 {
        return not_here("no mseal");
    }
    let lowest = Area::at(start as *mut libc::c_void, 1);
    Ok(
        Watch::keep(move || lines("self", start - (64 * PAGE) as u64, end))?
            .and(Watch::new(move || {
                let changed = lowest.protect(PROT_READ);
                same("mprotect is refused", &true, &changed.is_err())?;
                same("unmapping is refused", &true, &lowest.unmap().is_err())
            }))
            .spoiled_by(move || {
                let at = (start - PAGE as u64) as *mut libc::c_void;
                let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
                Area::map_at(at, 1, PROT_READ, flags, -1, 0).map(drop)
            }),
    )
}
