//! Calls of i386 (`int $0x80`), whose numbers are others.

use std::arch::asm;

use anyhow::Result;
use libc::{MAP_32BIT, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use super::polling::{pipe, pull, push};
use crate::kit::{Area, Setting, TERM, Watch, blocked, fd, sys, timed};

/// arch/x86/entry/syscalls/syscall_32.tbl
const READ: i64 = 3;
const NANOSLEEP: i64 = 162;
const EPOLL_WAIT: i64 = 256;
const FOREVER: u64 = 0xffff_ffff;

/// Makes a call: its result, or the negative error number.
fn call(number: i64, [first, second, third, fourth]: [u64; 4]) -> i64 {
    let result: i64;
    // SAFETY: the callers pass what the call expects. rbx is the compiler's.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inlateout("rax") number => result,
            in("rcx") second, in("rdx") third, in("rsi") fourth,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    i64::from(result as i32)
}

/// A page that such calls reach.
fn page() -> Result<Area> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
    Area::map(1, PROT_READ | PROT_WRITE, flags, -1)
}

/// read, whose number is that of close.
pub(crate) fn read(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    let page = page()?;
    blocked(
        READ,
        move || {
            page.put(0, 0, 0);
            let result = call(READ, [read as u64, page.page(0) as u64, 1, 0]);
            result * 1000 + page.get(0, 0) as i64
        },
        1000 + i64::from(b'x'),
        move || push(write),
    )
}

/// epoll_wait, which a stop makes fail.
pub(crate) fn epoll(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    let page = page()?;
    // SAFETY: the event lives through the call.
    let epoll = unsafe {
        let epoll = fd("epoll_create1", libc::epoll_create1(0))?;
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0x77,
        };
        let done = libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, read, &raw mut event);
        sys("epoll_ctl", done)?;
        epoll
    };
    blocked(
        EPOLL_WAIT,
        move || {
            let at = page.page(0) as u64;
            let result = call(EPOLL_WAIT, [epoll as u64, at, 1, FOREVER]);
            result * 10 + pull(read)
        },
        11,
        move || push(write),
    )
}

/// nanosleep
pub(crate) fn sleep(_: &Setting) -> Result<Watch> {
    let page = page()?;
    timed(
        NANOSLEEP,
        move || {
            page.put(0, 0, TERM.as_secs() | u64::from(TERM.subsec_nanos()) << 32);
            call(NANOSLEEP, [page.page(0) as u64, 0, 0, 0])
        },
        0,
    )
}
