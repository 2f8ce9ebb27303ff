//! What is registered with a ring.

use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

use anyhow::Result;

use super::ring::{Entry, FIXED_FILE, READ, READ_FIXED, Ring, WRITE_FIXED};
use crate::kit::{Setting, Watch, args, files, procfs, raw, same, sys};

// `IORING_REGISTER_*`
const BUFFERS: u64 = 0;
const FILES: u64 = 2;
const UNREGISTER_FILES: u64 = 3;
const EVENTFD: u64 = 4;
const EVENTFD_ASYNC: u64 = 7;
const UNREGISTER_BUFFERS: u64 = 1;
const CLONE_BUFFERS: u64 = 30;

/// Three places: a file, none, a pipe.
pub(crate) fn files(setting: &Setting) -> Result<Watch> {
    let ring = Ring::new(8, 16, 0)?;
    let path = setting.fresh("file");
    fs::write(&path, b"hello")?;
    let file = fs::File::open(&path)?.into_raw_fd();
    let (from, to) = nix::unistd::pipe()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let numbers = [file, -1, from];
    ring.register(FILES, numbers.as_ptr() as u64, 3)?;
    let room = Box::leak(Box::new([0_u8; 8]));
    let mut read = move |place: i32| -> Result<(i32, Vec<u8>)> {
        room.fill(0);
        ring.add(Entry {
            opcode: READ,
            flags: FIXED_FILE,
            fd: place,
            address: room.as_mut_ptr() as u64,
            len: 8,
            ..Entry::default()
        });
        ring.submit(1)?;
        let found = ring.wait(1)?;
        Ok((found[0].1, room[..5].to_vec()))
    };
    Ok(Watch::new(move || {
        same("the file", &(5, b"hello".to_vec()), &read(0)?)?;
        same("no file", &-libc::EBADF, &read(1)?.0)?;
        files::write(to, b"again")?;
        same("the pipe", &(5, b"again".to_vec()), &read(2)?)
    })
    .spoiled_by(move || ring.register(UNREGISTER_FILES, 0, 0)))
}

/// Two buffers and a free place between them.
pub(crate) fn buffers(setting: &Setting) -> Result<Watch> {
    const LEN: usize = 8192;
    let ring = Ring::new(8, 16, 0)?;
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(true).read(true).write(true);
    let file = options.open(setting.fresh("file"))?;
    let memory = Box::leak(vec![0_u8; 2 * LEN].into_boxed_slice());
    let (first, second) = memory.split_at_mut(LEN);
    let [one, other] = [first.as_ptr() as u64, second.as_ptr() as u64];
    let vectors = [one, LEN as u64, 0, 0, other, LEN as u64];
    ring.register(BUFFERS, vectors.as_ptr() as u64, 3)?;
    let fd = file.as_raw_fd();
    let transfer = move |opcode: u8, buffer: u16, address: u64| {
        ring.add(Entry {
            opcode,
            fd,
            address,
            len: LEN as u32,
            buffer,
            ..Entry::default()
        });
        ring.submit(1)?;
        let found = ring.wait(1)?;
        anyhow::Ok(found[0].1)
    };
    let mut round = 0_u8;
    let spoiled = fs::File::open(setting.path("file"))?;
    Ok(Watch::new(move || {
        round += 1;
        first.fill(round);
        second.fill(0);
        let whole = LEN as i32;
        same("written", &whole, &transfer(WRITE_FIXED, 0, one)?)?;
        same(
            "a free place",
            &-libc::EFAULT,
            &transfer(READ_FIXED, 1, other)?,
        )?;
        same("read", &whole, &transfer(READ_FIXED, 2, other)?)?;
        // What the kernel has written is in the memory that we see.
        same("what was read", &vec![round; LEN], &second.to_vec())?;
        let mut there = vec![0; LEN];
        file.read_exact_at(&mut there, 0)?;
        same("what was written", &vec![round; LEN], &there)
    })
    .spoiled_by(move || {
        let _ = &spoiled;
        ring.register(UNREGISTER_BUFFERS, 0, 0)
    }))
}

/// A buffer that counts for this memory, so that it can be handed to another ring of it where the kernel does that.
pub(crate) fn counted(_: &Setting) -> Result<Watch> {
    const LEN: usize = 1 << 20;
    let ring = Ring::new(8, 16, 0)?;
    let memory = Box::leak(vec![1_u8; LEN].into_boxed_slice());
    let vector = [memory.as_ptr() as u64, LEN as u64];
    ring.register(BUFFERS, vector.as_ptr() as u64, 1)?;
    let clones = handed_over(ring.fd)? != -i64::from(libc::EINVAL);
    Ok(Watch::new(move || {
        // Kernels differ in what they count: as much again for the same buffer of another ring.
        let once = pinned()?;
        let other = unmapped()?;
        let given = [other as u64, BUFFERS, vector.as_ptr() as u64, 1];
        let said = raw(libc::SYS_io_uring_register, args(given));
        let twice = pinned()?;
        let gone = [other as u64, UNREGISTER_BUFFERS, 0, 0];
        raw(libc::SYS_io_uring_register, args(gone));
        files::close(other);
        same("registering it again", &0, &said)?;
        same("VmPin with twice as much", &(2 * once), &twice)?;
        if clones {
            same("handed to a new ring", &0, &handed_over(ring.fd)?)?;
        }
        Ok(())
    })
    .spoiled_by(move || ring.register(UNREGISTER_BUFFERS, 0, 0)))
}

/// A new ring, none of which is mapped.
fn unmapped() -> Result<i32> {
    let params = [0_u32; 30];
    let given = [1, (&raw const params) as u64];
    let made = raw(libc::SYS_io_uring_setup, args(given));
    Ok(i32::try_from(sys("io_uring_setup", made)?)?)
}

/// Kilobytes of pinned memory.
fn pinned() -> Result<u64> {
    let told = procfs::status("self", "VmPin")?;
    Ok(told.trim_end_matches(" kB").parse()?)
}

/// What the kernel says to the wish that a new ring should have the buffers of this one.
fn handed_over(from: i32) -> Result<i64> {
    let fd = unmapped()?;
    let wanted = [from.cast_unsigned(), 0, 0, 0, 0, 0, 0, 0];
    let given = [fd as u64, CLONE_BUFFERS, (&raw const wanted) as u64, 1];
    let said = raw(libc::SYS_io_uring_register, args(given));
    files::close(fd);
    Ok(said)
}

/// Eventfds that are told of completions, one of them of none that come at once.
pub(crate) fn eventfd(_: &Setting) -> Result<Watch> {
    let [ring, quiet] = [Ring::new(8, 16, 0)?, Ring::new(8, 16, 0)?];
    let make = || -> Result<i32> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
        crate::kit::fd("eventfd", fd)
    };
    let [told, untold] = [make()?, make()?];
    ring.register(EVENTFD, (&raw const told) as u64, 1)?;
    quiet.register(EVENTFD_ASYNC, (&raw const untold) as u64, 1)?;
    let three = move || {
        for data in 0..3 {
            for ring in [ring, quiet] {
                ring.nop(data);
                ring.submit(1)?;
                same("a completion", &Some((data, 0)), &ring.take())?;
            }
        }
        anyhow::Ok(())
    };
    three()?;
    Ok(Watch::new(move || {
        let count = files::read(told, 8)?;
        same("count", &3_u64.to_le_bytes().to_vec(), &count)?;
        let nothing = files::ready(untold, libc::POLLIN)?;
        same("the other", &0, &nothing)?;
        three()
    })
    .spoiled_by(move || files::write(told, &1_u64.to_le_bytes())))
}
