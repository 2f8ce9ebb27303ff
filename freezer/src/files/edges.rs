//! Which readiness an epoll has not told yet (`EPOLLET`, epoll(7)).
//!
//! An edge that was told must not be told again, one that was not must not be lost. The kernel keeps a
//! list of those to tell, and shows it to nobody: it is read from its memory. Where that cannot be, poll(2)
//! tells whether there are any, and an edge in doubt is told again.

use super::Table;
use crate::kernel::{self, Kernel, Unreadable, half, word};
use persist_mem::manifest::{DescriptionId, DescriptionKind, EpollTarget};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
/// Event bits that are no events: these two, `EPOLLWAKEUP` and `EPOLLEXCLUSIVE`.
const MODES: u32 = 0xf000_0000;
/// More entries than an epoll has by far, to end a list that leads nowhere.
const MOST: usize = 1 << 20;

/// For each entry of an epoll, which watches the description at the same place, whether it is to be told, and after how
/// many others.
pub(super) fn pending(
    table: &Table,
    epoll: DescriptionId,
    targets: &[EpollTarget],
    descriptions: &[DescriptionId],
) -> Vec<Option<u32>> {
    let Some(copy) = table.copies.get(&epoll) else {
        return in_order(vec![true; targets.len()]);
    };
    // What cannot be asked may be ready.
    if !descriptions.iter().any(|id| answers_differ(table, *id)) && !ready(copy.as_raw_fd(), 1) {
        return vec![None; targets.len()];
    }
    let files: Vec<Option<&OwnedFd>> = descriptions.iter().map(|id| table.copies.get(id)).collect();
    kernel::look(|kernel| listed(kernel, copy, targets, &files)).unwrap_or_else(|why| {
        log::debug!("edges of an epoll: {why}");
        in_order(polled(table, targets, descriptions))
    })
}

/// Places of those that are to be told, where their order is not known.
fn in_order(told: Vec<bool>) -> Vec<Option<u32>> {
    let numbered = (0..).zip(told);
    numbered.map(|(n, told)| told.then_some(n)).collect()
}

/// Whether poll(2) of it, or of an epoll that watches it, must be left to its holder. A signalfd tells
/// everybody of their own signals, a file of mounts tells once: an epoll that is asked by somebody else
/// takes them from the list of what is ready, and its holder waits for ever (fs/eventpoll.c,
/// `__ep_eventpoll_poll`). What another epoll watches may be either.
fn answers_differ(table: &Table, id: DescriptionId) -> bool {
    let placed = table.descriptions.get(id.0 as usize);
    let found = placed
        .filter(|d| d.id == id)
        .or_else(|| table.descriptions.iter().find(|d| d.id == id));
    found.is_some_and(|d| {
        matches!(
            d.kind,
            DescriptionKind::SignalFd { .. }
                | DescriptionKind::Epoll { .. }
                | DescriptionKind::Pseudo { .. }
        )
    })
}

fn ready(fd: i32, events: u32) -> bool {
    !sys::epoll::polled(fd, events as i16).is_ok_and(|found| found == 0)
}

/// By the kernel's list (fs/eventpoll.c, `struct eventpoll`).
fn listed(
    kernel: &mut Kernel,
    epoll: &OwnedFd,
    targets: &[EpollTarget],
    files: &[Option<&OwnedFd>],
) -> Result<Vec<Option<u32>>, Unreadable> {
    let list: HashMap<(u64, i32), u32> = list(kernel, epoll)?.into_iter().zip(0..).collect();
    let mut pending = Vec::new();
    for (target, file) in targets.iter().zip(files) {
        let file = match file {
            Some(file) => kernel.own_file(file.as_fd())?,
            None => return Err(Unreadable::Inconsistent("an epoll")),
        };
        pending.push(list.get(&(file, target.fd)).copied());
    }
    Ok(pending)
}

/// `struct file` and number of every entry that is to be told, in that order.
fn list(kernel: &mut Kernel, epoll: &OwnedFd) -> Result<Vec<(u64, i32)>, Unreadable> {
    const WRONG: Unreadable = Unreadable::Inconsistent("the list of an epoll");
    let btf = kernel.btf();
    let field = |structure, path| Ok(btf.field(structure, path)?.offset);
    let (private, head) = (
        field("file", "private_data")?,
        field("eventpoll", "rdllist")?,
    );
    let link = field("epitem", "rdllink")?;
    let (file, number) = (field("epitem", "ffd.file")?, field("epitem", "ffd.fd")?);
    let (owner, len) = (field("epitem", "ep")?, btf.size_of("epitem")?);
    let own = kernel.own_file(epoll.as_fd())?;
    let eventpoll = kernel.word(own.wrapping_add(private), "an epoll")?;
    let head = eventpoll.wrapping_add(head);
    let mut next = kernel.word(head, "the list of an epoll")?;
    let mut found = Vec::new();
    while next != head {
        let item = next.wrapping_sub(link);
        let bytes = kernel.read(&[(item, len as usize)])?.pop().flatten();
        let bytes = bytes.ok_or(WRONG)?;
        if word(&bytes, owner) != Some(eventpoll) || found.len() == MOST {
            return Err(WRONG);
        }
        let fd = half(&bytes, number).ok_or(WRONG)?.cast_signed();
        found.push((word(&bytes, file).ok_or(WRONG)?, fd));
        next = word(&bytes, link).ok_or(WRONG)?;
    }
    Ok(found)
}

/// As far as poll(2) tells without taking them: when something else is ready as well, all edges are in
/// doubt.
fn polled(table: &Table, targets: &[EpollTarget], descriptions: &[DescriptionId]) -> Vec<bool> {
    let ready_now = |(target, id): (&EpollTarget, &DescriptionId)| {
        let copy = table.copies.get(id).filter(|_| !answers_differ(table, *id));
        target.events & !MODES != 0
            && copy.is_none_or(|copy| ready(copy.as_raw_fd(), target.events))
    };
    let now: Vec<bool> = targets.iter().zip(descriptions).map(ready_now).collect();
    let edge = |target: &EpollTarget| target.events & (EPOLLET | EPOLLONESHOT) == EPOLLET;
    let count = now.iter().filter(|now| **now).count();
    let others = targets
        .iter()
        .zip(&now)
        .any(|(target, now)| *now && !edge(target));
    if !others && count == 1 {
        return now;
    }
    targets.iter().map(edge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    #[test]
    fn what_is_to_be_told_is_on_the_list() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let pipes = [(); 3].map(|()| nix::unistd::pipe().unwrap());
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for (reader, _) in &pipes {
            epoll.add(reader, EpollEvent::new(edge, 0)).unwrap();
        }
        nix::unistd::write(&pipes[0].1, b"x").unwrap();
        let mut told = [EpollEvent::empty(); 3];
        assert_eq!(epoll.wait(&mut told, EpollTimeout::ZERO), Ok(1));
        nix::unistd::write(&pipes[1].1, b"x").unwrap();
        let found = kernel::look(|kernel| {
            let listed = list(kernel, &epoll.0)?;
            let second = kernel.own_file(pipes[1].0.as_fd())?;
            Ok((listed, (second, pipes[1].0.as_raw_fd())))
        });
        if let Some((listed, second)) = kernel::readable(found) {
            assert_eq!(listed, [second]);
        }
    }
}
