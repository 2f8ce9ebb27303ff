//! What Landlock notes of open files, whoever has them (security/landlock/fs.h): what may not be done by a description,
//! since it was opened in a domain, and in which domain sockets were made and owners of signals set.

use super::find::{self, ADDED};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Domain, Kernel, Unreadable, number};
use nix::sys::stat::SFlag;
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use sys::{Pid, Tid};

/// `LANDLOCK_ACCESS_FS_TRUNCATE`, `LANDLOCK_ACCESS_FS_IOCTL_DEV`: asked for when a file is opened, and denied later.
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// `LANDLOCK_ACCESS_FS_READ_DIR`
const READ_DIR: u64 = 1 << 3;
/// `LANDLOCK_ACCESS_FS_RESOLVE_UNIX`
const RESOLVE_UNIX: u64 = 1 << 16;
const SCOPE_ABSTRACT: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;
/// Versions in which files have such notes.
const NOTES: u32 = 3;
const WRONG: Unreadable = Unreadable::Inconsistent("what Landlock notes of a file");

/// Where the notes are.
#[derive(Clone, Copy)]
struct Place {
    /// From what security modules add to a file on.
    notes: u64,
    /// All rights that the kernel knows.
    all: u64,
}

thread_local! {
    /// Once that was looked for. None when this kernel has no such notes.
    static PLACE: Cell<Option<Option<Place>>> = const { Cell::new(None) };
}

/// What matters of an open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Notes {
    /// Rights that are denied.
    denied: u64,
    /// It was made in a domain that others of the same can reach its socket from, and nobody else can in one.
    reach: bool,
    /// Its owner was set in a domain that has scoped its signals.
    owner: bool,
}

/// Whether any thread of a process is in a domain.
pub(crate) fn concerns(pids: &[Pid]) -> bool {
    let threads = |pid: &Pid| crate::proc::threads(*pid).unwrap_or_default();
    let threads: Vec<Tid> = pids.iter().flat_map(threads).collect();
    let found = kernel::look(|kernel| {
        let Some(place) = find::place(kernel)? else {
            return Ok(false);
        };
        let found = super::addresses(kernel, &threads, place)?;
        Ok(found.iter().any(|(_, _, domain)| *domain != 0))
    });
    found.unwrap_or(false)
}

/// Rights that a description of a process in a domain was opened without, as far as that matters.
///
/// # Errors
/// [`FreezerError::Refused`] for what cannot be had again.
pub(crate) fn denied(open: &Open<'_>) -> Result<u64, FreezerError> {
    let notes = kernel::look(|kernel| notes(kernel, open.copy()));
    let notes = notes.map_err(|why| {
        open.refuse(format!(
            "what Landlock forbids with it cannot be read: {why}"
        ))
    })?;
    if notes.owner {
        let why =
            "its owner was set by who has scoped signals with Landlock (LANDLOCK_SCOPE_SIGNAL)";
        return Err(open.refuse(why));
    }
    if notes.reach && open.file_type() == SFlag::S_IFSOCK && has_name(open) {
        let why = "it was made in a domain of Landlock from which only sockets of the same can be reached";
        return Err(open.refuse(why));
    }
    let matters = match open.file_type() {
        SFlag::S_IFREG if open.writes()? => TRUNCATE,
        SFlag::S_IFCHR | SFlag::S_IFBLK => IOCTL_DEV,
        _ => 0,
    };
    Ok(notes.denied & matters)
}

/// Whether a socket is a unix socket that others could look up.
fn has_name(open: &Open<'_>) -> bool {
    const AF_UNIX: [u8; 2] = 1_u16.to_ne_bytes();
    let name = sys::socket::name(open.copy().as_fd());
    name.is_ok_and(|name| name.starts_with(&AF_UNIX) && name.len() > 2)
}

fn notes(kernel: &mut Kernel, file: &OwnedFd) -> Result<Notes, Unreadable> {
    let Some(in_credentials) = find::place(kernel)? else {
        return Ok(Notes::default());
    };
    let file = kernel.own_file(file.as_fd())?;
    let found = kernel.fields(file, "file", &["f_cred", "f_security"])?;
    let [credentials, security] = found[..] else {
        return Err(WRONG);
    };
    let mut notes = Notes::default();
    let own = kernel.btf().field("cred", "security")?.offset;
    let made_by = kernel.word(credentials.wrapping_add(own), "credentials")?;
    if let Some(domain) = domain(kernel, made_by.wrapping_add(in_credentials))? {
        notes.reach = has(&domain, 2, SCOPE_ABSTRACT) || has(&domain, 0, RESOLVE_UNIX);
    }
    let Some(place) = place(kernel)? else {
        return Ok(notes);
    };
    let at = security.wrapping_add(place.notes);
    let allowed = kernel.fields(at, "landlock_file_security", &["allowed_access"])?;
    notes.denied = place.all & !allowed.first().copied().ok_or(WRONG)?;
    notes.owner = owner_is_scoped(kernel, at)?;
    Ok(notes)
}

/// Whether the owner of a file was set in a domain with scoped signals (Linux 6.12).
fn owner_is_scoped(kernel: &mut Kernel, notes: u64) -> Result<bool, Unreadable> {
    let field = |path| kernel.btf().field("landlock_file_security", path);
    // As in credentials since Linux 6.15.
    let Ok(field) = field("fown_subject").or_else(|_| field("fown_domain")) else {
        return Ok(false);
    };
    let found = domain(kernel, notes.wrapping_add(field.offset))?;
    Ok(found.is_some_and(|domain| has(&domain, 2, SCOPE_SIGNAL)))
}

/// The domain that is noted at an address.
fn domain(kernel: &mut Kernel, at: u64) -> Result<Option<Domain>, Unreadable> {
    match kernel.word(at, "what Landlock notes")? {
        0 => Ok(None),
        _ => kernel.domain(at).map(Some),
    }
}

/// Whether a layer handles a right: of files, the network, or a scope.
fn has(domain: &Domain, kind: usize, right: u64) -> bool {
    domain
        .layers
        .iter()
        .any(|layer| layer.handled[kind] & right != 0)
}

fn place(kernel: &mut Kernel) -> Result<Option<Place>, Unreadable> {
    let place = match PLACE.get() {
        Some(known) => known,
        None if sys::landlock::version() < NOTES => None,
        None => Some(find_place(kernel)?),
    };
    PLACE.set(Some(place));
    Ok(place)
}

/// Where the notes are: what is all rights for a directory that was opened outside of a domain, and only what was asked
/// for within one.
fn find_place(kernel: &mut Kernel) -> Result<Place, Unreadable> {
    let field = kernel
        .btf()
        .field("landlock_file_security", "allowed_access")?;
    let mut candidates: Option<Vec<(u64, u64)>> = None;
    for _ in 0..2 {
        let (free, restricted) = directories()?;
        let (free, restricted) = (added(kernel, &free)?, added(kernel, &restricted)?);
        let value = |bytes: &[u8], at: u64| {
            let at = at as usize;
            bytes.get(at..at + field.size as usize).map(number)
        };
        let places = (0..ADDED).step_by(2).filter_map(|at| {
            let all = value(&free, at)?;
            let rights = all >= TRUNCATE && (all + 1).is_power_of_two();
            (rights && value(&restricted, at) == Some(READ_DIR)).then_some((at, all))
        });
        let places: Vec<_> = places.collect();
        candidates = Some(match candidates {
            None => places,
            Some(known) => known.into_iter().filter(|at| places.contains(at)).collect(),
        });
    }
    match candidates.as_deref() {
        Some([(at, all)]) => Ok(Place {
            notes: at.checked_sub(field.offset).ok_or(WRONG)?,
            all: *all,
        }),
        _ => Err(WRONG),
    }
}

/// The same directory, opened by this thread and by one in a domain.
fn directories() -> Result<(OwnedFd, OwnedFd), Unreadable> {
    let open = || std::fs::File::open("/").map(OwnedFd::from);
    let thread = std::thread::Builder::new().spawn(move || {
        let done = sys::landlock::restrict_this_thread_to(&[TRUNCATE, 0, 0, 0, 0, 0]);
        done.is_ok().then(|| open().ok()).flatten()
    });
    let restricted = thread.ok().and_then(|thread| thread.join().ok()).flatten();
    open().ok().zip(restricted).ok_or(WRONG)
}

/// What security modules have added to a file of this process.
fn added(kernel: &mut Kernel, file: &OwnedFd) -> Result<Vec<u8>, Unreadable> {
    let file = kernel.own_file(file.as_fd())?;
    let at = kernel.fields(file, "file", &["f_security"])?;
    let at = at.first().copied().ok_or(WRONG)?;
    let read = kernel.read(&[(at, ADDED as usize)])?.pop().flatten();
    read.ok_or(WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{look, readable};

    #[test]
    fn what_was_opened_in_a_domain_is_told() {
        if sys::landlock::version() < NOTES {
            return;
        }
        let path = std::env::temp_dir().join(format!("notes-{}", std::process::id()));
        let open = |path: &std::path::Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            OwnedFd::from(file)
        };
        std::fs::write(&path, "x").unwrap();
        let free = open(&path);
        let inner = path.clone();
        let restricted = std::thread::spawn(move || {
            let handled = [TRUNCATE, 0, 0, 0, 0, 0];
            sys::landlock::restrict_this_thread_to(&handled).unwrap();
            open(&inner)
        });
        let restricted = restricted.join().unwrap();
        let told = |file: &OwnedFd| readable(look(|kernel| notes(kernel, file)));
        let found = (told(&free), told(&restricted));
        std::fs::remove_file(&path).unwrap();
        if let (Some(free), Some(restricted)) = found {
            assert_eq!(free, Notes::default());
            assert_eq!(restricted.denied & TRUNCATE, TRUNCATE);
        }
    }
}
