//! Calls of i386 that 64-bit programs make (`int $0x80`): their numbers and structures are other ones, and so is the
//! code by which the kernel would go on with one that has waited (arch/x86/kernel/signal.c, get_nr_restart_syscall).

use crate::FreezerError;
use crate::proc;
use sys::regs::{Regs, restart};
use sys::{Pid, Tid, ptrace};

/// Said of waits for a time.
pub(crate) const NOT_CARRIED: &str = "such a time-out is not carried (int $0x80 of i386)";
const EINTR: i64 = 4;
const INT_80: [u8; 2] = [0xcd, 0x80];
/// `SEMTIMEDOP` of ipc(2).
const SEMTIMEDOP: u64 = 4;

/// What becomes of an interrupted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The kernel goes on with it, or it is done.
    Goes,
    /// A stop has made it fail, and it is to be made again.
    Again,
    /// It waits for a time that is not carried; made again if a stop has made it fail.
    Timed { again: bool },
}

/// Has a thread that has stopped in such a call go on with it when it is let go. None when it is in no such call, else
/// whether it waits for a time.
pub(super) fn go_on(pid: Pid, tid: Tid, regs: &Regs) -> Result<Option<bool>, FreezerError> {
    let Some((nr, result)) = regs.interrupted_syscall() else {
        return Ok(None);
    };
    if !is_at(pid, regs.rip) {
        return Ok(None);
    }
    let args = [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi].map(|arg| arg & 0xffff_ffff);
    let fate = fate(nr, result, args);
    if matches!(fate, Fate::Again | Fate::Timed { again: true }) {
        let rax = (-restart::ERESTARTNOHAND).cast_unsigned();
        ptrace::set_regs(tid, &Regs { rax, ..*regs })
            .map_err(FreezerError::call(pid, "repeating a 32-bit call"))?;
    }
    Ok(Some(matches!(fate, Fate::Timed { .. })))
}

/// Whether a thread that has not been stopped waits for a time in such a call.
pub(crate) fn waits(pid: Pid, tid: Tid) -> bool {
    let text = proc::read_text(pid, &format!("task/{tid}/syscall")).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    let Some(nr) = words.next().and_then(|nr| nr.parse().ok()) else {
        return false;
    };
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let numbers: Vec<u64> = words.filter_map(number).collect();
    // Six arguments, stack and instruction pointer.
    let [first, second, third, fourth, fifth, _, _, rip] = numbers[..] else {
        return false;
    };
    has_time_out(nr, [first, second, third, fourth, fifth]) && is_at(pid, rip)
}

/// Whether such a call has been made right before `rip`.
fn is_at(pid: Pid, rip: u64) -> bool {
    let at = rip.wrapping_sub(2);
    let mut code = [0; 2];
    if sys::vm::read_process(pid, &[(at, 2)], &mut code).is_ok() {
        return code == INT_80;
    }
    // Code that can only be executed, and a leader that has ended.
    let mem = proc::memory(pid);
    let code = mem.map(|mem| mem.read_vec(at, 2));
    code.is_ok_and(|code| code.as_deref() == Ok(&INT_80))
}

fn fate(nr: i64, result: i64, args: [u64; 5]) -> Fate {
    match -result {
        restart::ERESTART_RESTARTBLOCK => Fate::Timed { again: false },
        restart::ERESTARTNOHAND if has_time_out(nr, args) => Fate::Timed { again: false },
        EINTR if has_time_out(nr, args) || is_on_socket(nr) => Fate::Timed { again: true },
        EINTR if is_repeated(nr) => Fate::Again,
        _ => Fate::Goes,
    }
}

/// Whether a call waits for a time (arch/x86/entry/syscalls/syscall_32.tbl), as far as its arguments tell.
fn has_time_out(nr: i64, [first, _, third, fourth, fifth]: [u64; 5]) -> bool {
    match nr {
        // select, nanosleep, clock_nanosleep
        82 | 162 | 267 | 407 => true,
        // poll: the kernel keeps that it has none
        168 => third != 0,
        // ppoll, rt_sigtimedwait
        309 | 414 | 177 | 421 => third != 0,
        // epoll_wait, epoll_pwait
        256 | 319 => (fourth as i32) > 0,
        // futex, semtimedop, epoll_pwait2
        240 | 422 | 420 | 441 => fourth != 0,
        // select, pselect6, io_getevents, io_pgetevents, io_uring_enter
        142 | 308 | 413 | 247 | 385 | 416 | 426 => fifth != 0,
        // ipc
        117 => first & 0xffff == SEMTIMEDOP,
        _ => false,
    }
}

/// Whether stops make a call fail only when its socket has a time-out: read, write, socketcall, readv, writev, recvmmsg,
/// sendmmsg, connect, accept4, sendto, sendmsg, recvfrom, recvmsg.
fn is_on_socket(nr: i64) -> bool {
    matches!(
        nr,
        3 | 4 | 102 | 145 | 146 | 337 | 345 | 362 | 364 | 369..=372 | 417
    )
}

/// Whether a call that a stop has made fail is made again: epoll_wait, epoll_pwait, epoll_pwait2, rt_sigtimedwait,
/// semtimedop, io_getevents, io_pgetevents, io_uring_enter, ipc; waitpid, fcntl, wait4, flock, fcntl64, mq_timedsend,
/// mq_timedreceive, waitid, fallocate, msgsnd, msgrcv, futex_waitv.
fn is_repeated(nr: i64) -> bool {
    matches!(
        nr,
        256 | 319 | 441 | 177 | 421 | 420 | 247 | 385 | 416 | 426 | 117
    ) || matches!(nr, 7 | 55 | 114 | 143 | 221 | 279 | 280 | 284 | 324)
        || matches!(nr, 400 | 401 | 418 | 419 | 449)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_for_a_time_are_not_carried() {
        let endless = [3, 0, 0, 0xffff_ffff, 0];
        assert_eq!(fate(256, -EINTR, endless), Fate::Again);
        assert_eq!(
            fate(256, -EINTR, [3, 0, 0, 100, 0]),
            Fate::Timed { again: true }
        );
        let select = -restart::ERESTARTNOHAND;
        assert_eq!(fate(142, select, [0; 5]), Fate::Goes);
        assert_eq!(
            fate(142, select, [0, 0, 0, 0, 0x1000]),
            Fate::Timed { again: false }
        );
        let block = -restart::ERESTART_RESTARTBLOCK;
        assert_eq!(fate(162, block, [0; 5]), Fate::Timed { again: false });
        // getpid(2), which has the number of writev(2).
        assert_eq!(fate(20, 4711, [0; 5]), Fate::Goes);
    }
}
