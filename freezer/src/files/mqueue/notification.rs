//! Who wants to be told of a message in an empty queue (mq_notify(3)), and how.
//!
//! The queue's file tells who, and which signal; what comes with it only the kernel knows.

use super::inode::Inode;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Kernel, Unreadable, half, word};
use persist_mem::manifest::{Notification, Notify};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use sys::Pid;
use sys::mqueue::{Attributes, COOKIE};

pub(super) const UNKNOWN: &str = "its notification (mq_notify) cannot be read and is not carried";
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const WRONG: Unreadable = Unreadable::Inconsistent("a notification");

/// What the queue's file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    owner: Pid,
    kind: u32,
    signal: u32,
}

/// None when nobody is registered. `own` is a description of the queue of our own.
pub(super) fn shown(open: &Open<'_>, own: OwnedFd) -> Result<Option<Shown>, FreezerError> {
    let what = || format!("fd/{}", open.fd);
    let mut text = String::new();
    let read = std::fs::File::from(own).read_to_string(&mut text);
    read.map_err(|cause| FreezerError::Proc {
        pid: open.pid,
        what: what(),
        cause,
    })?;
    parse(&text).ok_or_else(|| FreezerError::Format {
        pid: open.pid,
        what: what(),
        text,
    })
}

/// `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260` (mq_overview(7)).
fn parse(text: &str) -> Option<Option<Shown>> {
    let number = |key: &str| {
        let mut words = text.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.parse::<u32>().ok())
    };
    let (kind, signal) = (number("NOTIFY:")?, number("SIGNO:")?);
    let owner = i32::try_from(number("NOTIFY_PID:")?).ok()?;
    Some((owner != 0).then_some(Shown {
        owner: Pid(owner),
        kind,
        signal,
    }))
}

/// All that is registered.
pub(super) fn read(
    open: &Open<'_>,
    attributes: &Attributes,
    shown: Shown,
) -> Result<Notification, FreezerError> {
    let read = kernel::look(|kernel| {
        let inode = Inode::read(kernel, open.copy.as_fd(), attributes)?;
        how(kernel, &inode, shown)
    });
    match read {
        Ok(Some(notify)) => Ok(Notification {
            owner: shown.owner,
            notify,
        }),
        Ok(None) => Err(open.refuse(
            "its notification (mq_notify) goes to a socket that its process does not have any more",
        )),
        Err(why) => {
            log::debug!("fd {} of process {}: {why}", open.fd, open.pid);
            Err(open.refuse(UNKNOWN))
        }
    }
}

/// How the owner is told. None when it cannot be found out by which socket.
fn how(kernel: &mut Kernel, inode: &Inode, shown: Shown) -> Result<Option<Notify>, Unreadable> {
    let btf = kernel.btf();
    let field = |structure, path| Ok(btf.field(structure, path)?.offset);
    let info = |path| field("mqueue_inode_info", path);
    let (value, signal) = (info("notify.sigev_value")?, info("notify.sigev_signo")?);
    let (kind, run) = (info("notify.sigev_notify")?, info("notify_self_exec_id")?);
    let (socket, cookie) = (info("notify_sock")?, info("notify_cookie")?);
    let own_run = field("task_struct", "self_exec_id")?;
    let lives = crate::proc::representative(shown.owner).ok_or(WRONG)?;
    let owner = kernel.tasks(&[lives])?.pop().flatten();
    let owner = owner.ok_or(WRONG)?;
    let bytes = kernel
        .read(&[(owner.wrapping_add(own_run), 4)])?
        .pop()
        .flatten();
    let own_run = half(&bytes.ok_or(WRONG)?, 0).ok_or(WRONG)?;
    if inode.half(kind)? != shown.kind {
        return Err(WRONG);
    }
    match shown.kind {
        SIGEV_NONE => Ok(Some(Notify::Nothing)),
        // A program that was run since does not get the signal, and would get it if it registered anew.
        SIGEV_SIGNAL if inode.half(signal)? == shown.signal && inode.half(run)? == own_run => {
            Ok(Some(Notify::Signal {
                signal: shown.signal.cast_signed(),
                value: inode.word(value)?,
            }))
        }
        SIGEV_THREAD => {
            let cookie = read_cookie(kernel, inode.word(cookie)?)?;
            let socket = find_socket(kernel, owner, inode.word(socket)?)?;
            Ok(socket.map(|socket| Notify::Message { socket, cookie }))
        }
        _ => Err(WRONG),
    }
}

/// What is sent: the data of a `struct sk_buff`.
fn read_cookie(kernel: &mut Kernel, buffer: u64) -> Result<[u8; COOKIE], Unreadable> {
    let data = kernel.btf().field("sk_buff", "data")?.offset;
    let data = kernel.word(buffer.wrapping_add(data), "a notification")?;
    let read = kernel.read(&[(data, COOKIE)])?.pop().flatten();
    let cookie = read.and_then(|bytes| bytes.try_into().ok());
    cookie.ok_or(WRONG)
}

/// The descriptor of a thread that is a certain `struct sock`.
fn find_socket(kernel: &mut Kernel, task: u64, wanted: u64) -> Result<Option<i32>, Unreadable> {
    let private = kernel.btf().field("file", "private_data")?.offset;
    let sock = kernel.btf().field("socket", "sk")?;
    let back = kernel.btf().field("socket", "file")?.offset;
    let files = kernel.files(task)?;
    let places: Vec<u64> = files
        .iter()
        .map(|(_, file)| file.wrapping_add(private))
        .collect();
    let sockets = kernel.words(&places)?;
    // What is no socket has something else there; a socket points back to its file.
    let len = sock.offset.max(back) + 8;
    let requests = sockets
        .iter()
        .map(|socket| (socket.unwrap_or(0), len as usize));
    let requests: Vec<_> = requests.collect();
    let found = kernel.read(&requests)?;
    let is_it = |(bytes, (_, file)): (Option<Vec<u8>>, &(i32, u64))| {
        let bytes = bytes?;
        Some(word(&bytes, sock.offset)? == wanted && word(&bytes, back)? == *file)
    };
    let at = found
        .into_iter()
        .zip(&files)
        .position(|one| is_it(one) == Some(true));
    Ok(at.map(|at| files[at].0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_queue_tells_who_is_registered() {
        let text = "QSIZE:0          NOTIFY:0     SIGNO:46    NOTIFY_PID:77    \n";
        let shown = Shown {
            owner: Pid(77),
            kind: 0,
            signal: 46,
        };
        assert_eq!(parse(text), Some(Some(shown)));
        let nobody = "QSIZE:5          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(parse(nobody), Some(None));
        assert_eq!(parse("QSIZE:5"), None);
    }
}
