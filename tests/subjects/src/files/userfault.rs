//! userfaultfd(2)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::spawn;

use anyhow::{Result, ensure};
use libc::{MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::files::{close, fcntl, ready};
use crate::kit::net::{pair, receive_descriptor, send_descriptor};
use crate::kit::procfs::vm_flags;
use crate::kit::{Area, Kin, PAGE, SOON, Setting, Watch, args, not_here, raw, same, sys, until};

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const MISSING: u64 = 1;
const WRITES: u64 = 2;
/// `UFFD_PAGEFAULT_FLAG_WP`
const IS_WRITE: u64 = 2;
const PAGES: usize = 32;
/// Pages that are answered with the page of zeros, and with a page that has only zeros.
const ZERO: usize = 2;
const ZEROS: usize = 3;

/// Makes one that knows the feature of exact addresses, as no program asks for by default.
fn make() -> Result<i32> {
    let made = raw(libc::SYS_userfaultfd, args([libc::O_CLOEXEC as u64]));
    if [-libc::ENOSYS, -libc::EPERM].contains(&(made as i32)) {
        return not_here("no userfaultfd");
    }
    let fd = sys("userfaultfd", made)? as i32;
    let exact = 1 << 11;
    ioctl(fd, UFFDIO_API, &mut [UFFD_API, exact, 0])?;
    Ok(fd)
}

fn ioctl(fd: i32, request: u64, argument: &mut [u64]) -> Result<()> {
    let made = raw(
        libc::SYS_ioctl,
        args([fd as u64, request, argument.as_mut_ptr() as u64]),
    );
    sys("an ioctl of userfaultfd", made).map(drop)
}

fn register(fd: i32, area: Area, modes: u64) -> Result<()> {
    let (start, len) = (area.page(0) as u64, (area.pages() * PAGE) as u64);
    ioctl(fd, UFFDIO_REGISTER, &mut [start, len, modes, 0])
}

fn protect(fd: i32, at: u64, on: bool) -> Result<()> {
    ioctl(fd, UFFDIO_WRITEPROTECT, &mut [at, PAGE as u64, on.into()])
}

/// How often each page was asked for, missing and written to.
#[derive(Default)]
struct Asked {
    missing: [AtomicU64; PAGES],
    writes: [AtomicU64; PAGES],
}

impl Asked {
    fn counts(&self) -> (Vec<u64>, Vec<u64>) {
        let of = |all: &[AtomicU64]| all.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        (of(&self.missing), of(&self.writes))
    }
}

/// The words that a page is answered with.
fn content(page: usize) -> [u64; PAGE / 8] {
    match page {
        ZEROS => [0; PAGE / 8],
        page => [page as u64 + 1000; PAGE / 8],
    }
}

/// Answers faults of an area for ever.
fn answer(fd: i32, base: u64, asked: Arc<Asked>) {
    spawn(move || {
        let mut message = [0_u64; 4];
        loop {
            let got = raw(
                libc::SYS_read,
                args([fd as u64, message.as_mut_ptr() as u64, 32]),
            );
            if got != 32 {
                return;
            }
            // struct uffd_msg: event, flags, address.
            let (flags, address) = (message[1], message[2] & !(PAGE as u64 - 1));
            let page = (address - base) as usize / PAGE;
            let done = if flags & IS_WRITE != 0 {
                asked.writes[page].fetch_add(1, Ordering::SeqCst);
                protect(fd, address, false)
            } else {
                asked.missing[page].fetch_add(1, Ordering::SeqCst);
                give(fd, address, page)
            };
            // An answer that comes twice fails, and shows in the counts.
            drop(done);
        }
    });
}

fn give(fd: i32, address: u64, page: usize) -> Result<()> {
    let len = PAGE as u64;
    match page {
        ZERO => ioctl(fd, UFFDIO_ZEROPAGE, &mut [address, len, 0, 0]),
        page => {
            let from = content(page);
            let from = from.as_ptr() as u64;
            ioctl(fd, UFFDIO_COPY, &mut [address, from, len, 0, 0])
        }
    }
}

fn look(area: Area, page: usize) -> Result<()> {
    let expected = if page == ZERO { 0 } else { content(page)[0] };
    same(
        &format!("page {page}"),
        &[expected; 2],
        &[area.get(page, 0), area.get(page, PAGE / 8 - 1)],
    )
}

/// Looks at all pages that were looked at before, which are not asked for again, and at one more.
fn watch(area: Area, asked: Arc<Asked>) -> Result<Watch> {
    let mut next = 5;
    // Every other one, so that pages between them stay away.
    (0..next)
        .map(|page| page * 2)
        .chain([ZEROS])
        .try_for_each(|page| look(area, page))?;
    let flags = vm_flags(area.page(0))?;
    let mut expected = asked.counts();
    let spoiled = asked.clone();
    Ok(Watch::new(move || {
        (0..next)
            .map(|page| page * 2)
            .chain([ZEROS])
            .try_for_each(|page| look(area, page))?;
        same("who was asked", &expected, &asked.counts())?;
        look(area, next * 2)?;
        expected.0[next * 2] += 1;
        next += 1;
        same("who was asked", &expected, &asked.counts())?;
        same("flags", &flags, &vm_flags(area.page(0))?)
    })
    .spoiled_by(move || {
        spoiled.missing[1].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// Private and shared memory that a thread hands out.
pub(crate) fn missing(_: &Setting) -> Result<Watch> {
    let mut all = Vec::new();
    let shared = Area::map(
        PAGES,
        PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_ANONYMOUS,
        -1,
    )?;
    for area in [Area::anonymous(PAGES)?, shared] {
        let fd = make()?;
        register(fd, area, MISSING)?;
        let asked = Arc::new(Asked::default());
        answer(fd, area.page(0) as u64, asked.clone());
        all.push(watch(area, asked)?);
    }
    let last = all.pop();
    let both = last.into_iter().chain(all).reduce(Watch::and);
    both.ok_or_else(|| anyhow::anyhow!("no area"))
}

/// Writes to a part of memory that a thread is told of.
pub(crate) fn writes(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    area.fill(5);
    let fd = make()?;
    // The middle, so that its neighbours are parts of one mapping otherwise.
    let part = area.part(8, 22);
    register(fd, part, WRITES)?;
    (0..16).try_for_each(|page| protect(fd, part.page(page) as u64, true))?;
    let asked = Arc::new(Asked::default());
    answer(fd, area.page(0) as u64, asked.clone());
    let mut next = 0;
    let mut expected = asked.counts();
    let spoiled = asked.clone();
    Ok(Watch::new(move || {
        area.check(5)?;
        area.fill_page(28, 5);
        same("who was asked", &expected, &asked.counts())?;
        area.fill_page(8 + next, 5);
        expected.1[8 + next] += 1;
        next += 1;
        same("who was asked", &expected, &asked.counts())
    })
    .spoiled_by(move || {
        spoiled.writes[1].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// A thread that waits for a page which nobody has handed out yet, while others are handed out.
pub(crate) fn waiting(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    let fd = make()?;
    // Only so it may be polled.
    fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK)?;
    register(fd, area, MISSING)?;
    let told = move || ready(fd, libc::POLLIN).is_ok_and(|found| found == libc::POLLIN);
    let found = Arc::new(AtomicU64::new(0));
    let store = found.clone();
    spawn(move || store.store(area.get(7, 3), Ordering::SeqCst));
    until("a fault is told", SOON, told)?;
    let silent = found.clone();
    let answered = found.clone();
    Ok(Watch::new(move || {
        same("what it has found", &0, &silent.load(Ordering::SeqCst))?;
        until("the fault is told", SOON, told)
    })
    .spoiled_by(move || {
        give(fd, area.page(7) as u64, 7)?;
        until("it goes on", SOON, || answered.load(Ordering::SeqCst) != 0)
    }))
}

/// A child's memory that its parent hands out, which alone has the descriptor; and one that was not set up yet.
pub(crate) fn of_child(setting: &Setting) -> Result<Watch> {
    let idle = raw(libc::SYS_userfaultfd, args([0]));
    if idle < 0 {
        return not_here("no userfaultfd");
    }
    let area = Area::anonymous(PAGES)?;
    let [mine, theirs] = pair(libc::SOCK_STREAM)?;
    let mut child = Kin::start(setting, "child", |_| {
        let fd = make()?;
        register(fd, area, MISSING)?;
        send_descriptor(theirs, fd)?;
        [fd, mine, theirs].into_iter().for_each(close);
        let mut next = 0;
        Ok(Watch::new(move || {
            next += 1;
            (0..=next).try_for_each(|page| look(area, page * 2))
        }))
    })?;
    let fd = receive_descriptor(mine)?;
    [mine, theirs].into_iter().for_each(close);
    let asked = Arc::new(Asked::default());
    answer(fd, area.page(0) as u64, asked.clone());
    let spoiled = asked.clone();
    let own = Watch::new(move || {
        child.check()?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{idle}"))?;
        ensure!(info.contains("API:\taa:0:"), "it is set up: {info}");
        let (missing, _) = asked.counts();
        ensure!(missing.iter().all(|n| *n <= 1), "asked twice: {missing:?}");
        // Nobody else answers for memory of this process.
        same("its own", &0, &area.get(1, 0))
    });
    Ok(own.spoiled_by(move || {
        spoiled.missing[1].fetch_add(2, Ordering::SeqCst);
        Ok(())
    }))
}
