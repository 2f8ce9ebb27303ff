//! Who is asked about calls that seccomp filters leave open (seccomp_unotify(2)).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::channel;
use std::thread::spawn;

use anyhow::Result;

use super::seccomp::{ask, install};
use crate::kit::files::{close, ready};
use crate::kit::net::{pair, receive_descriptor, send_descriptor};
use crate::kit::{Kin, SOON, Setting, Watch, args, raw, same, sys, until};

const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
/// What the first call is answered with.
const FIRST: i64 = 1000;

/// Waits for a call and answers it.
fn decide(listener: i32, value: i64) -> Result<()> {
    let ioctl = |request, argument: u64| {
        let done = raw(libc::SYS_ioctl, args([listener as u64, request, argument]));
        sys("an ioctl of a listener", done)
    };
    // struct seccomp_notif, of which the number comes first, and struct seccomp_notif_resp.
    let mut call = [0_u64; 10];
    ioctl(RECEIVE, call.as_mut_ptr() as u64)?;
    let answer = [call[0], value.cast_unsigned(), 0];
    ioctl(SEND, answer.as_ptr() as u64).map(drop)
}

fn call() -> i64 {
    raw(libc::SYS_getppid, [0; 6])
}

/// A child whose calls its parent decides about, which alone has the listener, with another filter below.
pub(crate) fn of_child(setting: &Setting) -> Result<Watch> {
    let [mine, theirs] = pair(libc::SOCK_STREAM)?;
    let mut child = Kin::start(setting, "child", |_| {
        install(libc::SYS_getpgrp, 78)?;
        let listener = ask(libc::SYS_getppid)?;
        send_descriptor(theirs, listener)?;
        [listener, mine, theirs].into_iter().for_each(close);
        let mut next = FIRST;
        Ok(Watch::new(move || {
            for _ in 0..2 {
                same("the answer", &next, &call())?;
                next += 1;
            }
            same("the other filter", &-78, &raw(libc::SYS_getpgrp, [0; 6]))
        }))
    })?;
    let listener = receive_descriptor(mine)?;
    [mine, theirs].into_iter().for_each(close);
    let value = Arc::new(AtomicI64::new(FIRST));
    let spoiled = value.clone();
    spawn(move || while decide(listener, value.fetch_add(1, Ordering::SeqCst)).is_ok() {});
    // The thread has taken the number of the next answer by then.
    let watch = Watch::new(move || child.check());
    Ok(watch.spoiled_by(move || {
        spoiled.fetch_add(100, Ordering::SeqCst);
        Ok(())
    }))
}

/// A thread whose call waits for a decision of another one of its process.
pub(crate) fn waiting(_: &Setting) -> Result<Watch> {
    let (send, listeners) = channel();
    let found = Arc::new(AtomicI64::new(0));
    let store = found.clone();
    spawn(move || {
        let asked = ask(libc::SYS_getppid);
        let goes_on = asked.is_ok();
        let _ = send.send(asked);
        if goes_on {
            loop {
                store.store(call(), Ordering::SeqCst);
            }
        }
    });
    let listener = listeners.recv_timeout(SOON)??;
    let asked = move || ready(listener, libc::POLLIN).is_ok_and(|found| found == libc::POLLIN);
    until("it asks", SOON, asked)?;
    let mut next = FIRST;
    let mut last = 0;
    let spoiled = found.clone();
    Ok(Watch::new(move || {
        until("it asks", SOON, asked)?;
        same("the last answer", &last, &found.load(Ordering::SeqCst))?;
        decide(listener, next)?;
        until("it goes on", SOON, || found.load(Ordering::SeqCst) == next)?;
        last = next;
        next += 1;
        until("it asks again", SOON, asked)
    })
    .spoiled_by(move || {
        spoiled.store(5, Ordering::SeqCst);
        Ok(())
    }))
}
