//! What an open file description is, as far as it can be told without changing anything.

use super::open::{O_PATH, Open};
use super::{
    bpf_map, deleted, device, epoll, fanotify, fifo, inotify, listener, memfd, mqueue, path, pidfd,
    pseudo, ruleset, secret, signalfd, socket, terminal, timerfd, userfault,
};
use crate::FreezerError;
use crate::kernel::Nature;
use crate::objects::Objects;
use nix::sys::stat::SFlag;
use persist_mem::manifest::DescriptionKind;

/// What a description is, as far as it can be told without changing anything.
pub(super) enum Class {
    Pipe,
    Fifo,
    Kmsg,
    EventFd,
    Terminal,
    Removed,
    Socket,
    Queue,
    Tunnel,
    Ring,
    /// The rest is known at once.
    Plain(DescriptionKind),
}

/// The kind of a description, by its link in `/proc` and its file type. Everything that is not carried
/// is refused here.
pub(super) fn classify(open: &Open<'_>, objects: &mut Objects) -> Result<Class, FreezerError> {
    let nameless = !open.link.starts_with(b"/") && !open.link.starts_with(b"pipe:");
    let reference = open.flags()? & O_PATH != 0;
    if reference && (nameless && pseudo::namespace(open).is_none() || mqueue::is_one(open)) {
        return Err(open.refuse("a reference (O_PATH) to what has no path is not carried"));
    }
    let kind = match open.link {
        b"anon_inode:[eventfd]" => return Ok(Class::EventFd),
        b"anon_inode:[io_uring]" => return Ok(Class::Ring),
        b"anon_inode:[signalfd]" => signalfd::capture(open)?,
        b"anon_inode:[timerfd]" => timerfd::capture(open)?,
        b"anon_inode:[eventpoll]" => epoll::capture(open)?,
        b"anon_inode:inotify" => inotify::capture(open)?,
        b"anon_inode:[fanotify]" => fanotify::capture(open)?,
        b"anon_inode:[landlock-ruleset]" => ruleset::capture(open)?,
        b"anon_inode:[pidfd]" => pidfd::capture(open)?,
        userfault::LINK => userfault::capture(open)?,
        listener::LINK => listener::capture(open)?,
        bpf_map::LINK => bpf_map::capture(open)?,
        link if link.starts_with(b"pidfd:") => pidfd::capture(open)?,
        link if link.starts_with(b"pipe:") => return Ok(Class::Pipe),
        link if link.starts_with(b"socket:") => return Ok(Class::Socket),
        link if link.starts_with(b"anon_inode:") => return Err(open.refuse(anonymous(link))),
        link if link.starts_with(b"/") && mqueue::is_one(open) => {
            mqueue::examine(open)?;
            return Ok(Class::Queue);
        }
        link if memfd::is_one(link) => memfd::capture(open, objects)?,
        _ if secret::is_one(open) => secret::capture(open, objects)?,
        _ if deleted::is_one(open) => deleted::capture(open, objects)?,
        link if link.starts_with(b"/") => return by_type(open),
        _ => pseudo::namespace(open)
            .ok_or_else(|| open.refuse("this kind of descriptor is not carried"))?,
    };
    Ok(Class::Plain(kind))
}

/// Names of `anon_inode:` links and what they are, for those who must do without.
const ANONYMOUS: [(&[u8], &str); 6] = [
    (b"[perf_event]", "perf events are not carried"),
    (b"bpf-", "BPF programs and links are not carried"),
    (b"kvm-", "virtual machines (KVM) are not carried"),
    (b"dmabuf", "buffers of devices (dma-buf) are not carried"),
    (b"sync_file", "fences of devices are not carried"),
    (b"[fscontext]", "half-made mounts are not carried"),
];

/// Names of `anon_inode:` links of what is carried.
const CARRIED: [&[u8]; 12] = [
    b"bpf-map",
    b"[userfaultfd]",
    b"seccomp notify",
    b"[landlock-ruleset]",
    b"[io_uring]",
    b"[eventfd]",
    b"[signalfd]",
    b"[timerfd]",
    b"[eventpoll]",
    b"inotify",
    b"[fanotify]",
    b"[pidfd]",
];

/// Why an open file is not carried, whatever it holds, as far as the kernel's memory tells its kind.
pub(super) fn obstacle(nature: &Nature) -> Option<String> {
    match nature {
        Nature::Anonymous(name) if CARRIED.contains(&name.as_slice()) => None,
        Nature::Anonymous(name) => Some(anonymous(name)),
        Nature::Socket(family) => socket::family_obstacle(*family),
        Nature::Device(rdev) if terminal::has_number(*rdev) => None,
        Nature::Device(rdev) => device::obstacle(*rdev),
        Nature::Disk => Some(device::DISK.to_owned()),
        Nature::Other => None,
    }
}

fn anonymous(link: &[u8]) -> String {
    let name = link.strip_prefix(b"anon_inode:").unwrap_or(link);
    let known = ANONYMOUS
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix));
    known.map_or_else(
        || "this kind of descriptor is not carried".to_owned(),
        |(_, why)| (*why).to_owned(),
    )
}

/// What has a path is told by the type of the file.
fn by_type(open: &Open<'_>) -> Result<Class, FreezerError> {
    if open.flags()? & O_PATH != 0 {
        return path::reference_only(open);
    }
    match open.file_type() {
        SFlag::S_IFCHR if terminal::is(open) => {
            terminal::check(open)?;
            Ok(Class::Terminal)
        }
        SFlag::S_IFCHR | SFlag::S_IFBLK => device::classify(open),
        SFlag::S_IFIFO => {
            fifo::check(open)?;
            Ok(Class::Fifo)
        }
        SFlag::S_IFREG | SFlag::S_IFDIR => path::capture(open),
        _ => Err(open.refuse("this kind of file is not carried")),
    }
}
