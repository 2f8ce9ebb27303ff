//! What terminals tell only once (include/linux/tty.h), and what waits in them (drivers/tty/n_tty.c).

use super::{Kernel, Unreadable, half, word};
use std::os::fd::BorrowedFd;
use sys::tty::queues::{Echo, Queues};

/// Bytes that a line discipline keeps (`N_TTY_BUF_SIZE`); one of them stays free.
const ROOM: u64 = 4096;
/// More buffers than a terminal has (`TTYB_DEFAULT_MEM_LIMIT`, drivers/tty/tty_buffer.c).
const MOST: usize = 4096;

const BACKSPACE: u8 = 8;

const WRONG: Unreadable = Unreadable::Inconsistent("a terminal");

impl Kernel {
    /// Status of packet mode that the master of a pseudo terminal, which a descriptor of this process is open on, has
    /// not read (`TIOCPKT_*`). It is kept at the slave's side.
    pub(crate) fn packet_status(&mut self, master: BorrowedFd<'_>) -> Result<u8, Unreadable> {
        let status = self.btf.field("tty_struct", "ctrl.pktstatus")?.offset;
        let [_, slave] = self.pair(master)?;
        let read = self.read(&[(slave.wrapping_add(status), 1)])?.pop();
        read.flatten()
            .and_then(|bytes| bytes.first().copied())
            .ok_or(WRONG)
    }

    /// Whether anything waits in the pseudo terminal of a master that a descriptor of this process is open on, and
    /// nobody has its slave open.
    pub(crate) fn waits_without_slave(
        &mut self,
        master: BorrowedFd<'_>,
    ) -> Result<bool, Unreadable> {
        let count = self.btf.field("tty_struct", "count")?.offset;
        let [master, slave] = self.pair(master)?;
        let count = self.read(&[(slave.wrapping_add(count), 4)])?.pop();
        let count = count.flatten().and_then(|bytes| half(&bytes, 0));
        // Its master counts as one (drivers/tty/pty.c, `pty_common_install`).
        if count.ok_or(WRONG)? > 1 {
            return Ok(false);
        }
        for side in [master, slave] {
            let taken = self.discipline(side)?;
            if taken.head != taken.tail || !self.flip_buffers(side)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The terminal that a descriptor of this process is open on, and the other end of its pair.
    fn pair(&mut self, end: BorrowedFd<'_>) -> Result<[u64; 2], Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let terminal = field("tty_file_private", "tty")?;
        let link = field("tty_struct", "link")?;
        let file = self.own_file(end)?;
        let of_file = self.word(file.wrapping_add(private), "an open terminal")?;
        let own = self.word(of_file.wrapping_add(terminal), "an open terminal")?;
        let other = self.word(own.wrapping_add(link), "an open terminal")?;
        Ok([own, other])
    }

    /// What is queued in both directions of the pseudo terminal whose slave a descriptor of this process is open on;
    /// whether it is in canonical mode is for the caller to say.
    pub(crate) fn pty_queues(
        &mut self,
        slave: BorrowedFd<'_>,
        canonical: bool,
    ) -> Result<PtyQueues, Unreadable> {
        let ends = self.pair(slave)?;
        self.queues_between(ends, canonical)
    }

    /// The same, by a descriptor of the master.
    pub(crate) fn pty_queues_by_master(
        &mut self,
        master: BorrowedFd<'_>,
        canonical: bool,
    ) -> Result<PtyQueues, Unreadable> {
        let [master, slave] = self.pair(master)?;
        self.queues_between([slave, master], canonical)
    }

    fn queues_between(
        &mut self,
        [slave, master]: [u64; 2],
        canonical: bool,
    ) -> Result<PtyQueues, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let flow = [
            field("tty_struct", "flow.stopped")?,
            field("tty_struct", "flow.tco_stopped")?,
        ];
        let flow = self.read(&flow.map(|at| (slave.wrapping_add(at), 1)))?;
        let flow: Option<Vec<bool>> = flow.into_iter().map(|bytes| Some(bytes? != [0])).collect();
        let [stopped, held] = flow.ok_or(WRONG)?[..] else {
            return Err(WRONG);
        };
        let (input, behind) = (self.discipline(slave)?, self.flip_buffers(slave)?);
        let (shown, waiting) = (self.discipline(master)?, self.flip_buffers(master)?);
        let moving =
            !behind.is_empty() && !input.is_full() || !waiting.is_empty() && !shown.is_full();
        let (lines, rest) = match canonical {
            true => input.lines(),
            false => (Vec::new(), input.between(input.tail, input.head)),
        };
        let queues = Queues {
            lines,
            rest,
            behind,
            output: [shown.between(shown.tail, shown.head), waiting].concat(),
            stopped: stopped && !held,
            held,
            echo: input.echo.decode()?,
            literal: input.literal,
            columns: input.echo.columns,
        };
        Ok(PtyQueues { queues, moving })
    }

    /// The line discipline of one side.
    fn discipline(&mut self, terminal: u64) -> Result<Discipline, Unreadable> {
        let data = self.btf.field("tty_struct", "disc_data")?.offset;
        let field = |path| Ok(self.btf.field("n_tty_data", path)?.offset);
        let marks = [
            field("read_head")?,
            field("canon_head")?,
            field("read_tail")?,
        ];
        let (buffer, flags) = (field("read_buf")?, field("read_flags")?);
        let echo = [field("echo_tail")?, field("echo_head")?];
        let columns = [field("column")?, field("canon_column")?];
        let echoed = field("echo_buf")?;
        let (next, next_bit) = self.btf.flag("n_tty_data", "lnext")?;
        let size = self.btf.size_of("n_tty_data")? as usize;
        let data = self.word(terminal.wrapping_add(data), "a terminal")?;
        let bytes = self.read(&[(data, size)])?.pop().flatten().ok_or(WRONG)?;
        let part = |at: u64, len| bytes.get(at as usize..)?.get(..len);
        let [head, lines, tail] = marks.map(|at| word(&bytes, at));
        let [from, to] = echo.map(|at| word(&bytes, at));
        let [column, line] = columns.map(|at| half(&bytes, at));
        let found = Discipline {
            head: head.ok_or(WRONG)?,
            lines: lines.ok_or(WRONG)?,
            tail: tail.ok_or(WRONG)?,
            buffer: part(buffer, ROOM as usize).ok_or(WRONG)?.to_vec(),
            flags: part(flags, ROOM as usize / 8).ok_or(WRONG)?.to_vec(),
            echo: EchoBuffer {
                from: from.ok_or(WRONG)?,
                to: to.ok_or(WRONG)?,
                bytes: part(echoed, ROOM as usize).ok_or(WRONG)?.to_vec(),
                columns: (column.ok_or(WRONG)?, line.ok_or(WRONG)?),
            },
            literal: part(next, 1).ok_or(WRONG)?[0] & next_bit != 0,
        };
        let echo = found.echo.to.wrapping_sub(found.echo.from);
        match found.head.wrapping_sub(found.tail) < ROOM && echo <= ROOM {
            true => Ok(found),
            false => Err(WRONG),
        }
    }

    /// What was sent to one side and its line discipline has not taken yet (include/linux/tty_buffer.h).
    fn flip_buffers(&mut self, terminal: u64) -> Result<Vec<u8>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (port, first) = (field("tty_struct", "port")?, field("tty_port", "buf.head")?);
        let next = field("tty_buffer", "next")?;
        let marks = [field("tty_buffer", "read")?, field("tty_buffer", "commit")?];
        let (size, data) = (
            self.btf.size_of("tty_buffer")?,
            field("tty_buffer", "data")?,
        );
        let port = self.word(terminal.wrapping_add(port), "a terminal")?;
        let mut at = self.word(port.wrapping_add(first), "a terminal")?;
        let mut found = Vec::new();
        for _ in 0..MOST {
            if at == 0 {
                return Ok(found);
            }
            let bytes = self
                .read(&[(at, size as usize)])?
                .pop()
                .flatten()
                .ok_or(WRONG)?;
            let [read, commit] = marks.map(|mark| half(&bytes, mark));
            let (read, commit) = (read.ok_or(WRONG)?, commit.ok_or(WRONG)?);
            let len = commit.checked_sub(read).ok_or(WRONG)? as usize;
            if len > 0 {
                let from = at.wrapping_add(data).wrapping_add(read.into());
                let part = self.read(&[(from, len)])?.pop().flatten();
                found.extend(part.filter(|part| part.len() == len).ok_or(WRONG)?);
            }
            at = word(&bytes, next).ok_or(WRONG)?;
        }
        Err(WRONG)
    }
}

/// What waits in a pseudo terminal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PtyQueues {
    pub(crate) queues: Queues,
    /// The kernel is about to pass some of it on.
    pub(crate) moving: bool,
}

/// What a line discipline has taken in: a ring, with marks that only grow.
struct Discipline {
    head: u64,
    /// Where the last complete line ends.
    lines: u64,
    tail: u64,
    buffer: Vec<u8>,
    /// Bits of bytes that end a line.
    flags: Vec<u8>,
    echo: EchoBuffer,
    /// The next byte means itself (`^V`).
    literal: bool,
}

/// What a line discipline has to echo: a ring of bytes and operations.
struct EchoBuffer {
    from: u64,
    to: u64,
    bytes: Vec<u8>,
    /// Columns where output is, and where the line began that is typed.
    columns: (u32, u32),
}

impl EchoBuffer {
    /// The bytes that are echoed so (drivers/tty/n_tty.c, `__process_echoes`).
    fn decode(&self) -> Result<Vec<Echo>, Unreadable> {
        const OPERATION: u8 = 0xff;
        const BACK: u8 = 0x80;
        const LINE_BEGINS: u8 = 0x81;
        const ERASE_TAB: u8 = 0x82;
        let len = self.to.wrapping_sub(self.from).min(ROOM);
        let at = |n: u64| self.bytes[(self.from.wrapping_add(n) % ROOM) as usize];
        let mut bytes = (0..len).map(at);
        let (mut column, mut line) = self.columns;
        let mut found: Vec<Echo> = Vec::new();
        while let Some(byte) = bytes.next() {
            let (byte, count, as_control) = match byte {
                OPERATION => match bytes.next().ok_or(WRONG)? {
                    OPERATION => (OPERATION, 1, false),
                    BACK => (BACKSPACE, 1, false),
                    // It comes by itself with the first byte of a line.
                    LINE_BEGINS => {
                        line = column;
                        continue;
                    }
                    ERASE_TAB => {
                        let since = u32::from(bytes.next().ok_or(WRONG)?);
                        // Columns since a tab before it, or since the line began.
                        let since = if since & 0x80 == 0 {
                            since + line
                        } else {
                            since
                        };
                        (BACKSPACE, 8 - (since & 7), false)
                    }
                    byte => (byte, 1, true),
                },
                byte => (byte, 1, false),
            };
            for _ in 0..count {
                found.push(Echo { byte, as_control });
                column = column_after(column, byte, as_control);
            }
        }
        Ok(found)
    }
}

/// The column after a byte was shown with the usual settings (`do_output_char`).
fn column_after(column: u32, byte: u8, as_control: bool) -> u32 {
    match byte {
        _ if as_control => column.wrapping_add(2),
        b'\n' | b'\r' => 0,
        b'\t' => (column | 7).wrapping_add(1),
        BACKSPACE => column.saturating_sub(1),
        byte if byte.is_ascii_control() => column,
        _ => column.wrapping_add(1),
    }
}

impl Discipline {
    fn is_full(&self) -> bool {
        self.head.wrapping_sub(self.tail) + 1 >= ROOM
    }

    fn between(&self, from: u64, to: u64) -> Vec<u8> {
        let len = to.wrapping_sub(from).min(ROOM);
        (0..len)
            .map(|n| self.buffer[(from.wrapping_add(n) % ROOM) as usize])
            .collect()
    }

    /// Complete lines, each with what ends it, and what follows them.
    fn lines(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut lines = Vec::new();
        let mut begin = self.tail;
        let complete = self.lines.wrapping_sub(self.tail).min(ROOM);
        for at in (0..complete).map(|n| self.tail.wrapping_add(n)) {
            let place = (at % ROOM) as usize;
            if self.flags[place / 8] & 1 << (place % 8) == 0 {
                continue;
            }
            let end = at.wrapping_add(1);
            lines.push(self.between(begin, end));
            begin = end;
        }
        (lines, self.between(begin, self.head))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;
    use sys::tty;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let master = open("/dev/ptmx", flags, Mode::empty()).unwrap();
        tty::set_locked(&master, false).unwrap();
        let slave = tty::peer(&master, flags.bits()).unwrap();
        (master, slave)
    }

    fn queued(slave: &OwnedFd, canonical: bool) -> Option<Queues> {
        std::thread::sleep(Duration::from_millis(50));
        readable(look(|kernel| kernel.pty_queues(slave.as_fd(), canonical)))
            .map(|found| found.queues)
    }

    #[test]
    fn lines_and_echoes_are_as_they_were_written() {
        let (master, slave) = pair();
        nix::unistd::write(&master, b"one\ntwo\x04three\n\x04fou").unwrap();
        nix::unistd::read(&slave, &mut [0; 2]).unwrap();
        let Some(found) = queued(&slave, true) else {
            return;
        };
        assert_eq!(found.lines, [&b"e\n"[..], b"two\0", b"three\n", b"\0"]);
        assert_eq!(found.rest, b"fou");
        assert_eq!(found.output, b"one\r\ntwothree\r\nfou");
        assert!(found.behind.is_empty() && !found.stopped && !found.held);
    }

    #[test]
    fn echo_that_waits_and_a_byte_that_is_to_come() {
        let (master, slave) = pair();
        nix::unistd::write(&master, b"\x13a\tb\x01\x7f\x7f\x7f\n\xff\x16").unwrap();
        let Some(found) = queued(&slave, true) else {
            return;
        };
        let control = |byte| (byte, true);
        let plain = |bytes: &[u8]| bytes.iter().map(|byte| (*byte, false)).collect::<Vec<_>>();
        let expected = [
            plain(b"a\tb"),
            vec![control(1)],
            // Both bytes of ^A, the letter, the tab behind the other letter.
            plain(&[b"\x08 \x08".repeat(3), b"\x08".repeat(7)].concat()),
            plain(b"\n\xff^\x08"),
        ];
        let echo: Vec<_> = found.echo.iter().map(|e| (e.byte, e.as_control)).collect();
        assert_eq!(echo, expected.concat());
        assert!(found.stopped && found.literal && found.output.is_empty());
        assert_eq!(
            (found.lines, found.rest),
            (vec![b"a\n".to_vec()], vec![0xff])
        );
        nix::unistd::write(&master, b"x").unwrap();
        assert!(!queued(&slave, true).unwrap().literal);
    }

    #[test]
    fn full_input_has_more_behind_it() {
        let (master, slave) = pair();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let mut written = 0;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(1));
            written += nix::unistd::write(&master, &line).unwrap_or(0);
        }
        nix::unistd::write(&slave, b"shown").unwrap_or(0);
        let Some(found) = queued(&slave, true) else {
            return;
        };
        let lines: usize = found.lines.iter().map(Vec::len).sum();
        assert_eq!(lines + found.rest.len(), 4095);
        assert_eq!(lines + found.rest.len() + found.behind.len(), written);
    }
}
