//! Requests of ptrace(2) that a process makes of its own tracee, as calls of a batch inside of it.
//!
//! A thread has one tracer. What is to be known of a tracee of somebody else, and to be done to it, goes through
//! that one.

use crate::batch::{Arg, Batch, Buffer, CallIndex, Output};
use crate::ptrace::{SIGINFO_SIZE, SigInfo};
use crate::regs::Regs;
use crate::tracee::TraceeError;
use crate::{Errno, Tid};

/// `ptrace(2)`, `waitid(2)`.
pub const PTRACE: i64 = 101;
#[allow(missing_docs, reason = "see above")]
pub const WAITID: i64 = 247;

/// `PTRACE_SYSCALL`, `PTRACE_CONT`.
pub const SYSCALL: i32 = 24;
const PEEKUSER: i32 = 3;
const POKEUSER: i32 = 6;
const ATTACH: i32 = 16;
#[allow(missing_docs, reason = "see above")]
pub const CONT: i32 = 7;
/// `PTRACE_SYSEMU`
const SYSEMU: i32 = 31;
const SETOPTIONS: i32 = 0x4200;
const GETSIGINFO: i32 = 0x4202;
const SETSIGINFO: i32 = 0x4203;
const GETREGSET: i32 = 0x4204;
const SETREGSET: i32 = 0x4205;
const SEIZE: i32 = 0x4206;
const INTERRUPT: i32 = 0x4207;
const LISTEN: i32 = 0x4208;
const PEEKSIGINFO: i32 = 0x4209;
const GETSIGMASK: i32 = 0x420a;
const SETSIGMASK: i32 = 0x420b;
const GET_SYSCALL_INFO: i32 = 0x420e;

const NT_PRSTATUS: i32 = 1;
const NT_X86_XSTATE: i32 = 0x202;
const PEEKSIGINFO_SHARED: u32 = 1;

/// Where the debug registers are that hold something, in `struct user` (arch/x86/include/asm/user_64.h,
/// `u_debugreg`): DR0 to DR3, DR6, DR7.
const DEBUG_REGISTERS: [u64; 6] = [848, 856, 864, 872, 896, 904];

const P_PID: i32 = 1;
/// What [`Tracee::only_if_it_runs`] is called in messages.
const HAS_STOPPED: &str = "making sure that its tracee has not stopped";
/// No memory is there.
const NOWHERE: u64 = u64::MAX << 12;
/// Places of `siginfo_t` that waitid(2) fills: the signal, and the status.
const SI_SIGNO: usize = 0;
const SI_STATUS: usize = 6;
/// Signals that are looked at in one batch.
pub const SIGNALS: usize = 64;
/// The extended state of no processor is larger.
const XSTATE: usize = 16 << 10;

/// Which system call stop it is in (`PTRACE_SYSCALL_INFO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStop {
    /// Another stop.
    None,
    /// Before a call.
    Entry,
    /// Behind it.
    Exit,
    /// `PTRACE_EVENT_SECCOMP`, or one that is not known.
    Other,
}

/// Whether a batch has ended at [`Tracee::only_if_it_runs`].
#[must_use]
pub fn has_stopped(error: &TraceeError) -> bool {
    let TraceeError::Call { failure, .. } = error else {
        return false;
    };
    failure.what == HAS_STOPPED && failure.errno == Errno::EFAULT
}

/// A tracee of the thread that runs the batch.
#[derive(Clone, Copy, Debug)]
pub struct Tracee(pub Tid);

impl Tracee {
    fn request(
        self,
        batch: &mut Batch,
        what: &'static str,
        number: i32,
        (address, data): (Arg, Arg),
    ) -> CallIndex {
        let args = [number.into(), self.0.0.into(), address, data];
        batch.call(what, PTRACE, args)
    }

    /// Attaches by `PTRACE_SEIZE` and asks it to stop, or by `PTRACE_ATTACH`, which sends SIGSTOP.
    pub fn attach(self, batch: &mut Batch, seize: bool) {
        let none = (0.into(), 0.into());
        if seize {
            self.request(batch, "seizing its tracee", SEIZE, none);
            self.request(batch, "stopping its tracee", INTERRUPT, none);
        } else {
            self.request(batch, "attaching to its tracee", ATTACH, none);
        }
    }

    /// Ends the batch here when there is a stop, or its end, that its tracer is to be told of ([`has_stopped`]).
    /// Asked to stop then, it would stop once more.
    pub fn only_if_it_runs(self, batch: &mut Batch) {
        // What it has used is told only where there is something to be told (kernel/exit.c), and fails there.
        let look = libc::WSTOPPED | libc::WEXITED | libc::__WALL | libc::WNOWAIT | libc::WNOHANG;
        let args = [
            P_PID.into(),
            self.0.0.into(),
            0.into(),
            look.into(),
            NOWHERE.into(),
        ];
        batch.call(HAS_STOPPED, WAITID, args);
    }

    /// `PTRACE_INTERRUPT`, of one that was seized.
    pub fn interrupt(self, batch: &mut Batch) {
        let none = (0.into(), 0.into());
        self.request(batch, "stopping its tracee", INTERRUPT, none);
    }

    /// `PTRACE_LISTEN`: it stays in its group stop, and tells when that is over. Nothing else can be asked then.
    pub fn listen(self, batch: &mut Batch) {
        let none = (0.into(), 0.into());
        self.request(batch, "letting its tracee listen", LISTEN, none);
    }

    /// `PTRACE_SETOPTIONS`.
    pub fn set_options(self, batch: &mut Batch, options: u64) {
        let what = "setting a tracee's options";
        self.request(batch, what, SETOPTIONS, (0.into(), options.into()));
    }

    /// Waits until it has stopped; with `keep` whoever waits next is told of the stop again.
    pub fn wait(self, batch: &mut Batch, keep: bool) -> Stop {
        let kept = if keep { libc::WNOWAIT } else { 0 };
        self.look(batch, libc::WSTOPPED | libc::__WALL | kept)
    }

    /// Waits until it has stopped or ended; whoever waits next is told of that again.
    pub fn wait_for_any(self, batch: &mut Batch) -> Stop {
        let look = libc::WSTOPPED | libc::WEXITED | libc::__WALL | libc::WNOWAIT;
        self.look(batch, look)
    }

    /// Takes its stop, if it has not ended.
    pub fn take(self, batch: &mut Batch) -> Stop {
        self.look(batch, libc::WSTOPPED | libc::__WALL | libc::WNOHANG)
    }

    /// Whether its tracer has not waited for its stop yet.
    pub fn unread(self, batch: &mut Batch) -> Stop {
        let look = libc::WSTOPPED | libc::__WALL | libc::WNOWAIT | libc::WNOHANG;
        self.look(batch, look)
    }

    fn look(self, batch: &mut Batch, options: i32) -> Stop {
        let info = batch.space(SIGINFO_SIZE);
        let args = [
            P_PID.into(),
            self.0.0.into(),
            info.into(),
            options.into(),
            0.into(),
        ];
        batch.call("waiting for its tracee", WAITID, args);
        Stop(info)
    }

    /// Lets it go on; to the next system call stop with `to_call`.
    pub fn go_on(self, batch: &mut Batch, to_call: bool) {
        let number = if to_call { SYSCALL } else { CONT };
        let none = (0.into(), 0.into());
        self.request(batch, "letting its tracee go on", number, none);
    }

    /// `PTRACE_SYSEMU`: lets it go on to the stop before a call, which it does not make then, nor do its seccomp filters
    /// see it (kernel/entry/common.c, syscall_trace_enter).
    pub fn go_on_to_none(self, batch: &mut Batch) {
        let none = (0.into(), 0.into());
        self.request(batch, "letting its tracee go on", SYSEMU, none);
    }

    /// Lets it go on with a signal in place of the one that it is before.
    pub fn go_on_with(self, batch: &mut Batch, signal: i32) {
        let what = "letting its tracee have a signal";
        self.request(batch, what, CONT, (0.into(), signal.into()));
    }

    /// Sets its general registers.
    pub fn set_regs(self, batch: &mut Batch, regs: &Regs) {
        let bytes: Vec<u8> = regs
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let data = batch.data(&bytes);
        let set = iovec(batch, data, bytes.len());
        let to = (NT_PRSTATUS.into(), set.into());
        self.request(batch, "setting a tracee's registers", SETREGSET, to);
    }

    /// Sets the signals it blocks.
    pub fn set_sigmask(self, batch: &mut Batch, mask: u64) {
        let mask = batch.data(&mask.to_le_bytes());
        let to = (8.into(), mask.into());
        self.request(batch, "setting a tracee's signal mask", SETSIGMASK, to);
    }

    /// Replaces the siginfo of its stop.
    pub fn set_siginfo(self, batch: &mut Batch, info: &[u8]) {
        let info = batch.data(info);
        let to = (0.into(), info.into());
        self.request(batch, "setting a tracee's signal", SETSIGINFO, to);
    }

    /// Sets its hardware break points, as [`Asked::break_points`] tells them. Where nothing is set at an address, none is
    /// there.
    pub fn set_break_points(self, batch: &mut Batch, registers: [u64; 6]) {
        for (place, value) in DEBUG_REGISTERS.into_iter().zip(registers) {
            if value != 0 {
                let what = "setting a tracee's break points";
                self.request(batch, what, POKEUSER, (place.into(), value.into()));
            }
        }
    }

    /// Asks for everything that its tracer can see.
    pub fn ask(self, batch: &mut Batch) -> Asked {
        let [regs, xstate, mask, info] =
            [size_of::<Regs>(), XSTATE, 8, SIGINFO_SIZE].map(|len| batch.space(len));
        let regset = iovec(batch, regs, size_of::<Regs>());
        let to = (NT_PRSTATUS.into(), regset.into());
        self.request(batch, "reading a tracee's registers", GETREGSET, to);
        let state = iovec(batch, xstate, XSTATE);
        let to = (NT_X86_XSTATE.into(), state.into());
        self.request(batch, "reading a tracee's extended state", GETREGSET, to);
        let to = (8.into(), mask.into());
        self.request(batch, "reading a tracee's signal mask", GETSIGMASK, to);
        let call = batch.space(128);
        let to = (128.into(), call.into());
        self.request(batch, "asking for a tracee's call", GET_SYSCALL_INFO, to);
        let siginfo = [GETSIGINFO.into(), self.0.0.into(), 0.into(), info.into()];
        let siginfo = batch.try_call("asking for a tracee's signal", PTRACE, siginfo);
        let queued = [false, true].map(|shared| self.peek(batch, shared));
        let points = DEBUG_REGISTERS.map(|place| {
            let (what, found) = ("reading a tracee's break points", batch.space(8));
            self.request(batch, what, PEEKUSER, (place.into(), found.into()));
            found
        });
        Asked {
            points,
            regs,
            xstate,
            state,
            mask,
            call,
            info,
            siginfo,
            queued,
            unread: self.unread(batch),
        }
    }

    fn peek(self, batch: &mut Batch, shared: bool) -> (CallIndex, Buffer) {
        // struct ptrace_peeksiginfo_args: off, flags, nr.
        let flags = if shared { PEEKSIGINFO_SHARED } else { 0 };
        let words = [0, 0, flags, SIGNALS as u32];
        let args: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let args = batch.data(&args);
        let found = batch.space(SIGNALS * SIGINFO_SIZE);
        let to = (args.into(), found.into());
        let call = self.request(batch, "reading a tracee's queued signals", PEEKSIGINFO, to);
        (call, found)
    }
}

/// Takes the SIGCHLD that waits, by which stops tell a tracer of themselves: it is to have none but what it had.
pub fn forget_stops(batch: &mut Batch) {
    let set = batch.data(&(1_u64 << (libc::SIGCHLD - 1)).to_le_bytes());
    let now = batch.data(&[0; 16]);
    let args = [set.into(), 0.into(), now.into(), 8.into()];
    batch.try_call(
        "forgetting stops of tracees",
        libc::SYS_rt_sigtimedwait,
        args,
    );
}

/// A `struct iovec`.
fn iovec(batch: &mut Batch, data: Buffer, len: usize) -> Buffer {
    let vector = batch.data(&[[0; 8], (len as u64).to_le_bytes()].concat());
    batch.pointer(vector, 0, data);
    vector
}

/// What waiting told.
#[derive(Clone, Copy, Debug)]
pub struct Stop(Buffer);

impl Stop {
    /// The status, as `waitpid(2)` has it in its upper bytes; None when there is nothing to be told.
    #[must_use]
    pub fn read(self, out: &Output) -> Option<i32> {
        let told = out.u32(self.0, SI_SIGNO) != 0;
        told.then(|| out.u32(self.0, SI_STATUS).cast_signed())
    }
}

/// What [`Tracee::ask`] has asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    regs: Buffer,
    xstate: Buffer,
    state: Buffer,
    mask: Buffer,
    call: Buffer,
    info: Buffer,
    siginfo: CallIndex,
    queued: [(CallIndex, Buffer); 2],
    points: [Buffer; 6],
    unread: Stop,
}

impl Asked {
    /// General registers.
    #[must_use]
    pub fn regs(&self, out: &Output) -> Regs {
        let words: Vec<u64> = (0..size_of::<Regs>() / 8)
            .map(|index| out.u64(self.regs, index))
            .collect();
        Regs::from_words(&words)
    }

    /// The extended state.
    #[must_use]
    pub fn xstate(&self, out: &Output) -> Vec<u8> {
        let len = usize::try_from(out.u64(self.state, 1)).unwrap_or(0);
        let bytes = out.bytes(self.xstate);
        bytes[..len.min(bytes.len())].to_vec()
    }

    /// Blocked signals.
    #[must_use]
    pub fn sigmask(&self, out: &Output) -> u64 {
        out.u64(self.mask, 0)
    }

    /// Which system call stop it is in.
    #[must_use]
    pub fn call(&self, out: &Output) -> CallStop {
        match out.bytes(self.call).first() {
            Some(0) => CallStop::None,
            Some(1) => CallStop::Entry,
            Some(2) => CallStop::Exit,
            _ => CallStop::Other,
        }
    }

    /// The siginfo of its stop; None in a group stop.
    #[must_use]
    pub fn siginfo(&self, out: &Output) -> Option<SigInfo> {
        out.result(self.siginfo).ok()?;
        out.bytes(self.info).try_into().ok()
    }

    /// The queued signals of the thread, or (`shared`) of its process; None when there are more than
    /// [`SIGNALS`].
    #[must_use]
    pub fn queued(&self, out: &Output, shared: bool) -> Option<Vec<Vec<u8>>> {
        let (call, found) = self.queued[usize::from(shared)];
        let count = usize::try_from(out.result(call).unwrap_or(0)).unwrap_or(SIGNALS);
        let bytes = out.bytes(found).chunks(SIGINFO_SIZE).map(<[u8]>::to_vec);
        (count < SIGNALS).then(|| bytes.take(count).collect())
    }

    /// The debug registers: DR0 to DR3, DR6, DR7.
    #[must_use]
    pub fn break_points(&self, out: &Output) -> [u64; 6] {
        self.points.map(|found| out.u64(found, 0))
    }

    /// Whether its tracer has not waited for the stop.
    #[must_use]
    pub fn unread(&self, out: &Output) -> bool {
        self.unread.read(out).is_some()
    }
}
