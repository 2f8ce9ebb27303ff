//! System calls that somebody waits in. None may return early, with EINTR, or start its time-out
//! from zero.

mod barred;
mod compat;
mod events;
mod futexes;
mod ipc;
mod locks;
mod moved;
mod partly;
mod polling;
mod reading;
mod signals;
mod sleeping;
mod sockets;
mod starved;
mod terminals;
mod turns;
mod waiting;

use crate::files::aio;
use crate::registry::{Group, subject};

/// Interrupted calls.
pub(crate) const GROUP: Group = Group {
    name: "calls",
    subjects: &[
        subject("nanosleep", "nanosleep", sleeping::relative),
        subject(
            "clock-nanosleep",
            "clock_nanosleep, relative",
            sleeping::boottime,
        ),
        subject(
            "clock-nanosleep-absolute",
            "clock_nanosleep, absolute, on CLOCK_MONOTONIC",
            sleeping::absolute,
        ),
        subject(
            "clock-nanosleep-realtime",
            "clock_nanosleep, absolute, on CLOCK_REALTIME",
            sleeping::realtime,
        ),
        subject(
            "clock-nanosleep-processor",
            "clock_nanosleep by the processor time of the process",
            sleeping::processor,
        ),
        subject(
            "nanosleep-remainder",
            "nanosleep interrupted by a signal after the return tells the rest",
            sleeping::remainder,
        ),
        subject(
            "nanosleep-twice",
            "nanosleep without a place for the rest, stopped twice",
            sleeping::relative_twice,
        ),
        subject(
            "clock-nanosleep-twice",
            "clock_nanosleep without a place for the rest, stopped twice",
            sleeping::boottime_twice,
        ),
        subject(
            "poll-twice",
            "poll with a time-out, stopped twice",
            polling::poll_twice,
        ),
        subject("poll-timed", "poll with a time-out", polling::poll_timed),
        subject(
            "barred-nanosleep-twice",
            "nanosleep under a filter that forbids to go on with it, stopped twice",
            barred::nanosleep,
        ),
        subject(
            "barred-clock-nanosleep-timed",
            "clock_nanosleep under such a filter",
            barred::boottime,
        ),
        subject(
            "barred-poll-twice",
            "poll with a time-out under such a filter, stopped twice",
            barred::poll,
        ),
        subject(
            "barred-futex-timed",
            "futex with a time-out under such a filter",
            barred::futex,
        ),
        subject(
            "ppoll-timed",
            "ppoll with a time-out and a signal mask",
            polling::ppoll_timed,
        ),
        subject(
            "ppoll-fixed-timed",
            "ppoll with a time-out in read-only memory",
            polling::ppoll_fixed,
        ),
        subject(
            "select-twice",
            "select with a time-out, stopped twice",
            polling::select_twice,
        ),
        subject(
            "epoll-twice",
            "epoll_wait with a time-out, stopped twice",
            polling::epoll_twice,
        ),
        subject(
            "select-timed",
            "select with a time-out",
            polling::select_timed,
        ),
        subject(
            "pselect-timed",
            "pselect with a time-out and a signal mask",
            polling::pselect_timed,
        ),
        subject(
            "epoll-timed",
            "epoll_wait with a time-out",
            polling::epoll_timed,
        ),
        subject("poll", "poll", polling::poll),
        subject("select", "select", polling::select),
        subject("epoll", "epoll_wait", polling::epoll),
        subject(
            "epoll-beside-ends",
            "epoll_wait in processes whose other threads have children that end all the time",
            polling::epoll_wait_beside_ends,
        ),
        subject(
            "epoll-beside-vforks",
            "epoll_wait in processes whose other threads wait in vfork(2) all the time",
            polling::epoll_wait_beside_vforks,
        ),
        subject(
            "epoll-busy",
            "threads that read the clock and wait a moment (epoll_pwait2), without a pause",
            events::busy,
        ),
        subject("futex", "FUTEX_WAIT", futexes::wait),
        subject(
            "futex-timed",
            "FUTEX_WAIT with a relative time-out",
            futexes::timed_wait,
        ),
        subject(
            "futex-twice",
            "FUTEX_WAIT with a relative time-out, stopped twice",
            futexes::twice,
        ),
        subject(
            "futex-absolute",
            "FUTEX_WAIT_BITSET with an absolute time-out",
            futexes::bitset,
        ),
        subject("futex-pi", "FUTEX_LOCK_PI", futexes::pi),
        subject("futex-waitv", "futex_waitv", futexes::waitv),
        subject(
            "futex-shared",
            "FUTEX_WAIT on shared memory",
            futexes::shared,
        ),
        subject(
            "futex-moved",
            "a wait at a futex that the thread was moved to (FUTEX_CMP_REQUEUE)",
            moved::wait,
        ),
        subject(
            "futex-moved-timed",
            "the same with a time-out",
            moved::timed_wait,
        ),
        subject(
            "futex-moved-shared",
            "the same on shared memory",
            moved::shared,
        ),
        subject(
            "futex-moved-pi",
            "a wait at a lock that the thread was moved to (FUTEX_CMP_REQUEUE_PI)",
            moved::pi,
        ),
        subject("sigsuspend", "sigsuspend", signals::suspend),
        subject("pause", "pause", signals::pause),
        subject("sigwaitinfo", "sigwaitinfo", signals::waitinfo),
        subject("sigtimedwait", "sigtimedwait", signals::timedwait),
        subject("read-pipe", "read on an empty pipe", reading::empty_pipe),
        subject("write-pipe", "write on a full pipe", reading::full_pipe),
        subject("write-part", "write to a pipe, partly done", partly::write),
        subject(
            "writev-part",
            "writev to a pipe, partly done",
            partly::writev,
        ),
        subject(
            "send-part",
            "send to a unix stream, partly done",
            partly::send,
        ),
        subject(
            "sendmsg-part",
            "sendmsg to a unix stream, partly done",
            partly::sendmsg,
        ),
        subject(
            "recv-part",
            "recv with MSG_WAITALL, partly done",
            partly::recv,
        ),
        subject(
            "recvmsg-part",
            "recvmsg with MSG_WAITALL, partly done",
            partly::recvmsg,
        ),
        subject(
            "sendmmsg-part",
            "sendmmsg to a unix stream, partly done",
            partly::sendmmsg,
        ),
        subject(
            "io-getevents-part",
            "io_getevents for two events, one of which is there",
            aio::getevents_part,
        ),
        subject(
            "io-pgetevents-part",
            "io_pgetevents for two events, one of which is there",
            aio::pgetevents_part,
        ),
        subject(
            "io-getevents-timed-part",
            "io_getevents with a time-out for two events, one of which is there",
            aio::getevents_timed_part,
        ),
        subject(
            "pwritev2-part",
            "pwritev2 to a pipe, partly done",
            partly::pwritev2,
        ),
        subject("recvmmsg-part", "recvmmsg, partly done", partly::recvmmsg),
        subject(
            "recvmmsg-timed-part",
            "recvmmsg with a time-out, partly done",
            partly::recvmmsg_timed,
        ),
        subject(
            "readv-endless",
            "readv of /dev/urandom without a pause",
            partly::readv_endless,
        ),
        subject(
            "writev-many",
            "writev of many buffers, partly done",
            partly::writev_many,
        ),
        subject(
            "sendmsg-many",
            "sendmsg of many buffers, partly done",
            partly::sendmsg_many,
        ),
        subject(
            "recv-least",
            "recv below SO_RCVLOWAT, partly done",
            partly::recv_least,
        ),
        subject(
            "read-least",
            "read below SO_RCVLOWAT, partly done",
            partly::read_least,
        ),
        subject(
            "peek-all",
            "recv with MSG_PEEK and MSG_WAITALL, partly done",
            partly::peek,
        ),
        subject(
            "tty-vmin",
            "read of a terminal with VMIN, partly done",
            terminals::least,
        ),
        subject(
            "tty-vmin-child",
            "the same in a child, whose parent makes no such call",
            terminals::least_in_child,
        ),
        subject(
            "tty-vtime-timed",
            "read of a terminal with VTIME",
            terminals::timed_read,
        ),
        subject(
            "tty-between-timed",
            "read of a terminal with VMIN and VTIME, partly done",
            terminals::timed_between,
        ),
        subject("read-eventfd", "read on an eventfd", reading::eventfd),
        subject("read-timerfd", "read on a timerfd", reading::timerfd),
        subject(
            "read-inotify",
            "read on an inotify descriptor",
            reading::inotify,
        ),
        subject(
            "open-fifo",
            "open of a FIFO that nobody writes to",
            reading::fifo,
        ),
        subject("read-socket", "read on a unix socket", sockets::read),
        subject(
            "recvmsg",
            "recvmsg on a unix datagram socket",
            sockets::recvmsg,
        ),
        subject(
            "io-pgetevents-timed",
            "io_pgetevents with a time-out",
            waiting::timed_events,
        ),
        subject(
            "read-timed",
            "read on a socket with SO_RCVTIMEO",
            sockets::timed_read,
        ),
        subject(
            "sendfile-timed",
            "sendfile to a socket with SO_SNDTIMEO",
            sockets::timed_sendfile,
        ),
        subject(
            "splice-timed",
            "splice from a socket with SO_RCVTIMEO",
            sockets::timed_splice,
        ),
        subject(
            "preadv2-timed",
            "preadv2 on a socket with SO_RCVTIMEO",
            sockets::timed_preadv2,
        ),
        subject(
            "pwritev2-timed",
            "pwritev2 on a socket with SO_SNDTIMEO",
            sockets::timed_pwritev2,
        ),
        subject(
            "recvmmsg-timed",
            "recvmmsg with a time-out, for which nothing has come yet",
            sockets::timed_recvmmsg,
        ),
        subject(
            "connect-timed",
            "connect to a unix socket with a full backlog and SO_SNDTIMEO",
            sockets::timed_connect,
        ),
        subject("recv-timed", "recv with SO_RCVTIMEO", sockets::timed_recv),
        subject(
            "recv-twice",
            "recv with SO_RCVTIMEO, stopped twice",
            sockets::recv_twice,
        ),
        subject(
            "timed-starved",
            "time-outs that are over, of threads that wait for a processor since",
            starved::starved,
        ),
        subject(
            "accept-unix",
            "accept on a unix socket",
            sockets::accept_unix,
        ),
        subject("accept-tcp", "accept on a TCP socket", sockets::accept_tcp),
        subject(
            "connect-unix",
            "connect to a unix socket with a full backlog",
            sockets::connect,
        ),
        subject("wait4", "wait4", waiting::wait4),
        subject("waitid", "waitid", waiting::waitid),
        subject("flock-wait", "flock", locks::flock),
        subject("posix-lock-wait", "fcntl(F_SETLKW)", locks::posix),
        subject("ofd-lock-wait", "fcntl(F_OFD_SETLKW)", locks::ofd),
        subject("msgrcv", "msgrcv", ipc::msgrcv),
        subject("msgsnd", "msgsnd to a full queue", ipc::msgsnd),
        subject("semop", "semop", ipc::semop),
        subject("semtimedop", "semtimedop", ipc::semtimedop),
        subject(
            "semtimedop-twice",
            "semtimedop, stopped twice",
            ipc::semtimedop_twice,
        ),
        subject("semop-undo", "semop with SEM_UNDO", ipc::semop_undo),
        subject("mq-receive", "mq_receive", ipc::mq_receive),
        subject(
            "compat-read",
            "read as i386 makes it (int $0x80)",
            compat::read,
        ),
        subject("compat-epoll", "epoll_wait as i386 makes it", compat::epoll),
        subject("compat-sleep", "nanosleep as i386 makes it", compat::sleep),
        subject("mq-timedreceive", "mq_timedreceive", ipc::mq_timedreceive),
        subject(
            "futex-in-turn",
            "the order of threads that wait at a futex",
            turns::futex,
        ),
        subject(
            "semop-in-turn",
            "the order of threads that wait for a semaphore",
            turns::semaphore,
        ),
        subject(
            "msgrcv-in-turn",
            "the order of threads that wait for a System V message",
            turns::messages,
        ),
        subject(
            "mq-receive-in-turn",
            "the order of threads that wait for a POSIX message",
            turns::posix_messages,
        ),
        subject(
            "read-pipe-in-turn",
            "the order of threads that read an empty pipe",
            turns::pipe,
        ),
        subject(
            "accept-in-turn",
            "the order of threads that accept",
            turns::accept,
        ),
        subject(
            "epoll-in-turn",
            "the order of threads that wait at one epoll instance",
            turns::epoll,
        ),
        subject(
            "mq-receive-notified",
            "mq_receive of a queue that somebody is notified of when nobody waits",
            turns::told_of_none,
        ),
    ],
};
