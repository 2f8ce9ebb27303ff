//! Threads whose connection has come about since they were stopped in connect(2).
//!
//! The call is made again, and tells then what has come of the one that was begun. A socket that is made again is
//! connected already, so that it would fail (EISCONN): those threads come back from it.

use persist_mem::manifest::{
    Connection, DescriptionKind, Descriptor, Live, Manifest, SocketState, State, Thread,
    ThreadFiles,
};
use std::collections::BTreeSet;
use sys::Tid;
use sys::regs::{NO_SYSCALL, Regs, restart};

const CONNECT: i64 = 42;

/// Has them return.
pub(super) fn settle(manifest: &mut Manifest) {
    let lives = manifest.processes.iter().filter_map(|it| it.live());
    let own = lives.filter(|live| live.traced.is_none());
    let connecting = own.flat_map(|live| {
        let threads = live.threads.iter();
        threads.filter(|thread| is_done(manifest, live, thread))
    });
    let done: BTreeSet<Tid> = connecting.map(|thread| thread.tid).collect();
    for process in &mut manifest.processes {
        let State::Live(live) = &mut process.state else {
            continue;
        };
        for thread in live.threads.iter_mut().filter(|it| done.contains(&it.tid)) {
            thread.regs.rax = 0;
            thread.regs.orig_rax = NO_SYSCALL;
            thread.socket_wait = None;
        }
    }
}

/// Whether a thread makes connect(2) again, and its socket is connected.
fn is_done(manifest: &Manifest, live: &Live, thread: &Thread) -> bool {
    let Some(fd) = asks_again(&thread.regs) else {
        return false;
    };
    let entry = table(live, thread).iter().find(|entry| entry.fd == fd);
    entry.is_some_and(|entry| is_connected(manifest, entry))
}

/// The descriptor that a thread with these registers makes connect(2) on again.
fn asks_again(regs: &Regs) -> Option<i32> {
    const AGAIN: [i64; 2] = [-restart::ERESTARTSYS, -restart::ERESTARTNOHAND];
    let (nr, result) = regs.interrupted_syscall()?;
    (nr == CONNECT && AGAIN.contains(&result)).then_some(regs.rdi as i32)
}

/// The descriptors of a thread.
fn table<'a>(live: &'a Live, thread: &'a Thread) -> &'a [Descriptor] {
    match &thread.files {
        None => &live.files,
        Some(ThreadFiles::Own(files)) => files,
        Some(ThreadFiles::Of(tid)) => {
            let other = live.threads.iter().find(|other| other.tid == *tid);
            match other.and_then(|other| other.files.as_ref()) {
                Some(ThreadFiles::Own(files)) => files,
                _ => &[],
            }
        }
    }
}

fn is_connected(manifest: &Manifest, entry: &Descriptor) -> bool {
    let description = manifest.description(entry.description);
    let Some(DescriptionKind::Socket(socket)) = description.map(|it| &it.kind) else {
        return false;
    };
    match &socket.state {
        SocketState::Inet(state) => state.connection.as_ref().is_some_and(lasts),
        _ => false,
    }
}

/// Of one that is over the call tells why.
fn lasts(connection: &Connection) -> bool {
    !connection.over && !connection.failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connect_that_is_made_again_is_looked_at() {
        let regs = |nr: i64, result: i64| Regs {
            orig_rax: nr.cast_unsigned(),
            rax: (-result).cast_unsigned(),
            rdi: 5,
            ..Regs::default()
        };
        let (again, of_socket) = (restart::ERESTARTSYS, restart::ERESTARTNOHAND);
        assert_eq!(asks_again(&regs(CONNECT, again)), Some(5));
        assert_eq!(asks_again(&regs(CONNECT, of_socket)), Some(5));
        assert_eq!(asks_again(&regs(CONNECT, 0)), None);
        assert_eq!(asks_again(&regs(CONNECT, 111)), None);
        assert_eq!(asks_again(&regs(43, again)), None);
    }

    #[test]
    fn a_connection_that_is_over_is_told_of() {
        let connection = Connection::default();
        assert!(lasts(&connection));
        let over = Connection {
            over: true,
            ..connection
        };
        assert!(!lasts(&over));
    }
}
