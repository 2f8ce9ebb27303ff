//! Where the kernel keeps the domain of a thread: a pointer among what security modules add to credentials
//! (`cred.security`, security/landlock/cred.h), at a place that it chooses when it starts. It is found by what changes in
//! a thread that restricts itself.

use crate::kernel::{Kernel, Unreadable, word};
use std::cell::Cell;
use std::sync::mpsc;
use sys::Tid;

/// What security modules add to credentials is not longer.
pub(super) const ADDED: u64 = 256;
/// Addresses of the kernel (Documentation/arch/x86/x86_64/mm.rst) begin above.
const KERNEL: u64 = 0xff00_0000_0000_0000;

thread_local! {
    /// Where the domain is, once that was looked for. None when this kernel has no Landlock.
    static PLACE: Cell<Option<Option<u64>>> = const { Cell::new(None) };
}

/// Where the domain is in what security modules add to credentials. None when this kernel has no Landlock.
pub(super) fn place(kernel: &mut Kernel) -> Result<Option<u64>, Unreadable> {
    let place = match PLACE.get() {
        Some(known) => known,
        None => find(kernel)?,
    };
    PLACE.set(Some(place));
    Ok(place)
}

pub(super) fn this_thread() -> Tid {
    Tid(nix::unistd::gettid().as_raw())
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
