//! What a process has as a whole.

pub(crate) mod attributes;
pub(crate) mod autogroup;
pub(crate) mod cgroups;
pub(crate) mod directories;
pub(crate) mod jobs;
pub(crate) mod limits;
mod oom;
pub(crate) mod signals;
mod timer_ids;
mod timer_owners;
pub(crate) mod timers;
