//! Security modules (Documentation/userspace-api/lsm.rst).

use crate::raw::syscall;
use crate::{Errno, Pid, Tid};

/// `lsm_list_modules(2)`
const LIST_MODULES: i64 = 461;

/// Whether the kernel has calls to ask security modules and to tell them something (since Linux 6.8).
#[must_use]
pub fn has_calls() -> bool {
    // SAFETY: the kernel writes to no null pointer.
    let listed = unsafe { syscall(LIST_MODULES, [0; 6]) };
    listed != Err(Errno::ENOSYS)
}

/// Whether this process may send itself signals, which a security module can forbid.
#[must_use]
pub fn may_signal_itself() -> bool {
    let me = nix::unistd::getpid().as_raw();
    let thread = nix::unistd::gettid().as_raw();
    // One that does nothing to who has no action for it.
    crate::process::tgkill(Pid(me), Tid(thread), libc::SIGURG).is_ok()
}

/// What a label of AppArmor names, without the mode that it is in: `name (enforce)`.
#[must_use]
pub fn profile(label: &[u8]) -> &[u8] {
    let mode = label.windows(2).rposition(|two| two == b" (");
    let mode = mode.filter(|_| label.ends_with(b")"));
    &label[..mode.unwrap_or(label.len())]
}

/// What stands in a file below `/proc/PID/attr`: a line, or a text that ends with a null byte.
#[must_use]
pub fn label(file: &[u8]) -> &[u8] {
    let end = file.iter().position(|byte| matches!(byte, 0 | b'\n'));
    &file[..end.unwrap_or(file.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_no_part_of_names() {
        for (file, wanted) in [
            ("unconfined\n", "unconfined"),
            ("kernel\0", "kernel"),
            ("/usr/sbin/chronyd (enforce)\n", "/usr/sbin/chronyd"),
            ("a (b) (complain)", "a (b)"),
            ("one//&two (mixed)", "one//&two"),
            ("a (b", "a (b"),
            ("", ""),
        ] {
            let found = profile(label(file.as_bytes()));
            assert_eq!(String::from_utf8_lossy(found), wanted, "{file}");
        }
    }
}
