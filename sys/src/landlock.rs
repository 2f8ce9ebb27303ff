//! Landlock (landlock(7)).

use crate::Result;
use crate::raw::syscall;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `LANDLOCK_ACCESS_FS_MAKE_BLOCK`: threads of programs have no use for it.
const MAKE_BLOCK: u64 = 1 << 11;
const CREATE_RULESET_VERSION: u64 = 1;
const RULE_PATH_BENEATH: u64 = 1;
const RULE_NET_PORT: u64 = 2;
const ADD_RULE_QUIET: u64 = 1;

/// What a ruleset handles, and what of it is not logged: `struct landlock_ruleset_attr`, files, network, and scopes of
/// each.
pub type Attributes = [u64; 6];

/// What a rule is about.
#[derive(Clone, Copy, Debug)]
pub enum Object<'a> {
    /// A file, or a directory and what is below it.
    Beneath(BorrowedFd<'a>),
    /// A port.
    Port(u16),
}

/// The version of the interface, 0 where there is none.
#[must_use]
pub fn version() -> u32 {
    let args = [0, 0, CREATE_RULESET_VERSION, 0, 0, 0];
    // SAFETY: no pointers.
    let found = unsafe { syscall(libc::SYS_landlock_create_ruleset, args) };
    found.map_or(0, |version| version as u32)
}

/// A new ruleset.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where the kernel has no Landlock, `EINVAL` or `E2BIG` where it does not know all rights.
pub fn ruleset(attributes: &Attributes) -> Result<OwnedFd> {
    let size = size_of_val(attributes) as u64;
    let args = [attributes.as_ptr() as u64, size, 0, 0, 0, 0];
    // SAFETY: the kernel reads `size` bytes of `attributes`.
    let fd = unsafe { syscall(libc::SYS_landlock_create_ruleset, args) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Adds a rule that allows something.
///
/// # Errors
/// As landlock_add_rule(2).
pub fn add_rule(ruleset: &OwnedFd, object: Object<'_>, allowed: u64, quiet: bool) -> Result<()> {
    let (kind, what) = match object {
        // The upper half is not read.
        Object::Beneath(file) => (RULE_PATH_BENEATH, file.as_raw_fd().cast_unsigned().into()),
        Object::Port(port) => (RULE_NET_PORT, u64::from(port)),
    };
    let rule = [allowed, what];
    let flags = if quiet { ADD_RULE_QUIET } else { 0 };
    let fd = ruleset.as_fd().as_raw_fd() as u64;
    let args = [fd, kind, rule.as_ptr() as u64, flags, 0, 0];
    // SAFETY: the kernel reads a rule of at most 16 bytes.
    unsafe { syscall(libc::SYS_landlock_add_rule, args) }.map(drop)
}

/// Forbids the calling thread to make block devices, which cannot be taken back.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where the kernel has no Landlock, `E2BIG` when there are too many domains.
pub fn restrict_this_thread() -> Result<()> {
    restrict_this_thread_to(&[MAKE_BLOCK, 0, 0, 0, 0, 0])
}

/// Forbids the calling thread everything of that, which cannot be taken back.
///
/// # Errors
/// As [`ruleset`], and `E2BIG` when there are too many domains.
pub fn restrict_this_thread_to(handled: &Attributes) -> Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    let rules = ruleset(handled)?;
    let args = [rules.as_raw_fd() as u64, 0, 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_landlock_restrict_self, args) }.map(drop)
}
