//! Namespaces that not all threads of a process are in, or only those whom it makes.

use anyhow::Result;
use std::ffi::CString;

use crate::kit::{Crew, Setting, Watch, errno, fork, not_here, same, sys};

/// A thread has a host name of its own.
pub(crate) fn of_thread(_: &Setting) -> Result<Watch> {
    if !there(libc::CLONE_NEWUTS) {
        return not_here("namespaces");
    }
    let mut crew = Crew::default();
    crew.add(|| {
        // SAFETY: takes a number.
        sys("unshare", unsafe { libc::unshare(libc::CLONE_NEWUTS) })?;
        let name = CString::new("elsewhere")?;
        // SAFETY: the name is as long as that.
        let done = unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) };
        sys("sethostname", done)?;
        Watch::keep(host_name)
    })?;
    Ok(crew.watch())
}

/// Children are in a namespace that their parent is not in.
pub(crate) fn of_children(_: &Setting) -> Result<Watch> {
    if !there(libc::CLONE_NEWTIME) {
        return not_here("namespaces");
    }
    // SAFETY: takes a number.
    sys("unshare", unsafe { libc::unshare(libc::CLONE_NEWTIME) })?;
    Ok(Watch::new(|| {
        let link = |name| std::fs::read_link(format!("/proc/self/ns/{name}"));
        let same_one = link("time")? == link("time_for_children")?;
        same("whether children are in the same one", &false, &same_one)
    }))
}

/// Whether a process may make them. A child tries it.
fn there(flag: i32) -> bool {
    let tried = fork(|| {
        // SAFETY: takes a number.
        let made = unsafe { libc::unshare(flag) } == 0;
        std::process::exit(if made { 0 } else { errno() });
    });
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    tried.is_ok_and(|child| unsafe { libc::waitpid(child, &raw mut status, 0) } == child)
        && status == 0
}

fn host_name() -> Result<Vec<u8>> {
    let mut name = [0_u8; 65];
    // SAFETY: the name is as long as that.
    sys("gethostname", unsafe {
        libc::gethostname(name.as_mut_ptr().cast(), name.len())
    })?;
    Ok(name.to_vec())
}
