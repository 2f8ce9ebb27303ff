//! Addresses that the kernel knows of a thread: robust list, clear-child-tid, rseq.

use anyhow::{Result, bail};

use crate::kit::{Crew, SOON, Setting, Watch, not_here, same, sys, until};

/// Of two threads, one of them with a list of its own.
pub(crate) fn robust(_: &Setting) -> Result<Watch> {
    let get = || {
        let (mut head, mut len) = (0_u64, 0_u64);
        // SAFETY: the kernel writes two words; 0 is this thread.
        let done =
            unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
        sys("get_robust_list", done)?;
        Ok((head, len))
    };
    let set = |head: u64| {
        // SAFETY: nobody locks robust mutexes here; the head is read at the thread's end only.
        sys("set_robust_list", unsafe {
            libc::syscall(libc::SYS_set_robust_list, head, 24)
        })
    };
    let mut crew = Crew::default();
    crew.add(move || {
        // An empty list: its head points to itself.
        let head = Box::leak(Box::new([0_u64; 3]));
        head[0] = head.as_ptr() as u64;
        set(head.as_ptr() as u64)?;
        Watch::keep(get)
    })?;
    crew.add(move || Ok(Watch::keep(get)?.spoiled_by(move || set(0).map(drop))))?;
    Ok(crew.watch())
}

/// The kernel clears the word and wakes whoever waits when the thread ends: joining works.
pub(crate) fn tid_address(_: &Setting) -> Result<Watch> {
    let get = || {
        let mut address = 0_u64;
        // SAFETY: the kernel writes one word. 40 is PR_GET_TID_ADDRESS.
        sys("PR_GET_TID_ADDRESS", unsafe {
            libc::prctl(40, &raw mut address)
        })?;
        Ok(address)
    };
    let mut crew = Crew::default();
    crew.add(move || Watch::keep(get))?;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mut joined = Some((stop, std::thread::spawn(move || stopped.recv().is_ok())));
    Ok(crew.watch().and(Watch::new(move || {
        if let Some((stop, thread)) = joined.take() {
            drop(stop);
            let end = std::thread::spawn(move || thread.join());
            until("a thread is joined", SOON, || end.is_finished())?;
        }
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        joined = Some((stop, std::thread::spawn(move || stopped.recv().is_ok())));
        Ok(())
    })))
}

unsafe extern "C" {
    /// Where glibc keeps the area, seen from the thread pointer (since 2.35).
    static __rseq_offset: isize;
    static __rseq_size: u32;
}

/// The kernel writes the processor's number into the area whenever the thread has moved.
pub(crate) fn rseq(_: &Setting) -> Result<Watch> {
    // SAFETY: constants of the C library.
    if unsafe { __rseq_size } == 0 {
        return not_here("the C library has registered no area");
    }
    let mut crew = Crew::default();
    crew.add(|| {
        Ok(Watch::new(|| {
            for mask in [1_u64, 2, 1, 2] {
                let pointer = &raw const mask;
                // SAFETY: the mask has the length that is given; 0 is this thread.
                let moved = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, pointer) };
                // SAFETY: the area belongs to this thread; cpu_id is its second word.
                let (known, now) = unsafe {
                    let thread: *const u8;
                    std::arch::asm!("mov {}, fs:0", out(reg) thread);
                    let area = thread.offset(__rseq_offset).cast::<u32>();
                    (area.add(1).read_volatile(), libc::sched_getcpu())
                };
                // Where there is one processor only, the mask 2 is refused.
                same("the processor", &now, &(known as i32))?;
                if moved == 0 && now != mask as i32 - 1 {
                    bail!("the thread runs on {now}");
                }
            }
            Ok(())
        })
        .spoiled_by(|| {
            // SAFETY: unregisters the area of this thread, as the C library registered it.
            let done = unsafe {
                let thread: *const u8;
                std::arch::asm!("mov {}, fs:0", out(reg) thread);
                let area = thread.offset(__rseq_offset);
                libc::syscall(libc::SYS_rseq, area, 32, 1, 0x5305_3053)
            };
            sys("rseq", done).map(drop)
        }))
    })?;
    Ok(crew.watch())
}
