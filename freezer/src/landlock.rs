//! Domains of Landlock (landlock(7)): what a thread has forbidden itself.
//!
//! No interface tells of them, not even that there is one. The kernel keeps a pointer to the domain among what
//! security modules add to credentials (`cred.security`, security/landlock/cred.h), at a place that it chooses
//! when it starts: found here by what changes in a thread that restricts itself.

use crate::kernel::{self, Kernel, Unreadable, word};
use crate::{Refusal, proc};
use std::cell::Cell;
use std::sync::mpsc;
use sys::{Pid, Tid};

/// What security modules add to credentials is not longer.
const ADDED: u64 = 256;
/// Addresses of the kernel (Documentation/arch/x86/x86_64/mm.rst) begin above.
const KERNEL: u64 = 0xff00_0000_0000_0000;

thread_local! {
    /// Where the domain is, once that was looked for. None when this kernel has no Landlock.
    static PLACE: Cell<Option<Option<u64>>> = const { Cell::new(None) };
}

/// Why a process is not carried, if a thread of it is in a domain that this process is not in. Where the
/// kernel's memory cannot be read nobody can tell.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    let threads = proc::threads(pid).unwrap_or_default();
    let restricted = kernel::look(|kernel| restricted(kernel, &threads)).unwrap_or(false);
    restricted.then(|| Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "landlock".into(),
        reason: "it has restricted itself with Landlock, which cannot be made again".into(),
    })
}

fn restricted(kernel: &mut Kernel, threads: &[Tid]) -> Result<bool, Unreadable> {
    let place = match PLACE.get() {
        Some(known) => known,
        None => find(kernel)?,
    };
    PLACE.set(Some(place));
    let Some(place) = place else {
        return Ok(false);
    };
    let own = domains(kernel, &[this_thread()], place)?;
    let theirs = domains(kernel, threads, place)?;
    Ok(theirs
        .into_iter()
        .flatten()
        .any(|domain| domain != 0 && !own.contains(&Some(domain))))
}

fn this_thread() -> Tid {
    Tid(nix::unistd::gettid().as_raw())
}

/// Domains of threads: 0 without one, None for threads that are not there.
fn domains(
    kernel: &mut Kernel,
    threads: &[Tid],
    place: u64,
) -> Result<Vec<Option<u64>>, Unreadable> {
    let security = kernel.btf().field("cred", "security")?.offset;
    let credentials = kernel.credentials(threads)?;
    let added = kernel.words_within(&credentials, security)?;
    kernel.words_within(&added, place)
}

/// Where the domain is: what changed in both of two threads. Behind what was added, which may be shorter, lies
/// what has nothing to do with it.
fn find(kernel: &mut Kernel) -> Result<Option<u64>, Unreadable> {
    let (first, second) = (changes(kernel)?, changes(kernel)?);
    Ok(first.into_iter().find(|place| second.contains(place)))
}

/// Which words of what was added to the credentials of a thread change when it restricts itself.
fn changes(kernel: &mut Kernel) -> Result<Vec<u64>, Unreadable> {
    const GONE: Unreadable = Unreadable::Inconsistent("a thread of this process");
    let (tell, told) = mpsc::channel();
    let (order, ordered) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().spawn(move || {
        let _ = tell.send((this_thread(), true));
        if ordered.recv().is_ok() {
            let done = sys::landlock::restrict_this_thread().is_ok();
            let _ = tell.send((this_thread(), done));
            // Until it was looked at.
            let _ = ordered.recv();
        }
    });
    let Ok(thread) = thread else {
        return Err(Unreadable::Inconsistent(
            "a thread of this process, which cannot be made",
        ));
    };
    let found = (|| {
        let (tid, _) = told.recv().map_err(|_| GONE)?;
        let before = added(kernel, tid)?;
        order.send(()).map_err(|_| GONE)?;
        let (_, done) = told.recv().map_err(|_| GONE)?;
        if !done {
            return Ok(Vec::new());
        }
        let after = added(kernel, tid)?;
        let places = (0..ADDED).step_by(8);
        let changed = places.filter(|place| {
            let (was, is) = (word(&before, *place), word(&after, *place));
            was != is && is > Some(KERNEL)
        });
        Ok(changed.collect())
    })();
    drop(order);
    let _ = thread.join();
    found
}

/// What security modules have added to the credentials of a thread.
fn added(kernel: &mut Kernel, tid: Tid) -> Result<Vec<u8>, Unreadable> {
    const WHAT: &str = "credentials of this process";
    let security = kernel.btf().field("cred", "security")?.offset;
    let credentials = kernel.credentials(&[tid])?;
    let found = kernel.words_within(&credentials, security)?;
    let at = found.into_iter().flatten().next();
    let at = at.ok_or(Unreadable::Inconsistent(WHAT))?;
    let read = kernel.read(&[(at, ADDED as usize)])?.pop().flatten();
    read.ok_or(Unreadable::Inconsistent(WHAT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_restrict_themselves_are_found() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let done = sys::landlock::restrict_this_thread();
            tell.send((this_thread(), done.is_ok())).unwrap();
            let _ = ended.recv();
        });
        let (tid, done) = told.recv().unwrap();
        let me = kernel::look(|kernel| restricted(kernel, &[this_thread()]));
        let other = kernel::look(|kernel| restricted(kernel, &[tid]));
        drop(end);
        thread.join().unwrap();
        match me {
            Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => {}
            me => assert_eq!((me, other), (Ok(false), Ok(done))),
        }
    }
}
