//! Many descriptors at once: the beginning of a table, as far as its numbers have no gap, comes to the process in
//! messages (unix(7), `SCM_RIGHTS`). The kernel gives what a message brings the lowest free numbers, in order, and looks
//! once at who may have it instead of at each (pidfd_getfd(2)): a fifth of the time.

use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::{ResurrectError, numbers};
use persist_mem::manifest::{DescriptionId, DescriptionKind, Descriptor, FileTable, Manifest};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use sys::Errno;
use sys::batch::{Batch, Buffer};
use sys::socket::{Outgoing, pair, send};

/// Descriptors of one message, at most (`SCM_MAX_FD`, include/net/scm.h).
const AT_ONCE: usize = 253;
/// Messages under way at a time.
const MESSAGES: usize = 16;
/// Fewer descriptors are taken one by one.
pub(super) const MANY: usize = 64;

const AF_UNIX: i32 = 1;
const SOCK_STREAM: i32 = 1;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_DONTWAIT: i32 = 0x40;
const MSG_CMSG_CLOEXEC: i32 = 0x4000_0000;
const O_CLOEXEC: i32 = 0o2_000_000;
/// `struct cmsghdr`.
const HEADER: usize = 16;

/// Two ends of a connection, the second under a number that no process uses.
pub(super) struct Parcel {
    sender: OwnedFd,
    receiver: OwnedFd,
    /// Rings of io_uring, which the kernel sends to nobody.
    rings: BTreeSet<DescriptionId>,
}

impl Parcel {
    /// None where no number is left.
    pub(super) fn new(manifest: &Manifest) -> Option<Parcel> {
        let (sender, receiver) = pair(AF_UNIX, SOCK_STREAM, 0).ok()?;
        let receiver = numbers::copy(manifest, &receiver).ok()?;
        let all = manifest.descriptions.iter();
        let rings = all.filter(|one| matches!(one.kind, DescriptionKind::Ring(_)));
        Some(Parcel {
            sender,
            receiver,
            rings: rings.map(|ring| ring.id).collect(),
        })
    }

    /// Hands over the descriptors that come first in an empty table, all of them closed on exec. Returns how many.
    pub(super) fn hand_over(
        &self,
        restore: &mut Restore<'_>,
        table: FileTable<'_>,
        wanted: &[&Descriptor],
    ) -> Result<usize, ResurrectError> {
        let in_row = wanted.iter().zip(0..);
        let in_row =
            in_row.take_while(|(file, n)| file.fd == *n && !self.rings.contains(&file.description));
        let row: Vec<DescriptionId> = in_row.map(|(file, _)| file.description).collect();
        if row.len() < MANY {
            return Ok(0);
        }
        self.give(restore, table)?;
        let mut done = 0;
        while done < row.len() {
            let sent = self.send(restore, &row[done..]);
            if sent.is_empty() {
                break;
            }
            self.receive(restore, table, done, &sent)?;
            done += sent.iter().sum::<usize>();
        }
        self.take_away(restore, table)?;
        Ok(done)
    }

    /// Gives the process its end.
    fn give(&self, restore: &mut Restore<'_>, table: FileTable<'_>) -> Result<(), ResurrectError> {
        let receiver = self.receiver.as_raw_fd();
        let pidfd = restore.self_pidfd.as_raw_fd();
        let mut batch = Batch::new();
        let args = [pidfd.into(), receiver.into(), 0.into()];
        let got = batch.call("taking a socket", nr::PIDFD_GETFD, args);
        let args = [got.into(), receiver.into(), O_CLOEXEC.into()];
        batch.call("numbering a socket", nr::DUP3, args);
        batch.call("closing a copy", nr::CLOSE, [got.into()]);
        self.run(restore, table, &batch).map(drop)
    }

    fn take_away(
        &self,
        restore: &mut Restore<'_>,
        table: FileTable<'_>,
    ) -> Result<(), ResurrectError> {
        let mut batch = Batch::new();
        let args = [self.receiver.as_raw_fd().into()];
        batch.call("closing a socket", nr::CLOSE, args);
        self.run(restore, table, &batch).map(drop)
    }

    /// Sends some messages. Returns how many descriptors are in each; none when the kernel allows no more of them to
    /// be under way.
    fn send(&self, restore: &Restore<'_>, row: &[DescriptionId]) -> Vec<usize> {
        let mut sent = Vec::new();
        for some in row.chunks(AT_ONCE).take(MESSAGES) {
            let fds = some.iter().map(|id| restore.files.opened.get(id));
            let fds: Option<Vec<BorrowedFd<'_>>> = fds.map(|fd| fd.map(AsFd::as_fd)).collect();
            let Some(fds) = fds else { break };
            let message = Outgoing {
                data: &[0],
                fds: &fds,
                ..Outgoing::default()
            };
            match send(self.sender.as_fd(), &message, MSG_DONTWAIT) {
                Ok(_) => sent.push(some.len()),
                Err(why) => {
                    log::debug!("descriptors are taken one by one: {why}");
                    break;
                }
            }
        }
        sent
    }

    /// Has the process receive them, the first as number `first`.
    fn receive(
        &self,
        restore: &mut Restore<'_>,
        table: FileTable<'_>,
        first: usize,
        sent: &[usize],
    ) -> Result<(), ResurrectError> {
        let mut batch = Batch::new();
        let mut expected = Vec::new();
        let mut next = first;
        for count in sent {
            let (message, control) = room(&mut batch, *count);
            let flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT;
            let args = [
                self.receiver.as_raw_fd().into(),
                message.into(),
                flags.into(),
            ];
            batch.call("receiving descriptors", nr::RECVMSG, args);
            expected.push((control, rights(next..next + count)));
            next += count;
        }
        let output = self.run(restore, table, &batch)?;
        let right =
            |(control, rights): &(Buffer, Vec<u8>)| output.bytes(*control).starts_with(rights);
        if expected.iter().all(right) {
            return Ok(());
        }
        let doing = "receiving descriptors under their numbers";
        Err(ResurrectError::call(table.pid, doing)(Errno::EMFILE))
    }

    fn run(
        &self,
        restore: &mut Restore<'_>,
        table: FileTable<'_>,
        batch: &Batch,
    ) -> Result<sys::batch::Output, ResurrectError> {
        let keeper = restore.keeper(table)?;
        run(table.pid, "taking its descriptors", keeper, batch)
    }
}

/// A `struct msghdr` for one byte and so many descriptors, and its control data.
fn room(batch: &mut Batch, count: usize) -> (Buffer, Buffer) {
    let byte = batch.space(1);
    let part = batch.data(&[0_u64, 1].map(u64::to_ne_bytes).concat());
    batch.pointer(part, 0, byte);
    let len = (HEADER + 4 * count).next_multiple_of(8);
    let control = batch.space(len);
    // Name, its length, parts, their number, control data, its length, flags.
    let words = [0, 0, 0, 1, 0, len as u64, 0];
    let message = batch.data(&words.map(u64::to_ne_bytes).concat());
    batch.pointer(message, 16, part);
    batch.pointer(message, 32, control);
    (message, control)
}

/// The control message that brings descriptors under these numbers.
fn rights(numbers: core::ops::Range<usize>) -> Vec<u8> {
    let len = HEADER + 4 * numbers.len();
    let mut bytes = (len as u64).to_ne_bytes().to_vec();
    bytes.extend([SOL_SOCKET, SCM_RIGHTS].map(i32::to_ne_bytes).concat());
    let numbers = numbers.map(|number| i32::try_from(number).unwrap_or(-1));
    bytes.extend(numbers.flat_map(i32::to_ne_bytes));
    bytes
}
