//! Unix sockets (unix(7)).

use super::queue::{self, Message};
use super::{Common, Facts, pieces, unaccepted, unheld};
use crate::diag::UnixInfo;
use crate::files::Open;
use crate::{Externals, FreezerError};
use nix::libc as c;
use nix::sys::stat::{FileStat, fstat};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, PeerCredentials, SocketMessage, SocketState,
    UnixFile, UnixLink, UnixSocket, Waiting,
};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::socket::{self, Credentials};
use sys::{Errno, Pid};

/// Bytes of `sun_family`, before the name.
const FAMILY: usize = 2;
/// NGROUPS_MAX.
const GROUPS_MAX: usize = 65536;

/// A unix socket whose peer is not known yet.
pub(super) struct Found {
    id: DescriptionId,
    inode: u64,
    info: UnixInfo,
    stream: bool,
    /// Name of its peer, alive or not.
    peer_name: Vec<u8>,
    /// A pending error.
    error: bool,
    /// Nothing waits to be read.
    queue_empty: bool,
    /// Something it sent has not been received.
    unsent: bool,
    /// Those that wait to be accepted by it, where the kernel lets them be looked at.
    unaccepted: Option<Vec<unaccepted::Unix>>,
    holder: (Pid, i32),
    link: Vec<u8>,
}

impl Found {
    pub(super) fn new(
        open: &Open<'_>,
        id: DescriptionId,
        common: &Common,
        info: UnixInfo,
    ) -> Result<Found, FreezerError> {
        let peer_name = match socket::peer_name(open.copy.as_fd()) {
            Ok(name) => unnamed(name),
            Err(Errno::ENOTCONN) => Vec::new(),
            Err(errno) => return Err(open.call("asking for its peer's name")(errno)),
        };
        let unsent = !info.listens()
            && socket::unsent(open.copy.as_fd()).map_err(open.call("asking for unsent data"))? != 0;
        Ok(Found {
            id,
            inode: common.inode,
            stream: common.kind != c::SOCK_DGRAM,
            peer_name,
            error: common.has(c::POLLERR),
            queue_empty: !common.has(c::POLLIN),
            unsent,
            unaccepted: look_at_waiting(open, &info),
            holder: (open.pid, open.fd),
            link: open.link.to_vec(),
            info,
        })
    }

    pub(super) fn info(&self) -> &UnixInfo {
        &self.info
    }

    pub(super) fn id(&self) -> DescriptionId {
        self.id
    }

    /// What is in flight in what its clients have sent: which client, which message, the open files.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (usize, usize, &Vec<u64>)> {
        let all = self.unaccepted.iter().flatten().enumerate();
        all.flat_map(|(client, one)| {
            let messages = one.files.iter().enumerate();
            messages.map(move |(message, files)| (client, message, files))
        })
    }

    /// A message that a client has sent.
    pub(super) fn sent(&mut self, client: usize, message: usize) -> Option<&mut SocketMessage> {
        self.unaccepted
            .as_mut()?
            .get_mut(client)?
            .sent
            .get_mut(message)
    }

    fn refuse(&self, reason: impl Into<String>) -> FreezerError {
        let (pid, fd) = self.holder;
        let link = String::from_utf8_lossy(&self.link);
        FreezerError::refuse(pid, format!("fd {fd} ({link})"), reason)
    }
}

/// Connections that wait to be accepted; None when nobody may look.
fn look_at_waiting(open: &Open<'_>, info: &UnixInfo) -> Option<Vec<unaccepted::Unix>> {
    if !info.listens() || info.waiting.is_empty() {
        return None;
    }
    let found = unaccepted::unix(open.copy.as_fd());
    if let Err(why) = &found {
        log::debug!("fd {}: what its clients have sent: {why}", open.fd);
    }
    found.ok().filter(|found| found.len() == info.waiting.len())
}

/// The name in the bytes of a `struct sockaddr_un`.
fn unnamed(mut address: Vec<u8>) -> Vec<u8> {
    address.drain(..FAMILY.min(address.len()));
    if address.first().is_some_and(|first| *first != 0) {
        // A path ends at its first NUL; an abstract name has a length.
        let len = address.iter().position(|b| *b == 0);
        address.truncate(len.unwrap_or(address.len()));
    }
    address
}

pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    facts: &mut Facts,
) -> Result<UnixSocket, FreezerError> {
    let info = facts.unix(open, common.inode)?;
    let fd = open.copy.as_fd();
    let name = unnamed(socket::name(fd).map_err(open.call("asking for its name"))?);
    if common.has(c::POLLERR) && common.kind != c::SOCK_STREAM {
        // To read a queue would take the error off; of an end that is shut down POLLIN tells nothing.
        let unread = socket::unread(fd).map_err(open.call("asking for unread data"))?;
        let seen = || pieces::whole_packets(fd).is_ok();
        if common.kind != c::SOCK_SEQPACKET || unread != 0 && !seen() {
            return Err(open.refuse("an error waits on it that was not read yet"));
        }
    }
    let in_flight = if info.listens() {
        sent_by_clients(open, common, info.clone(), facts)?
    } else if common.has(c::POLLIN) {
        cannot_be_peeked(open, common)?
    } else {
        Vec::new()
    };
    if facts.running {
        let Facts { held, inside, .. } = facts;
        unheld::check(&in_flight, held, inside.as_deref()).map_err(|why| {
            open.refuse(format!(
                "a descriptor is in flight in it that nobody else holds: {why}"
            ))
        })?;
        if common.has(c::POLLIN) && !info.listens() {
            // The queue may change just now.
            let all = pieces::in_flight(fd).unwrap_or_default();
            unheld::check_kinds(&all, held, inside.as_deref())
                .map_err(|why| open.refuse(format!("in flight in its queue: {why}")))?;
        }
    }
    Ok(UnixSocket {
        file: if name.first().is_some_and(|first| *first != 0) {
            file(open)?
        } else {
            None
        },
        name,
        peer_credentials: peer_credentials(open)?,
        shutdown: info.shutdown,
        ..UnixSocket::default()
    })
}

/// The open files that those have sent who wait to be accepted.
fn sent_by_clients(
    open: &Open<'_>,
    common: &Common,
    info: UnixInfo,
    facts: &mut Facts,
) -> Result<Vec<u64>, FreezerError> {
    let mut known = info;
    // What was asked a while ago of one that runs may not be true any more.
    for asked_now in [!facts.running, true] {
        if let Some(all) = look_at_waiting(open, &known) {
            return Ok(all.into_iter().flat_map(|one| one.files.concat()).collect());
        }
        // The kernel counts them (Linux 6.7).
        if open.info.number("scm_fds", 10).unwrap_or(0) == 0 {
            return Ok(Vec::new());
        }
        if asked_now {
            break;
        }
        known = facts.unix_now(open, common.inode)?;
    }
    Err(open.refuse("a client that waits to be accepted has sent descriptors"))
}

/// The open files in flight in messages that nobody can peek at.
fn cannot_be_peeked(open: &Open<'_>, common: &Common) -> Result<Vec<u64>, FreezerError> {
    if common.kind == c::SOCK_STREAM {
        return beside_urgent(open);
    }
    let hidden = |packet: &pieces::Packet| packet.len == 0 && packet.peeked;
    let packets = pieces::packets(open.copy.as_fd()).unwrap_or_default();
    let packets = packets.into_iter().filter(hidden);
    Ok(packets.flat_map(|packet| packet.files).collect())
}

/// Urgent data is carried as far as the kernel's memory shows it.
fn beside_urgent(open: &Open<'_>) -> Result<Vec<u64>, FreezerError> {
    match pieces::beside_urgent(open.copy.as_fd()) {
        Ok(files) => Ok(files),
        Err(why) => {
            let flags = c::MSG_OOB | c::MSG_PEEK | c::MSG_DONTWAIT;
            match socket::receive(open.copy.as_fd(), flags, 1) {
                Ok(_) => {
                    Err(open.refuse(format!("urgent data in its queue is not carried: {why}")))
                }
                Err(_) => Ok(Vec::new()),
            }
        }
    }
}

/// Where the file is that it is bound to; None when it was removed.
fn file(open: &Open<'_>) -> Result<Option<UnixFile>, FreezerError> {
    let file = match socket::bound_file(open.copy.as_fd()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(open.call("asking for its file")(errno)),
    };
    let found = fstat(&file).map_err(open.call("fstat of its file"))?;
    if found.st_nlink == 0 {
        return Ok(None);
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link).map_err(|cause| FreezerError::Proc {
        pid: open.pid,
        what: format!("the file of fd {}", open.fd),
        cause,
    })?;
    // It is made anew, and other names would lead nowhere.
    let mut names = names(&path, &found);
    if names.is_empty() || names.len() as u64 != found.st_nlink {
        let why = "the file that it is bound to has names in other directories (hard links)";
        return Err(open.refuse(why));
    }
    let path = names.remove(0);
    Ok(Some(UnixFile {
        path,
        links: names,
        owner: (found.st_uid, found.st_gid),
        mode: found.st_mode & 0o7777,
    }))
}

/// The names that a file has in the directory of `path`: that one first where it still is one, the others
/// in order. Who binds to a name of the moment, links another to it and removes the first has a file whose
/// `path` leads nowhere.
fn names(path: &Path, file: &FileStat) -> Vec<Vec<u8>> {
    let same = |path: &Path| {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == (file.st_dev, file.st_ino))
    };
    let leads = same(path);
    let alone = leads && file.st_nlink == 1;
    let dir = path.parent().filter(|_| !alone);
    let entries = dir.and_then(|dir| std::fs::read_dir(dir).ok());
    let mut names: Vec<Vec<u8>> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|entry| entry != path && same(entry))
        .map(|entry| entry.into_os_string().into_vec())
        .collect();
    names.sort();
    if leads {
        names.insert(0, path.as_os_str().as_bytes().to_vec());
    }
    names
}

pub(super) fn peer_credentials(open: &Open<'_>) -> Result<Option<PeerCredentials>, FreezerError> {
    let fd = open.copy.as_fd();
    let bytes = socket::option(fd, c::SOL_SOCKET, c::SO_PEERCRED, 12)
        .map_err(open.call("reading SO_PEERCRED"))?;
    let Some(found) = Credentials::from_bytes(&bytes).filter(|c| c.uid != u32::MAX) else {
        return Ok(None);
    };
    let groups = match socket::option(fd, c::SOL_SOCKET, c::SO_PEERGROUPS, GROUPS_MAX * 4) {
        Ok(bytes) => bytes,
        Err(Errno::ENODATA) => Vec::new(),
        Err(errno) => return Err(open.call("reading SO_PEERGROUPS")(errno)),
    };
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap_or([0; 4]));
    Ok(Some(PeerCredentials {
        pid: found.pid,
        uid: found.uid,
        gid: found.gid,
        groups: groups.chunks_exact(4).map(word).collect(),
    }))
}

/// What it received and nobody has read.
pub(super) fn queue(
    open: &Open<'_>,
    common: &Common,
    info: &UnixInfo,
) -> Result<Vec<Message>, FreezerError> {
    if info.listens() || !common.has(c::POLLIN) {
        return Ok(Vec::new());
    }
    // One that is shut down is ready, and receives nothing without a peer.
    if common.kind == c::SOCK_SEQPACKET && info.peer.is_none() {
        return Ok(Vec::new());
    }
    if common.kind == c::SOCK_SEQPACKET && common.has(c::POLLERR) {
        return behind_error(open);
    }
    if common.kind != c::SOCK_STREAM {
        const SHUT_RD: u8 = 1;
        let ends = common.kind == c::SOCK_SEQPACKET && info.shutdown & SHUT_RD != 0;
        let packets = pieces::packets(open.copy.as_fd());
        let alone = packets.is_ok_and(|packets| packets.len() == 1);
        let messages = queue::datagrams(open, ends, alone)?;
        return Ok(complete(open, messages));
    }
    // A stream that nobody writes to any more can be read as well: there is its end.
    let total = socket::unread(open.copy.as_fd()).map_err(open.call("asking for unread data"))?;
    let mut messages = queue::stream(open, total as usize)?;
    for message in &mut messages {
        // The kernel names the peer for every run; that is not the message's own.
        message.source.clear();
    }
    Ok(messages)
}

/// Packets that are read when a pending error is: to peek at them would take that off.
fn behind_error(open: &Open<'_>) -> Result<Vec<Message>, FreezerError> {
    let fd = open.copy.as_fd();
    match pieces::whole_packets(fd) {
        Ok(packets) => Ok(packets.into_iter().map(Message::of).collect()),
        Err(why) => match socket::unread(fd).map_err(open.call("asking for unread data"))? {
            0 => Ok(Vec::new()),
            _ => Err(open.refuse(format!("an error waits on it that was not read yet: {why}"))),
        },
    }
}

/// Notes who sent each message, which the kernel shows only while the receiver asks for it, and puts those in that
/// could not be peeked at: empty ones that were before (net/core/datagram.c, `__skb_try_recv_from_queue`).
fn complete(open: &Open<'_>, messages: Vec<Message>) -> Vec<Message> {
    let packets = match pieces::packets(open.copy.as_fd()) {
        Ok(packets) => packets,
        Err(why) => {
            log::debug!("fd {}: who sent its messages: {why}", open.fd);
            return messages;
        }
    };
    let Some(mut hidden) = packets.len().checked_sub(messages.len()) else {
        return messages;
    };
    let mut peeked = messages.into_iter();
    let mut found = Vec::new();
    for packet in packets {
        let message = if hidden > 0 && packet.len == 0 {
            hidden -= 1;
            Message {
                source: packet.source,
                files: packet.files,
                ..Message::default()
            }
        } else {
            peeked.next().unwrap_or_default()
        };
        found.push(Message {
            credentials: packet.credentials,
            ..message
        });
    }
    found
}

/// Writes who talks to whom into the descriptions.
pub(super) fn link(
    found: &[Found],
    descriptions: &mut [Description],
    externals: &Externals,
) -> Result<(), FreezerError> {
    let by_inode: HashMap<u64, &Found> = found.iter().map(|f| (f.inode, f)).collect();
    let mut waits_for: HashMap<u64, DescriptionId> = HashMap::new();
    for listener in found {
        for inode in &listener.info.waiting {
            waits_for.insert(*inode, listener.id);
        }
    }
    let mut links: HashMap<DescriptionId, UnixLink> = HashMap::new();
    for one in found {
        links.insert(one.id, link_of(one, &by_inode, &waits_for, externals)?);
    }
    for description in descriptions {
        if let DescriptionKind::Socket(socket) = &mut description.kind
            && let SocketState::Unix(state) = &mut socket.state
            && let Some(link) = links.remove(&description.id)
        {
            state.link = link;
        }
    }
    Ok(())
}

fn link_of(
    one: &Found,
    by_inode: &HashMap<u64, &Found>,
    waits_for: &HashMap<u64, DescriptionId>,
    externals: &Externals,
) -> Result<UnixLink, FreezerError> {
    if one.info.listens() {
        let waiting = one.info.waiting.iter().enumerate().map(|(place, inode)| {
            let client = by_inode.get(inode);
            if client.is_none() && *inode != 0 {
                return Err(one.refuse("a client waits to be accepted that is no part of the tree"));
            }
            let seen = one.unaccepted.as_ref().and_then(|all| all.get(place));
            let silent = || client.and_then(|client| (!client.unsent).then(Vec::new));
            Ok(Waiting {
                client: client.map(|client| client.id),
                sent: seen.map(|seen| seen.sent.clone()).or_else(silent),
                credentials: seen.and_then(|seen| seen.credentials.clone()),
                passes: seen.and_then(|seen| seen.passes),
            })
        });
        return Ok(UnixLink::Listening {
            backlog: one.info.backlog,
            waiting: waiting.collect::<Result<_, FreezerError>>()?,
        });
    }
    if let Some(listener) = waits_for.get(&one.inode) {
        return Ok(UnixLink::Waiting(*listener));
    }
    match one.info.peer {
        None => Ok(UnixLink::None),
        Some(0) if one.stream && one.info.shutdown != 3 => {
            Err(one.refuse("it waits to be accepted by a process that is no part of the tree"))
        }
        Some(0) => Ok(UnixLink::Gone {
            name: one.peer_name.clone(),
            reset: one.error,
        }),
        Some(inode) => match by_inode.get(&inode) {
            Some(peer) => Ok(UnixLink::Connected(peer.id)),
            None if externals.reconnects(&one.peer_name) && one.queue_empty => {
                Ok(UnixLink::External {
                    name: one.peer_name.clone(),
                })
            }
            None if externals.reconnects(&one.peer_name) => {
                Err(one.refuse("it has unread messages of a process outside"))
            }
            None => Err(one.refuse("its peer is no part of the tree")),
        },
    }
}
