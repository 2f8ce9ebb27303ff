//! A stack within the first one, as coroutines have it: right below lies memory of use.

use std::cell::UnsafeCell;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use anyhow::Result;
use libc::ucontext_t;

use crate::kit::{Setting, Watch, fork, same};

/// Bytes of memory that must not change.
const BELOW: usize = 64 << 10;
/// Enough for a call of read(2).
const STACK: usize = 2 << 10;
const FILLED: u8 = 0x5a;
const COUNT: u8 = 1;
const SPOIL: u8 = 2;

/// The lower part comes first.
#[repr(C, align(64))]
struct Room {
    below: [u8; BELOW],
    stack: [u8; STACK],
}

static MAIN: AtomicPtr<ucontext_t> = AtomicPtr::new(std::ptr::null_mut());
static READER: AtomicPtr<ucontext_t> = AtomicPtr::new(std::ptr::null_mut());
static ASKED_AT: AtomicI32 = AtomicI32::new(-1);
static ASKED: AtomicI32 = AtomicI32::new(0);

/// Reads what is asked, on the small stack.
extern "C" fn reader() {
    loop {
        let mut asked = 0_u8;
        // SAFETY: one byte is read into `asked`; both contexts stay where they are.
        unsafe {
            let got = libc::read(ASKED_AT.load(Ordering::Relaxed), (&raw mut asked).cast(), 1);
            if got != 1 {
                libc::_exit(1);
            }
            ASKED.store(asked.into(), Ordering::Relaxed);
            libc::swapcontext(READER.load(Ordering::Relaxed), MAIN.load(Ordering::Relaxed));
        }
    }
}

/// Answers how many bytes of the memory below the small stack are not what they were.
fn serve(mut asks: UnixStream) {
    let room = UnsafeCell::new(Room {
        below: [FILLED; BELOW],
        stack: [0; STACK],
    });
    // SAFETY: all zeros is a context that getcontext(3) fills in.
    let (main, small): (UnsafeCell<ucontext_t>, UnsafeCell<ucontext_t>) =
        unsafe { std::mem::zeroed() };
    MAIN.store(main.get(), Ordering::Relaxed);
    READER.store(small.get(), Ordering::Relaxed);
    ASKED_AT.store(asks.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: contexts and stack live as long as this function, which does not return before the end.
    unsafe {
        let context = small.get();
        if libc::getcontext(context) != 0 {
            return;
        }
        (*context).uc_stack.ss_sp = (&raw mut (*room.get()).stack).cast();
        (*context).uc_stack.ss_size = STACK;
        libc::makecontext(context, reader, 0);
    }
    loop {
        // SAFETY: as above.
        if unsafe { libc::swapcontext(main.get(), small.get()) } != 0 {
            return;
        }
        // SAFETY: nobody else has a reference; the other stack is not `below`.
        let below = unsafe { &mut (*room.get()).below };
        if ASKED.load(Ordering::Relaxed) == SPOIL.into() {
            below[BELOW - 100] = 0;
        }
        let changed = below.iter().filter(|byte| **byte != FILLED).count() as u64;
        if asks.write_all(&changed.to_le_bytes()).is_err() {
            return;
        }
    }
}

fn ask(asks: &mut UnixStream, what: u8) -> Result<u64> {
    let mut answer = [0; 8];
    asks.write_all(&[what])?;
    asks.read_exact(&mut answer)?;
    Ok(u64::from_le_bytes(answer))
}

pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let (mut asks, theirs) = UnixStream::pair()?;
    let mut spoils = asks.try_clone()?;
    fork(move || serve(theirs))?;
    same("bytes below that have changed", &0, &ask(&mut asks, COUNT)?)?;
    Ok(
        Watch::new(move || same("bytes below that have changed", &0, &ask(&mut asks, COUNT)?))
            .spoiled_by(move || ask(&mut spoils, SPOIL).map(drop)),
    )
}
