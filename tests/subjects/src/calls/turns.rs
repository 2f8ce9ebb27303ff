//! Threads that wait for the same thing, which come to it in the order in which they began to wait; and threads that
//! do something for others who wait.

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::IntoRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kit::{
    SOON, Setting, Watch, args, not_here, raw, same, sys, tid, until, waits, waits_with,
};

/// In which order threads begin to wait, by the order in which they were made.
const BEGIN: [usize; 8] = [5, 2, 7, 0, 4, 1, 6, 3];

/// Threads that wait for the same thing.
struct Waiters {
    /// Number and first argument of their call: they wait for their turn to begin in others like it.
    call: (i64, u64),
    begin: Vec<(i32, Sender<()>)>,
    back: Receiver<(usize, i64)>,
}

impl Waiters {
    /// `call` is made by all of them.
    fn start(
        which: (i64, u64),
        call: impl Fn() -> i64 + Clone + Send + 'static,
    ) -> Result<Waiters> {
        let (send, back) = channel();
        let mut begin = Vec::new();
        for index in 0..BEGIN.len() {
            let (go, told) = channel::<()>();
            let (send_tid, its_tid) = channel();
            let (send, call) = (send.clone(), call.clone());
            std::thread::spawn(move || {
                let _ = send_tid.send(tid());
                for () in told {
                    let _ = send.send((index, call()));
                }
            });
            begin.push((its_tid.recv_timeout(SOON)?, go));
        }
        let waiters = Waiters {
            call: which,
            begin,
            back,
        };
        waiters.begin()?;
        Ok(waiters)
    }

    /// They begin to wait, one after the other.
    fn begin(&self) -> Result<()> {
        BEGIN.into_iter().try_for_each(|index| {
            let (tid, go) = &self.begin[index];
            go.send(())?;
            until("a thread waits", SOON, || waits_with(*tid, self.call))
        })
    }

    /// Who comes back with what, when all are woken one after the other.
    fn finish(&self, mut wake: impl FnMut() -> Result<()>) -> Result<Vec<usize>> {
        let each = BEGIN.iter().map(|_| {
            wake()?;
            let (index, result) = self.back.recv_timeout(SOON).context("nobody is woken")?;
            sys("a call that was waited in", result)?;
            Ok(index)
        });
        each.collect()
    }
}

/// Whoever waits first is first.
fn in_turn(
    which: (i64, u64),
    call: impl Fn() -> i64 + Clone + Send + 'static,
    wake: impl FnMut() -> Result<()> + 'static,
) -> Result<Watch> {
    watch(BEGIN.to_vec(), which, call, wake)
}

fn watch(
    expected: Vec<usize>,
    which: (i64, u64),
    call: impl Fn() -> i64 + Clone + Send + 'static,
    wake: impl FnMut() -> Result<()> + 'static,
) -> Result<Watch> {
    let waiters = Rc::new(Waiters::start(which, call)?);
    let wake = Rc::new(RefCell::new(wake));
    let (others, spoil) = (waiters.clone(), wake.clone());
    Ok(Watch::new(move || {
        if let Ok((index, result)) = waiters.back.try_recv() {
            bail!("thread {index} came back by itself with {result}");
        }
        for (tid, _) in &waiters.begin {
            let again = || waits_with(*tid, which) || waits(*tid, libc::SYS_restart_syscall);
            until("a thread waits again", SOON, again)?;
        }
        let order = waiters.finish(|| wake.borrow_mut()())?;
        same("the order of those who wait", &expected, &order)?;
        waiters.begin()
    })
    .spoiled_by(move || {
        // The first two come again, the other way round where the last one is the first.
        let next = || -> Result<usize> {
            spoil.borrow_mut()()?;
            Ok(others.back.recv_timeout(SOON)?.0)
        };
        [next()?, next()?].into_iter().try_for_each(|index| {
            let (tid, go) = &others.begin[index];
            go.send(())?;
            until("a thread waits", SOON, || waits_with(*tid, which))
        })
    }))
}

/// FUTEX_WAIT
pub(crate) fn futex(_: &Setting) -> Result<Watch> {
    let word: &'static u32 = Box::leak(Box::new(0));
    let at = std::ptr::from_ref(word) as u64;
    in_turn(
        (libc::SYS_futex, at),
        move || raw(libc::SYS_futex, args([at, libc::FUTEX_PRIVATE_FLAG as u64])),
        move || {
            let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
            let woken = raw(libc::SYS_futex, args([at, operation, 1]));
            same("how many are woken", &1, &woken)
        },
    )
}

/// A semaphore that is taken.
pub(crate) fn semaphore(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    let set = sys("semget", unsafe {
        libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600)
    })?;
    let change = move |by: i16| {
        let operation = libc::sembuf {
            sem_num: 0,
            sem_op: by,
            sem_flg: 0,
        };
        let at = &raw const operation as u64;
        raw(libc::SYS_semop, args([set as u64, at, 1]))
    };
    in_turn(
        (libc::SYS_semop, set as u64),
        move || change(-1),
        move || sys("semop", change(1)).map(drop),
    )
}

/// An empty System V queue.
pub(crate) fn messages(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    let queue = sys("msgget", unsafe {
        libc::msgget(libc::IPC_PRIVATE, libc::IPC_CREAT | 0o600)
    })? as u64;
    in_turn(
        (libc::SYS_msgrcv, queue),
        move || {
            let mut message = [0_u64; 2];
            let at = message.as_mut_ptr() as u64;
            raw(libc::SYS_msgrcv, args([queue, at, 8, 0]))
        },
        move || {
            let message = [7_u64, 8];
            let at = message.as_ptr() as u64;
            sys("msgsnd", raw(libc::SYS_msgsnd, args([queue, at, 8]))).map(drop)
        },
    )
}

/// A byte is read.
fn read_one(from: u64) -> i64 {
    let mut byte = 0_u8;
    raw(libc::SYS_read, args([from, &raw mut byte as u64, 1]))
}

fn write_one(to: u64) -> Result<()> {
    let byte = 7_u8;
    let at = &raw const byte as u64;
    sys("write", raw(libc::SYS_write, args([to, at, 1]))).map(drop)
}

/// An empty pipe.
pub(crate) fn pipe(_: &Setting) -> Result<Watch> {
    let (read, write) = std::io::pipe()?;
    // They are open as long as this process is there.
    let [from, to] = [read.into_raw_fd(), write.into_raw_fd()].map(|fd| fd as u64);
    in_turn(
        (libc::SYS_read, from),
        move || read_one(from),
        move || write_one(to),
    )
}

/// A unix socket.
pub(crate) fn accept(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("socket");
    let listener = UnixListener::bind(&path)?.into_raw_fd() as u64;
    in_turn(
        (libc::SYS_accept, listener),
        move || {
            let accepted = raw(libc::SYS_accept, args([listener]));
            raw(libc::SYS_close, args([accepted as u64]))
        },
        move || UnixStream::connect(&path).map(drop).map_err(Into::into),
    )
}

/// An empty POSIX queue, without a name.
fn queue() -> Result<i32> {
    let name = CString::new(format!("/kupgrade-turns-{}", std::process::id()))?;
    // SAFETY: the name ends with a zero, the structure is one.
    unsafe {
        let mut form: libc::mq_attr = std::mem::zeroed();
        (form.mq_maxmsg, form.mq_msgsize) = (4, 8);
        let flags = libc::O_RDWR | libc::O_CREAT;
        let queue = libc::mq_open(name.as_ptr(), flags, 0o600, &raw const form);
        sys("mq_open", queue)?;
        sys("mq_unlink", libc::mq_unlink(name.as_ptr()))?;
        Ok(queue)
    }
}

fn receive(queue: i32) -> i64 {
    let mut text = [0_u8; 8];
    let at = text.as_mut_ptr() as u64;
    raw(libc::SYS_mq_timedreceive, args([queue as u64, at, 8]))
}

fn send(queue: i32) -> Result<()> {
    let text = [1_u8; 8];
    let arguments = args([queue as u64, text.as_ptr() as u64, 8]);
    sys("mq_send", raw(libc::SYS_mq_timedsend, arguments)).map(drop)
}

/// An empty POSIX queue.
pub(crate) fn posix_messages(_: &Setting) -> Result<Watch> {
    let queue = queue()?;
    in_turn(
        (libc::SYS_mq_timedreceive, queue as u64),
        move || receive(queue),
        move || send(queue),
    )
}

/// An epoll instance: the last one that waits is the first.
pub(crate) fn epoll(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers, and an event that is a live local.
    let (epoll, event) = unsafe {
        let event = sys("eventfd", libc::eventfd(0, libc::EFD_SEMAPHORE))? as i32;
        let epoll = sys("epoll_create1", libc::epoll_create1(0))? as i32;
        let mut entry = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 7,
        };
        let added = libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, event, &raw mut entry);
        sys("epoll_ctl", added)?;
        (epoll, event)
    };
    watch(
        BEGIN.into_iter().rev().collect(),
        (libc::SYS_epoll_wait, epoll as u64),
        move || {
            let mut told = [0_u32; 3];
            let arguments = [epoll as u64, told.as_mut_ptr() as u64, 1, u64::MAX];
            raw(libc::SYS_epoll_wait, args(arguments))
        },
        move || {
            let one = 1_u64.to_ne_bytes();
            let arguments = args([event as u64, one.as_ptr() as u64, 8]);
            sys("write", raw(libc::SYS_write, arguments)).map(drop)
        },
    )
}

/// How long one sleeps before each message that it sends.
const PAUSE: Duration = Duration::from_millis(50);
/// Threads that are made between the one that sends and the one that waits.
const BETWEEN: usize = 50;

/// Whether QEMU translates this machine's instructions: to stop all of a host takes longer than [`PAUSE`] then, and who
/// waits may be stopped before who sends.
fn is_translated() -> bool {
    const VENDOR: u32 = 0x4000_0000;
    let told = std::arch::x86_64::__cpuid(VENDOR);
    told.ebx.to_le_bytes() == *b"TCGT"
}

/// Somebody is to be told when a message comes that nobody waits for, and somebody always waits; who sends sleeps most
/// of the time.
pub(crate) fn told_of_none(_: &Setting) -> Result<Watch> {
    if is_translated() {
        return not_here("too slow a machine");
    }
    let queue = queue()?;
    // Whoever was made first goes on first where nobody minds.
    std::thread::spawn(move || {
        loop {
            sleep(PAUSE);
            let _ = send(queue);
        }
    });
    for _ in 0..BETWEEN {
        std::thread::spawn(std::thread::park);
    }
    let (send_tid, its_tid) = channel();
    std::thread::spawn(move || {
        let _ = send_tid.send(tid());
        while receive(queue) == 8 {}
    });
    let tid = its_tid.recv_timeout(SOON)?;
    until("a thread waits", SOON, || {
        waits(tid, libc::SYS_mq_timedreceive)
    })?;
    let notify = move |asked: bool| {
        // SAFETY: zeros are a valid structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_NONE;
        let at = if asked { &raw const event as u64 } else { 0 };
        raw(libc::SYS_mq_notify, args([queue as u64, at]))
    };
    sys("mq_notify", notify(true))?;
    Ok(Watch::new(move || {
        let busy = -i64::from(libc::EBUSY);
        same("whether it is still to be told", &busy, &notify(true))
    })
    .spoiled_by(move || sys("mq_notify", notify(false)).map(drop)))
}
