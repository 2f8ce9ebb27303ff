//! io_setup(2)

use std::fs;

use anyhow::Result;

use crate::kit::files::open;
use crate::kit::{
    Kin, SOON, Setting, TERM, Watch, args, blocked, fork, not_here, raw, same, sys, timed, until,
};

/// A context in which reads can be made.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, "contents")?;
    let file = open(&path, libc::O_RDONLY)?;
    let mut context = 0_u64;
    if raw(libc::SYS_io_setup, args([16, &raw mut context as u64])) != 0 {
        return not_here("no AIO");
    }
    Ok(Watch::new(move || {
        let mut bytes = [0_u8; 8];
        // struct iocb: data, key, opcode (IOCB_CMD_PREAD 0), descriptor, buffer, length, offset.
        let mut block = [0_u64; 8];
        block[0] = 0x1234;
        block[2] = (file as u64) << 32;
        block[3] = bytes.as_mut_ptr() as u64;
        block[4] = 8;
        let blocks = [block.as_mut_ptr() as u64];
        let done = raw(
            libc::SYS_io_submit,
            args([context, 1, blocks.as_ptr() as u64]),
        );
        same("submitted", &1, &done)?;
        let mut event = [0_u64; 4];
        let done = raw(
            libc::SYS_io_getevents,
            args([context, 1, 1, event.as_mut_ptr() as u64]),
        );
        same("events", &1, &done)?;
        same("data and result", &(0x1234, 8), &(event[0], event[2]))?;
        same("the bytes", b"contents", &bytes)
    })
    .spoiled_by(move || sys("io_destroy", raw(libc::SYS_io_destroy, args([context]))).map(drop)))
}

/// A child forked since sees the bytes of the ring and has no context; its parent has.
pub(crate) fn inherited(setting: &Setting) -> Result<Watch> {
    let mut context = 0_u64;
    if raw(libc::SYS_io_setup, args([16, &raw mut context as u64])) != 0 {
        return not_here("no AIO");
    }
    let events = move || {
        let mut event = [0_u64; 4];
        let list = event.as_mut_ptr() as u64;
        let none = [0_u64; 2];
        let arguments = [context, 0, 1, list, none.as_ptr() as u64];
        raw(libc::SYS_io_getevents, args(arguments))
    };
    // struct aio_ring: id, room, head, tail, magic.
    // SAFETY: the ring is mapped in the parent and in the child.
    let magic = move || unsafe { std::ptr::read_volatile((context as *const u32).add(4)) };
    let looks = fork(|| {
        let _ = magic();
    })?;
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    sys("waitpid", unsafe {
        libc::waitpid(looks, &raw mut status, 0)
    })?;
    if status != 0 {
        return not_here("children have no rings of their parents");
    }
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            same("the ring's magic", &0xa10a_10a1, &magic())?;
            same("io_getevents", &i64::from(-libc::EINVAL), &events())
        }))
    })?;
    Ok(Watch::new(move || {
        same("events of the parent", &0, &events())?;
        child.check()
    })
    .spoiled_by(move || sys("io_destroy", raw(libc::SYS_io_destroy, args([context]))).map(drop)))
}

/// A request waits for a pipe, and somebody waits for the request.
pub(crate) fn poll(_: &Setting) -> Result<Watch> {
    const CMD_POLL: u64 = 5;
    const RESFD: u64 = 1;
    let mut ends = [0; 2];
    // SAFETY: the array takes two descriptors.
    sys("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    // SAFETY: takes numbers.
    let told = crate::kit::fd("eventfd", unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })?;
    let mut context = 0_u64;
    if raw(libc::SYS_io_setup, args([16, &raw mut context as u64])) != 0 {
        return not_here("no AIO");
    }
    let [read, write] = ends;
    let block: &'static mut [u64; 8] = Box::leak(Box::new([0; 8]));
    let at = block.as_mut_ptr() as u64;
    let submit = move |block: &mut [u64; 8]| {
        *block = [0; 8];
        block[0] = 0x5678;
        block[2] = CMD_POLL | (read as u64) << 32;
        block[3] = libc::POLLIN as u64;
        block[7] = RESFD | (told as u64) << 32;
        // Derived here: the call reads what this reference was written through.
        let blocks = [block.as_mut_ptr() as u64];
        let list = blocks.as_ptr() as u64;
        let done = raw(libc::SYS_io_submit, args([context, 1, list]));
        // The program may use it for something else as soon as the request is made.
        *block = [0xabcd; 8];
        done
    };
    same("submitted", &1, &submit(block))?;
    let wait = move || {
        let mut event = [0_u64; 4];
        let list = event.as_mut_ptr() as u64;
        let done = raw(libc::SYS_io_getevents, args([context, 1, 1, list]));
        // The kernel may tell of more than was asked for.
        event[2] &= libc::POLLIN as u64;
        let expected = [0x5678, at, libc::POLLIN as u64, 0];
        let kept = *block == [0xabcd; 8];
        if done == 1 && event == expected && kept {
            let mut byte = 0_u8;
            raw(libc::SYS_read, args([read as u64, &raw mut byte as u64, 1]));
            submit(block)
        } else {
            -1000 - done
        }
    };
    blocked(libc::SYS_io_getevents, wait, 1, move || {
        let byte = 7_u8;
        let from = &raw const byte as u64;
        sys("write", raw(libc::SYS_write, args([write as u64, from, 1])))?;
        let mut count = 0_u64;
        until("the eventfd is told", SOON, || {
            raw(
                libc::SYS_read,
                args([told as u64, &raw mut count as u64, 8]),
            ) == 8
        })?;
        same("told", &1, &count)
    })
}

/// Requests that wait for two pipes, something in the first of which has been told of, and a wait for both.
struct Both {
    context: u64,
    ends: [[i32; 2]; 2],
    blocks: &'static mut [[u64; 8]; 2],
}

impl Both {
    fn new() -> Result<Option<Both>> {
        let mut ends = [[0; 2]; 2];
        for pair in &mut ends {
            // SAFETY: the array takes two descriptors.
            sys("pipe", unsafe { libc::pipe(pair.as_mut_ptr()) })?;
        }
        let mut context = 0_u64;
        let made = raw(libc::SYS_io_setup, args([16, &raw mut context as u64])) == 0;
        Ok(made.then(|| Both {
            context,
            ends,
            blocks: Box::leak(Box::default()),
        }))
    }

    /// Waits for both, for at most so long.
    fn wait(&mut self, number: i64, time: Option<[u64; 2]>) -> i64 {
        const CMD_POLL: u64 = 5;
        let byte = 7_u8;
        let (from, first) = (&raw const byte as u64, self.ends[0][1] as u64);
        raw(libc::SYS_write, args([first, from, 1]));
        for ((block, [read, _]), data) in self.blocks.iter_mut().zip(self.ends).zip(1..) {
            *block = [0; 8];
            block[0] = data;
            block[2] = CMD_POLL | (read as u64) << 32;
            block[3] = libc::POLLIN as u64;
        }
        let blocks = self
            .blocks
            .each_mut()
            .map(|block| block.as_mut_ptr() as u64);
        let list = blocks.as_ptr() as u64;
        if raw(libc::SYS_io_submit, args([self.context, 2, list])) != 2 {
            return -1000;
        }
        let mut events = [[0_u64; 4]; 4];
        let at = events.as_mut_ptr() as u64;
        let time = time.as_ref().map_or(0, |time| time.as_ptr() as u64);
        let result = raw(number, args([self.context, 2, 4, at, time]));
        let told: Vec<u64> = events.iter().map(|event| event[0]).collect();
        match (result, &told[..2]) {
            (2, [1, 2]) | (1, [1, 0]) => result,
            _ => -2000 - result,
        }
    }

    /// Makes the pipes empty.
    fn clear(&self) {
        let mut byte = 0_u8;
        let at = &raw mut byte as u64;
        for [read, _] in self.ends {
            raw(libc::SYS_read, args([read as u64, at, 1]));
        }
    }

    /// Has the other request done as well, and told of.
    fn finish(&self) {
        let byte = 7_u8;
        let (from, other) = (&raw const byte as u64, self.ends[1][1] as u64);
        raw(libc::SYS_write, args([other, from, 1]));
        let mut event = [0_u64; 4];
        let at = event.as_mut_ptr() as u64;
        raw(libc::SYS_io_getevents, args([self.context, 1, 1, at]));
    }
}

/// A wait for two requests when one is done.
fn one_of_two(number: i64) -> Result<Watch> {
    let Some(mut both) = Both::new()? else {
        return not_here("no AIO");
    };
    let [_, [_, write]] = both.ends;
    blocked(
        number,
        move || {
            let result = both.wait(number, None);
            both.clear();
            result
        },
        2,
        move || {
            let byte = 7_u8;
            let from = &raw const byte as u64;
            sys("write", raw(libc::SYS_write, args([write as u64, from, 1]))).map(drop)
        },
    )
}

/// io_getevents
pub(crate) fn getevents_part(_: &Setting) -> Result<Watch> {
    one_of_two(libc::SYS_io_getevents)
}

/// io_pgetevents, which the library does not name.
const PGETEVENTS: i64 = 333;

/// The same.
pub(crate) fn pgetevents_part(_: &Setting) -> Result<Watch> {
    one_of_two(PGETEVENTS)
}

/// The same with a time-out, which ends it.
pub(crate) fn getevents_timed_part(_: &Setting) -> Result<Watch> {
    let Some(mut both) = Both::new()? else {
        return not_here("no AIO");
    };
    let number = libc::SYS_io_getevents;
    timed(
        number,
        move || {
            let time = [TERM.as_secs(), TERM.subsec_nanos().into()];
            let result = both.wait(number, Some(time));
            both.finish();
            both.clear();
            result
        },
        1,
    )
}
