//! Connections that go on: how far they have received, and what they have to send.

use super::buffers;
use crate::FreezerError;
use crate::files::Open;
use crate::files::socket::queue::{Message, from_start};
use crate::kernel::{self, Unreadable};
use nix::libc as c;
use persist_mem::manifest::Connection;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use sys::socket;

/// How long the other end's kernel side may take to say what it has got (delayed acknowledgements).
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(400);
/// Nothing is under way any more that has not moved for so long: packets take no time on this host.
const CALM: Duration = Duration::from_millis(20);
const MORE_THAN_FITS: &str = "it has sent more than its peer can take";

/// How far a live connection has received, and what it has to send.
pub(super) fn numbers(open: &Open<'_>, running: bool) -> Result<Connection, FreezerError> {
    let stalled = stalled(open)?;
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let received = buffers::received(kernel, sk)?;
        let unsent = buffers::unsent(kernel, sk)?;
        Ok((received, unsent))
    });
    match found {
        // It changed while it was read, and will not when its process stands still.
        Err(Unreadable::Inconsistent(_)) if running => Ok(Connection::default()),
        Ok((received, unsent)) => Ok(Connection {
            urgent: received.urgent,
            next: received.next,
            first: unsent.first,
            unsent: unsent.bytes,
            ..Connection::default()
        }),
        Err(why) if stalled => Err(open.refuse(format!("{MORE_THAN_FITS} ({why})"))),
        Err(why) if common_events(open)? & c::POLLPRI != 0 => {
            Err(open.refuse(format!("urgent data of TCP is not carried ({why})")))
        }
        Err(why) => {
            log::debug!("fd {}: what it has received and sent: {why}", open.fd);
            Ok(Connection::default())
        }
    }
}

fn common_events(open: &Open<'_>) -> Result<i16, FreezerError> {
    socket::events(open.copy.as_fd()).map_err(open.call("polling"))
}

/// Whether its peer takes nothing of what was sent: its queue is full, and its process does not read.
fn stalled(open: &Open<'_>) -> Result<bool, FreezerError> {
    let (begun, before) = (Instant::now(), unsent(open)?);
    while before != 0 && unsent(open)? == before {
        if begun.elapsed() > patience(open) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// How many bytes it has sent that were not acknowledged.
pub(in crate::files::socket) fn unsent(open: &Open<'_>) -> Result<u32, FreezerError> {
    socket::unsent(open.copy.as_fd()).map_err(open.call("asking for unsent data"))
}

/// How long what it has sent may stand still before it is known that nothing of it moves.
pub(in crate::files::socket) fn patience(open: &Open<'_>) -> Duration {
    let more = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        buffers::waits_for_more(kernel, sk)
    });
    match more {
        Ok(false) => CALM,
        _ => ACKNOWLEDGED_WITHIN,
    }
}

/// What a connection received and nobody has read.
pub(in crate::files::socket) fn queue(
    open: &Open<'_>,
    connection: &Connection,
) -> Result<Vec<Message>, FreezerError> {
    let fd = open.copy.as_fd();
    let reading = "reading what is in its queue";
    if connection.urgent.is_some() {
        // A read ends at the urgent byte, or leaves it out.
        let bytes = kernel::look(|kernel| {
            let sk = kernel.own_sock(fd)?;
            buffers::bytes(kernel, sk)
        });
        let data = bytes.map_err(|why| open.refuse(format!("{reading}: {why}")))?;
        return Ok(vec![Message {
            data,
            ..Message::default()
        }]);
    }
    let total = socket::unread(fd).map_err(open.call("asking for unread data"))? as usize;
    if total == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Message {
        data: from_start(open, total)?,
        ..Message::default()
    }])
}

#[cfg(test)]
mod tests {
    use super::{Duration, Open, numbers};
    use crate::proc::{self, FdInfo};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use sys::Pid;

    #[test]
    fn a_queue_that_changes_is_no_reason_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut to, _) = listener.accept().unwrap();
        let writer = from.try_clone().unwrap();
        let writes = std::thread::spawn(move || while (&writer).write(&[7; 3000]).is_ok() {});
        let reads = std::thread::spawn(move || {
            while to.read(&mut [0; 100_000]).is_ok_and(|n| n > 0) {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let me = Pid(nix::unistd::getpid().as_raw());
        let copy = OwnedFd::from(from);
        let fd = copy.as_raw_fd();
        let (link, info) = (proc::link(me, &format!("fd/{fd}")), FdInfo::read(me, fd));
        let (link, info) = (link.unwrap(), info.unwrap());
        let open = Open::new(me, fd, &link, &info, &copy).unwrap();
        for _ in 0..40 {
            numbers(&open, true).unwrap();
        }
        TcpStream::from(copy).shutdown(Shutdown::Both).unwrap();
        writes.join().unwrap();
        reads.join().unwrap();
    }
}
