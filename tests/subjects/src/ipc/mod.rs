//! System V and POSIX IPC, apart from shared memory.

mod msg;
mod named_sem;
mod posix;
mod sem;
mod users;

use crate::registry::{Group, subject};

/// IPC.
pub(crate) const GROUP: Group = Group {
    name: "ipc",
    subjects: &[
        subject(
            "sem",
            "System V semaphores with values, ids and owners",
            sem::start,
        ),
        subject("sem-undo", "undo of System V semaphores", sem::undo),
        subject(
            "sem-undo-threads",
            "undo of a process with threads that was not the last to change a semaphore",
            sem::undo_threads,
        ),
        subject(
            "sem-undo-of-others",
            "undo of semaphores that threads share and the first thread has not",
            sem::undo_of_others,
        ),
        subject(
            "sem-undo-shared",
            "undo shared by processes (CLONE_SYSVSEM)",
            sem::undo_shared,
        ),
        subject(
            "sem-named",
            "POSIX semaphores with a name, one of them removed since, with a waiter",
            named_sem::start,
        ),
        subject(
            "msg",
            "System V message queues with contents in order",
            msg::start,
        ),
        subject(
            "ipc-users",
            "who used System V objects last, also who has ended since",
            users::start,
        ),
        subject(
            "mqueue",
            "POSIX message queues with contents by priority",
            posix::start,
        ),
        subject(
            "mqueue-notify",
            "notification of POSIX message queues",
            posix::notify,
        ),
        subject(
            "mqueue-notify-filled",
            "notification of POSIX message queues with messages",
            posix::notify_filled,
        ),
        subject(
            "mqueue-notify-thread",
            "notification of POSIX message queues for a thread (SIGEV_THREAD)",
            posix::notify_thread,
        ),
        subject(
            "mqueue-unheld",
            "POSIX message queues with messages that no process has open",
            posix::unheld,
        ),
        subject(
            "mqueue-unlinked",
            "POSIX message queues without a name",
            posix::unlinked,
        ),
        subject(
            "mqueue-path",
            "POSIX message queues opened by their paths",
            posix::by_path,
        ),
        subject(
            "mqueue-taken",
            "a POSIX message queue without a name, while another one has the name",
            posix::taken,
        ),
    ],
};
