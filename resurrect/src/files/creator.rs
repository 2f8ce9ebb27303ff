//! Open files that count for the user who made them (`fs.inotify.max_user_instances` and others).

use sys::files::as_user;

/// Makes something as that user; as ourselves where that takes privileges that the user has not, or may not have
/// so many of by now.
pub(super) fn as_creator<T>(creator: u32, make: impl Fn() -> sys::Result<T>) -> sys::Result<T> {
    let ours = nix::unistd::getuid().as_raw();
    as_user([ours, creator], &make).or_else(|_| make())
}
