//! Data of TCP that the kernel holds back because more will follow: it is sent by itself a moment later.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Result, bail};
use libc::{MSG_MORE, SO_PEEK_OFF, SOL_SOCKET};

use super::tcp_queues::pair;
use crate::kit::files::read;
use crate::kit::net::{option, set_option};
use crate::kit::{SOON, Setting, Watch, not_here, same, sys, until};

/// As many that at any moment most of them hold something back, each for 200 ms.
const PAIRS: usize = 8;
const PAUSE: Duration = Duration::from_millis(30);

/// What the threads tell.
#[derive(Default)]
struct Told {
    received: AtomicU32,
    /// A number is to be left out.
    skip: AtomicBool,
    wrong: Mutex<Option<String>>,
}

impl Told {
    fn set_wrong(&self, text: String) {
        self.wrong
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .get_or_insert(text);
    }
}

fn send_part(to: &TcpStream, bytes: &[u8]) -> Result<()> {
    // SAFETY: the buffer has the length that is given.
    let sent = unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), MSG_MORE) };
    sys("send", sent).map(drop)
}

/// Sends numbers, one at a time to each.
fn send_numbers(ends: &[TcpStream], told: &Told) -> Result<()> {
    for number in 0_u32.. {
        for end in ends {
            if !told.skip.swap(false, Ordering::SeqCst) {
                send_part(end, &number.to_ne_bytes())?;
            }
            sleep(PAUSE);
        }
    }
    Ok(())
}

/// Reads numbers, which come in order.
fn read_numbers(mut end: &TcpStream, told: &Told) -> Result<()> {
    end.set_nonblocking(false)?;
    for number in 0_u32.. {
        let mut bytes = [0; 4];
        end.read_exact(&mut bytes)?;
        let found = u32::from_ne_bytes(bytes);
        if found != number {
            bail!("{found} has come, not {number}");
        }
        told.received.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Small pieces with `MSG_MORE`, from the end with the higher number or the lower one.
pub(crate) fn held_back(_: &Setting) -> Result<Watch> {
    let told = Arc::new(Told::default());
    let mut senders = Vec::new();
    for number in 0..PAIRS {
        let [first, second] = pair()?;
        let (from, to) = match number % 2 {
            0 => (second, first),
            _ => (first, second),
        };
        senders.push(from);
        let told = told.clone();
        spawn(move || {
            if let Err(error) = read_numbers(&to, &told) {
                told.set_wrong(format!("connection {number}: {error:#}"));
            }
        });
    }
    let sending = told.clone();
    spawn(move || {
        if let Err(error) = send_numbers(&senders, &sending) {
            sending.set_wrong(format!("sending: {error:#}"));
        }
    });
    let spoiling = told.clone();
    Ok(Watch::new(move || {
        let before = told.received.load(Ordering::SeqCst);
        until("more numbers, or a wrong one", SOON, || {
            let wrong = told.wrong.lock().is_ok_and(|wrong| wrong.is_some());
            wrong || told.received.load(Ordering::SeqCst) > before + 2 * PAIRS as u32
        })?;
        match told.wrong.lock() {
            Ok(wrong) if wrong.is_none() => Ok(()),
            Ok(wrong) => bail!("{}", wrong.as_deref().unwrap_or_default()),
            Err(_) => bail!("a thread has ended"),
        }
    })
    .spoiled_by(move || {
        spoiling.skip.store(true, Ordering::SeqCst);
        Ok(())
    }))
}

/// Peeks do not begin at the first byte.
pub(crate) fn peeked(_: &Setting) -> Result<Watch> {
    let [from, to] = pair()?;
    let fd = to.as_raw_fd();
    if set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 2).is_err() {
        let refused = std::io::Error::last_os_error();
        return match refused.raw_os_error() {
            Some(libc::EOPNOTSUPP) => not_here("SO_PEEK_OFF of TCP, which came with Linux 6.9"),
            _ => Err(refused.into()),
        };
    }
    let fill = move || {
        (&from).write_all(b"tcp-data")?;
        (&from).write_all(b"-here")?;
        until("all of it", SOON, || peek(fd, 20).len() == 11)?;
        set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 2)
    };
    fill()?;
    let before = option(fd, SOL_SOCKET, SO_PEEK_OFF)?;
    Ok(Watch::new(move || {
        let _held = &to;
        let now = option(fd, SOL_SOCKET, SO_PEEK_OFF)?;
        same("where it is peeked at", &before, &now)?;
        same("what is there", b"p-data-here".as_slice(), &peek(fd, 20))?;
        set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 0)?;
        same("all of it", b"tcp-data-here".as_slice(), &read(fd, 20)?)?;
        set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 2)?;
        fill()
    })
    .spoiled_by(move || set_option(fd, SOL_SOCKET, SO_PEEK_OFF, 3)))
}

/// What is peeked at; the place stays where it was.
fn peek(fd: i32, most: usize) -> Vec<u8> {
    let place = option(fd, SOL_SOCKET, SO_PEEK_OFF).unwrap_or_default();
    let mut bytes = vec![0_u8; most];
    // SAFETY: the buffer has the length that is given.
    let got = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(fd, bytes.as_mut_ptr().cast(), most, flags)
    };
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    let place = place
        .first_chunk()
        .map_or(0, |word| i32::from_ne_bytes(*word));
    // It was there before.
    let _ = set_option(fd, SOL_SOCKET, SO_PEEK_OFF, place);
    bytes
}
