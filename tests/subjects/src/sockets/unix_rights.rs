//! Descriptors in flight where nobody can peek at them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libc::{
    AF_INET, AF_UNIX, MSG_OOB, MSG_PEEK, O_APPEND, O_RDWR, SO_PASSCRED, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use super::unix_named::{accept, bytes, connect, listen};
use crate::kit::files::{close, fcntl, open, place, read, seen, share, write};
use crate::kit::net::{
    pair, receive_descriptor, receive_with_sender, send_descriptor, send_descriptor_alone,
    set_option, socket,
};
use crate::kit::{Setting, Watch, fd, same, sys};

/// A pipe: where it is read and where it is written.
fn pipe() -> Result<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    sys("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    Ok(ends)
}

/// What a client sends: descriptors of several kinds that the subject has as well.
struct Kept {
    file: i32,
    event: i32,
    udp: i32,
    end: i32,
    path: PathBuf,
    /// Of the pipe whose other end is in flight.
    writer: i32,
}

impl Kept {
    fn new(setting: &Setting) -> Result<Kept> {
        let path = setting.fresh("file");
        fs::write(&path, "0123456789")?;
        let file = open(&path, O_RDWR)?;
        place(file, Some(2))?;
        // SAFETY: takes numbers.
        let event = fd("eventfd", unsafe { libc::eventfd(7, 0) })?;
        let [end, _] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
        let [reader, writer] = pipe()?;
        close(reader);
        Ok(Kept {
            file,
            event,
            udp: socket(AF_INET, SOCK_DGRAM, 0)?,
            end,
            path,
            writer,
        })
    }

    fn all(&self) -> [i32; 4] {
        [self.file, self.event, self.udp, self.end]
    }

    /// Sends them, and a file, a directory and an end of a pipe that nobody else has.
    fn send(&mut self, over: i32) -> Result<()> {
        for one in self.all() {
            send_descriptor(over, one)?;
        }
        close(self.writer);
        let [reader, writer] = pipe()?;
        self.writer = writer;
        write(writer, b"in the pipe")?;
        let file = open(&self.path, O_RDWR | O_APPEND)?;
        place(file, Some(6))?;
        let directory = open(
            self.path.parent().context("a directory")?,
            libc::O_DIRECTORY,
        )?;
        for one in [file, directory, reader] {
            send_descriptor(over, one)?;
            close(one);
        }
        Ok(())
    }

    /// Receives all of that.
    fn receive(&self, over: i32) -> Result<()> {
        let me = std::process::id().cast_signed();
        for one in self.all() {
            let got = receive_descriptor(over)?;
            same("one description", &true, &share(got, me, one)?)?;
            close(got);
        }
        let [file, directory, reader] = [
            receive_descriptor(over)?,
            receive_descriptor(over)?,
            receive_descriptor(over)?,
        ];
        same("its place", &6, &place(file, None)?)?;
        same(
            "a flag",
            &O_APPEND,
            &(fcntl(file, libc::F_GETFL, 0)? & O_APPEND),
        )?;
        same("the file", b"6789".as_slice(), &read(file, 100)?)?;
        let parent = self.path.parent().context("a directory")?;
        same(
            "a directory",
            &parent.display().to_string(),
            &seen(directory)?.2,
        )?;
        same("the pipe", b"in the pipe".as_slice(), &read(reader, 100)?)?;
        write(self.writer, b"more")?;
        same("what follows", b"more".as_slice(), &read(reader, 100)?)?;
        [file, directory, reader].into_iter().for_each(close);
        Ok(())
    }
}

/// Clients of a stream and of packets that nobody has accepted; one of them has gone.
pub(crate) fn unaccepted(setting: &Setting) -> Result<Watch> {
    let mut all = Vec::new();
    for (kind, name) in [(SOCK_STREAM, "stream"), (SOCK_SEQPACKET, "packets")] {
        let path = bytes(&setting.fresh(name));
        all.push((kind, listen(kind, &path, 5)?, path));
    }
    let mut kept = Kept::new(&setting.part("kept"))?;
    let spoilt = [all[0].1, all[1].1];
    let come = |kept: &mut Kept, all: &[(i32, i32, Vec<u8>)], at: usize| {
        let (kind, _, path) = &all[at];
        let client = connect(*kind, path)?;
        kept.send(client)?;
        write(client, b"words")?;
        let gone = connect(*kind, path)?;
        send_descriptor(gone, kept.event)?;
        close(gone);
        anyhow::Ok(client)
    };
    let mut at = 0;
    let mut client = come(&mut kept, &all, at)?;
    Ok(Watch::new(move || {
        let listener = all[at].1;
        let [server, left] = [accept(listener)?, accept(listener)?];
        kept.receive(server)?;
        set_option(server, SOL_SOCKET, SO_PASSCRED, 1)?;
        let (data, sender) = receive_with_sender(server)?;
        same("what follows", b"words".as_slice(), &data)?;
        same("who sent it", &std::process::id().cast_signed(), &sender)?;
        let got = receive_descriptor(left)?;
        let me = std::process::id().cast_signed();
        same("of one who is gone", &true, &share(got, me, kept.event)?)?;
        [server, left, client, got].into_iter().for_each(close);
        at = (at + 1) % all.len();
        client = come(&mut kept, &all, at)?;
        Ok(())
    })
    .spoiled_by(move || {
        // One of them has clients.
        spoilt
            .into_iter()
            .for_each(|listener| drop(accept(listener)));
        Ok(())
    }))
}

/// Empty messages with descriptors, one of which was peeked at, and descriptors before and behind urgent data.
pub(crate) fn hidden(setting: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    let [from, to] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    let path = setting.fresh("file");
    fs::write(&path, "0123456789")?;
    let held = socket(AF_UNIX, SOCK_DGRAM, 0)?;
    let fill = move || {
        let file = open(&path, O_RDWR)?;
        place(file, Some(4))?;
        for sent in [held, file] {
            send_descriptor_alone(one, sent)?;
            send_descriptor(from, sent)?;
        }
        close(file);
        // SAFETY: there is room for one byte; one byte is read.
        unsafe {
            sys(
                "recv",
                libc::recv(two, [0_u8].as_mut_ptr().cast(), 1, MSG_PEEK),
            )?;
            sys("send", libc::send(from, b"!".as_ptr().cast(), 1, MSG_OOB))?;
        }
        send_descriptor(from, held)
    };
    fill()?;
    let me = std::process::id().cast_signed();
    let expect = move |over: i32| {
        let [first, file] = [receive_descriptor(over)?, receive_descriptor(over)?];
        same("one description", &true, &share(first, me, held)?)?;
        same("its place", &4, &place(file, None)?)?;
        close(first);
        close(file);
        anyhow::Ok(())
    };
    Ok(Watch::new(move || {
        expect(two)?;
        same("another", &true, &read(two, 9).is_err())?;
        expect(to)?;
        let mut byte = 0_u8;
        // SAFETY: one byte is written.
        sys("recv", unsafe {
            libc::recv(to, (&raw mut byte).cast(), 1, MSG_OOB)
        })?;
        same("the urgent byte", &b'!', &byte)?;
        // Before Linux 6.10 an urgent byte that was read is once more taken for the end of what there is.
        let last = receive_descriptor(to).or_else(|_| receive_descriptor(to))?;
        same("behind it", &true, &share(last, me, held)?)?;
        close(last);
        fill()
    })
    .spoiled_by(move || read(two, 9).map(drop)))
}

/// What nobody but the message has, and nothing leads to: it is refused.
pub(crate) fn lost(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("socket"));
    let listener = listen(SOCK_STREAM, &path, 5)?;
    let come = move || {
        let client = connect(SOCK_STREAM, &path)?;
        // SAFETY: takes numbers.
        let event = fd("eventfd", unsafe { libc::eventfd(7, 0) })?;
        send_descriptor(client, event)?;
        close(event);
        anyhow::Ok(client)
    };
    let mut client = come()?;
    Ok(Watch::new(move || {
        let server = accept(listener)?;
        let event = receive_descriptor(server)?;
        same(
            "its count",
            7_u64.to_ne_bytes().as_slice(),
            &read(event, 8)?,
        )?;
        [server, event, client].into_iter().for_each(close);
        client = come()?;
        Ok(())
    })
    .spoiled_by(move || accept(listener).map(drop)))
}
