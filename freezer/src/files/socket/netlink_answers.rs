//! Answers of the kernel that a netlink socket has not read (net/netlink/af_netlink.c): of those that are lists (dumps)
//! the kernel keeps the question until the end of the list is read, so it can be asked again. So can what was asked about
//! one interface, which the answer tells.

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Kernel, Unreadable, half};
use core::time::Duration;
use nix::libc as c;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use sys::socket::{self, Outgoing};

const WRONG: Unreadable = Unreadable::Inconsistent("a question of a netlink socket");
/// `struct nlmsghdr`: length, type, flags, number, port.
const HEADER: u32 = 16;
/// More than any question.
const LONGEST: u32 = 4096;
/// Longest answer.
const ANSWER: usize = 1 << 20;
/// `NLM_F_DUMP`: `NLM_F_ROOT`, `NLM_F_MATCH`.
const DUMP: u32 = 0x300;
const RTM_NEWLINK: u32 = 16;
/// Options that a question is read by: `NETLINK_EXT_ACK`, `NETLINK_GET_STRICT_CHK`.
const OPTIONS: [i32; 2] = [11, 12];
/// Tries with one that reads its answers just now.
const TRIES: u32 = 5;

/// What a socket has asked, and the part of the answer that waits.
struct Asked {
    question: Vec<u8>,
    answer: Vec<u8>,
}

/// The question whose answer waits, when that is all that waits and nothing of it was read. None otherwise.
pub(super) fn question(
    open: &Open<'_>,
    common: &Common,
    running: bool,
) -> Result<Option<Vec<u8>>, FreezerError> {
    // Other families count kinds of their own, or answer with what changes.
    if common.protocol != c::NETLINK_ROUTE {
        return Ok(None);
    }
    for again in 0..TRIES {
        let found = kernel::look(|kernel| waiting(kernel, open));
        match found {
            Ok(Some(Asked { question, answer })) => {
                let other =
                    ask(open, common, &question).map_err(open.call("asking what it asks"))?;
                let whole = is_part(&answer) || answer.len() == other.len();
                if whole && alike(&answer, &other) {
                    return Ok(Some(question));
                }
            }
            Ok(None) => {}
            Err(why) => log::debug!("fd {}: what it has asked: {why}", open.fd),
        }
        if !running || again + 1 == TRIES {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// The question that is being answered, where one part of the answer waits and nothing else.
fn waiting(kernel: &mut Kernel, open: &Open<'_>) -> Result<Option<Asked>, Unreadable> {
    let sk = kernel.own_sock(open.copy.as_fd())?;
    let [buffer] = &kernel.queue(sk)?[..] else {
        return Ok(None);
    };
    for field in ["portid", "dst_group"] {
        if kernel.of_family(buffer, "netlink_skb_parms", field)? != 0 {
            return Ok(None);
        }
    }
    let found = kernel.fields(sk, "netlink_sock", &["cb_running", "cb.nlh"])?;
    let [running, question] = found[..] else {
        return Err(WRONG);
    };
    let answer = kernel.contents(buffer)?;
    if running & 0xff == 0 {
        let question = about_interface(&answer);
        return Ok(question.map(|question| Asked { question, answer }));
    }
    let read = |kernel: &mut Kernel, len: u32| {
        let read = kernel.read(&[(question, len as usize)])?.pop();
        read.flatten().ok_or(WRONG)
    };
    let header = read(kernel, HEADER)?;
    let len = half(&header, 0).filter(|len| (HEADER..=LONGEST).contains(len));
    let flags = half(&header, 4).map(|both| both >> 16);
    let (Some(len), true) = (len, flags.is_some_and(|flags| flags & DUMP == DUMP)) else {
        return Ok(None);
    };
    let question = read(kernel, len)?;
    Ok(Some(Asked { question, answer }))
}

/// Whether an answer is a part of a list (`NLM_F_MULTI`).
fn is_part(answer: &[u8]) -> bool {
    half(answer, 4).is_some_and(|both| both >> 16 & 2 != 0)
}

/// What was asked when the answer is about one interface: nobody has to keep that.
fn about_interface(answer: &[u8]) -> Option<Vec<u8>> {
    const RTM_GETLINK: u16 = 18;
    const REQUEST: u16 = 1;
    const WHOLE: u32 = HEADER + 16;
    let number = half(answer, 8)?;
    let index = half(answer, 20)?;
    if half(answer, 4)? & 0xffff != RTM_NEWLINK || is_part(answer) || number == 0 {
        return None;
    }
    let mut question = WHOLE.to_ne_bytes().to_vec();
    question.extend(RTM_GETLINK.to_ne_bytes());
    question.extend(REQUEST.to_ne_bytes());
    question.extend(number.to_ne_bytes());
    // The port, then struct ifinfomsg: family and kind, index, flags and their mask.
    question.extend([0; 8]);
    question.extend(index.to_ne_bytes());
    question.extend([0; 8]);
    Some(question)
}

/// The first part of the answer that another socket gets.
fn ask(open: &Open<'_>, common: &Common, question: &[u8]) -> sys::Result<Vec<u8>> {
    let other = socket::socket(c::AF_NETLINK, c::SOCK_RAW, common.protocol)?;
    like(&other, open.copy.as_fd())?;
    // struct sockaddr_nl of the kernel.
    let to = [&(c::AF_NETLINK as u16).to_ne_bytes()[..], &[0; 10]].concat();
    let message = Outgoing {
        data: question,
        to: &to,
        ..Outgoing::default()
    };
    socket::send(other.as_fd(), &message, c::MSG_DONTWAIT)?;
    Ok(socket::receive(other.as_fd(), c::MSG_DONTWAIT, ANSWER)?.data)
}

fn like(other: &OwnedFd, one: BorrowedFd<'_>) -> sys::Result<()> {
    for option in OPTIONS {
        let value = socket::option(one, c::SOL_NETLINK, option, 4)?;
        socket::set_option(other.as_fd(), c::SOL_NETLINK, option, &value)?;
    }
    Ok(())
}

/// Whether two answers are the same list, as far as both go: what is told of each thing may have changed (counters), and
/// how much comes at a time.
fn alike(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (outline(one), outline(other));
    let both = one.len().min(other.len());
    both != 0 && one[..both] == other[..both]
}

/// Of each message its kind and what follows its header: which thing it is about.
fn outline(mut answer: &[u8]) -> Vec<(u32, Vec<u8>)> {
    /// `struct ifinfomsg` up to the number: what follows may change.
    const INTERFACE: usize = 8;
    /// `struct ifaddrmsg`, `struct rtmsg` and the like with their first attributes.
    const OTHER: usize = 48;
    let mut found = Vec::new();
    while let Some(len) = half(answer, 0).filter(|len| *len >= HEADER) {
        let Some(message) = answer.get(..len as usize) else {
            break;
        };
        let kind = half(message, 4).unwrap_or(0) & 0xffff;
        let about = message.get(HEADER as usize..).unwrap_or_default();
        let most = match kind {
            RTM_NEWLINK => INTERFACE,
            _ => OTHER,
        };
        let about = &about[..about.len().min(most)];
        found.push((kind, about.to_vec()));
        let next = (len as usize).next_multiple_of(4);
        answer = answer.get(next..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::alike;

    fn message(kind: u8, about: u8, more: usize) -> Vec<u8> {
        let mut bytes = vec![0; 16 + 8 + more];
        bytes[0] = bytes.len() as u8;
        bytes[4] = kind;
        bytes[20] = about;
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn lists_of_the_same_things() {
        let one = [message(16, 1, 5), message(16, 2, 9)].concat();
        let other = [message(16, 1, 7), message(16, 2, 0), message(16, 3, 0)].concat();
        assert!(alike(&one, &other));
        assert!(!alike(&one, &message(16, 2, 9)));
        assert!(!alike(&message(3, 0, 0), &other));
        assert!(!alike(&[], &other));
    }
}
