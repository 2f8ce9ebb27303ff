//! Domains of Landlock (landlock(7)): what a thread has forbidden itself.
//!
//! No interface tells of them, not even that there is one: all is read from the kernel's memory ([`find`],
//! `kernel/landlock.rs`). Every layer is made again as a ruleset of its own. A domain that is alike is not the same one: who is
//! in it has no power over those in another (ptrace(2), scopes). So those that are in one are told together ([`together`]).

mod files;
mod find;
mod objects;
mod together;

use crate::kernel::{self, Domain, Kernel, Unreadable};
use crate::{FreezerError, Refusal, proc};
pub(crate) use files::{concerns, denied};
use find::this_thread;
use objects::Objects;
use persist_mem::manifest::{Layer, LayerRule, Live, Rights};
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use sys::{Pid, Tid};
use together::Everybody;

const RESOURCE: &str = "landlock";

/// Who is in which domains, as far as that was needed.
#[derive(Debug, Default)]
pub(crate) struct Domains(Option<Everybody>);

/// What was found of a process.
#[derive(Default)]
struct Found {
    layers: Vec<Layer>,
    /// Nodes of the layers of each thread, and which of the layers they are.
    threads: Vec<(Tid, Vec<u64>, Vec<u32>)>,
}

/// Why a process is not carried, if threads of it are in domains that cannot be made again. Where the kernel's memory
/// cannot be read nobody can tell whether there are any.
pub(crate) fn refusals(pid: Pid, domains: &mut Domains, inside: Option<&[Pid]>) -> Vec<Refusal> {
    match describe(pid) {
        Ok(found) if found.layers.is_empty() => Vec::new(),
        Ok(found) => examine(pid, &found, domains, inside)
            .err()
            .into_iter()
            .collect(),
        Err(FreezerError::Refused(found)) => found,
        Err(_) => Vec::new(),
    }
}

/// Notes the domains of a stopped process's threads; `inside` are all that stand still.
///
/// # Errors
/// [`FreezerError::Refused`].
pub(crate) fn capture(
    pid: Pid,
    live: &mut Live,
    domains: &mut Domains,
    inside: &[Pid],
) -> Result<(), FreezerError> {
    let found = describe(pid)?;
    if found.layers.is_empty() {
        return Ok(());
    }
    let together = examine(pid, &found, domains, Some(inside));
    live.layers_together = together.map_err(|why| FreezerError::Refused(vec![why]))?;
    live.layers = found.layers;
    for thread in &mut live.threads {
        let own = found.threads.iter().find(|(tid, ..)| *tid == thread.tid);
        if let Some((_, nodes, layers)) = own {
            thread.layers.clone_from(layers);
            thread.domains.clone_from(nodes);
        }
    }
    Ok(())
}

fn refuse(pid: Pid, reason: impl Into<String>) -> Refusal {
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: RESOURCE.into(),
        reason: reason.into(),
    }
}

/// The layers of a process's threads without those that this process has, too.
fn describe(pid: Pid) -> Result<Found, FreezerError> {
    let own = patiently(|| domains_of(&[this_thread()])).unwrap_or_default();
    let own = own.first().map(|(_, domain)| nodes(domain));
    let own = own.unwrap_or_default();
    let read = patiently(|| domains_of(&proc::threads(pid).unwrap_or_default()));
    let read = match read {
        Ok(read) => read,
        // Nobody can tell whether there are any.
        Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => return Ok(Found::default()),
        Err(why) => {
            let reason =
                format!("it has restricted itself with Landlock, and how cannot be read: {why}");
            return Err(FreezerError::Refused(vec![refuse(pid, reason)]));
        }
    };
    let mut objects = Objects::default();
    let mut found = Found::default();
    for (tid, domain) in read {
        let layers = layers(&domain, &own, &mut objects);
        let layers = layers.map_err(|why| FreezerError::Refused(vec![refuse(pid, why)]))?;
        let mut places = Vec::new();
        for layer in layers {
            let known = found.layers.iter().position(|known| *known == layer);
            let place = known.unwrap_or_else(|| {
                found.layers.push(layer);
                found.layers.len() - 1
            });
            places.push(u32::try_from(place).unwrap_or(u32::MAX));
        }
        let nodes = nodes(&domain).split_off(common(&domain, &own));
        found.threads.push((tid, nodes, places));
    }
    Ok(found)
}

/// The domains of threads that have one.
fn domains_of(threads: &[Tid]) -> Result<Vec<(Tid, Domain)>, Unreadable> {
    kernel::look(|kernel| {
        let Some(place) = find::place(kernel)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (tid, at, domain) in addresses(kernel, threads, place)? {
            if domain != 0 {
                found.push((tid, kernel.domain(at)?));
            }
        }
        Ok(found)
    })
}

/// Tries again where threads may have ended, or restricted themselves, meanwhile.
fn patiently<T>(mut look: impl FnMut() -> Result<T, Unreadable>) -> Result<T, Unreadable> {
    const TRIES: usize = 10;
    let mut left = TRIES;
    loop {
        left -= 1;
        match look() {
            Err(Unreadable::Inconsistent(_)) if left > 0 => {}
            found => return found,
        }
    }
}

/// Of threads that are there, where Landlock's part of their credentials is, and the address of their domain, 0
/// without one.
fn addresses(
    kernel: &mut Kernel,
    threads: &[Tid],
    place: u64,
) -> Result<Vec<(Tid, u64, u64)>, Unreadable> {
    let security = kernel.btf().field("cred", "security")?.offset;
    let credentials = kernel.credentials(threads)?;
    let added = kernel.words_within(&credentials, security)?;
    let domains = kernel.words_within(&added, place)?;
    let all = threads.iter().zip(added).zip(domains);
    Ok(all
        .filter_map(|((tid, added), domain)| Some((*tid, added?.wrapping_add(place), domain?)))
        .collect())
}

fn nodes(domain: &Domain) -> Vec<u64> {
    domain.layers.iter().map(|layer| layer.node).collect()
}

/// How many layers this process has as well.
fn common(domain: &Domain, own: &[u64]) -> usize {
    let both = nodes(domain).into_iter().zip(own);
    both.take_while(|(one, other)| one == *other).count()
}

/// The layers of a domain but those that this process has, or why they cannot be made again.
fn layers(domain: &Domain, own: &[u64], objects: &mut Objects) -> Result<Vec<Layer>, String> {
    let mut found = Vec::new();
    for (level, layer) in (1..).zip(&domain.layers).skip(common(domain, own)) {
        found.push(Layer {
            handled: rights(layer.handled),
            quiet: rights(layer.quiet),
            log: layer.log,
            rules: rules(domain, level, &layer.handled, objects)?,
        });
    }
    Ok(found)
}

/// What a level of a domain, or a ruleset (level 0), says in its rules.
fn rules(
    domain: &Domain,
    level: u32,
    handled: &[u64; 3],
    objects: &mut Objects,
) -> Result<Vec<LayerRule>, String> {
    let mut rules = Vec::new();
    for rule in &domain.rules {
        let Some(part) = rule.parts.iter().find(|part| part.level == level) else {
            continue;
        };
        let Some((object, handled)) = objects.name(rule.object, handled)? else {
            continue;
        };
        rules.push(LayerRule {
            object,
            allowed: part.access & handled,
            quiet: part.quiet,
        });
    }
    rules.sort_by(|one, other| one.object.cmp(&other.object));
    Ok(rules)
}

fn rights([fs, net, scope]: [u64; 3]) -> Rights {
    Rights { fs, net, scope }
}

/// The ruleset that an open file is.
///
/// # Errors
/// Why it cannot be made again.
pub(crate) fn ruleset(file: BorrowedFd<'_>) -> Result<Layer, String> {
    let read = patiently(|| {
        kernel::look(|kernel| {
            let file = kernel.own_file(file)?;
            kernel.ruleset(file)
        })
    });
    let read = read.map_err(|why| format!("a ruleset of Landlock cannot be read: {why}"))?;
    let layer = read.layers.first().cloned().unwrap_or_default();
    Ok(Layer {
        handled: rights(layer.handled),
        quiet: rights(layer.quiet),
        log: 0,
        rules: rules(&read, 0, &layer.handled, &mut Objects::default())?,
    })
}

/// How many layers its threads have to be in together, or why domains of a process cannot be made again.
fn examine(
    pid: Pid,
    found: &Found,
    domains: &mut Domains,
    inside: Option<&[Pid]>,
) -> Result<u32, Refusal> {
    let everybody = domains.0.get_or_insert_with(Everybody::look);
    let inside = inside.map(|inside| inside.iter().copied().collect::<BTreeSet<_>>());
    together::examine(pid, found, everybody, inside.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::LayerObject;
    use std::sync::mpsc;
    use sys::landlock::{Object, add_rule, ruleset};

    #[test]
    fn what_a_thread_has_forbidden_itself_is_told() {
        const READ_FILE: u64 = 1 << 2;
        const MAKE_DIR: u64 = 1 << 7;
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let done =
                sys::landlock::restrict_this_thread_to(&[READ_FILE | MAKE_DIR, 0, 0, 0, 0, 0]);
            tell.send((this_thread(), done.is_ok())).unwrap();
            let _ = ended.recv();
        });
        let (tid, done) = told.recv().unwrap();
        let me = Pid(std::process::id().cast_signed());
        let found = describe(me);
        drop(end);
        thread.join().unwrap();
        let readable = kernel::readable(kernel::look(|kernel| kernel.tasks(&[])));
        if !done || readable.is_none() {
            return;
        }
        let Ok(found) = found else {
            panic!("it is refused");
        };
        let mine = found.threads.iter().find(|(other, ..)| *other == tid);
        let (_, nodes, layers) = mine.unwrap();
        assert_eq!((nodes.len(), layers.len()), (1, 1));
        let handled = found.layers[layers[0] as usize].handled;
        // Newer kernels add what every domain denies.
        let without_refer = handled.fs & !(1 << 13);
        assert_eq!((without_refer, handled.net), (READ_FILE | MAKE_DIR, 0));
    }

    #[test]
    fn rules_are_made_as_they_are_told() {
        let Ok(rules) = ruleset(&[1 << 2, 0, 0, 0, 0, 0]) else {
            return;
        };
        let root = std::fs::File::open("/").unwrap();
        let beneath = Object::Beneath(std::os::fd::AsFd::as_fd(&root));
        add_rule(&rules, beneath, 1 << 2, false).unwrap();
        assert!(
            add_rule(&rules, beneath, 1 << 3, false).is_err(),
            "it does not handle that"
        );
        assert!(LayerObject::Path(b"/".to_vec()) < LayerObject::Port(1));
    }
}
