//! `kupgrade --kernel`: the way of the running host to the jump, one file for each phase.
//!
//! Every phase returns something that takes back what it did when it is dropped, so a failure
//! anywhere leaves the host as it was: processes run on, the staged kernel is unloaded, memory
//! blocks and settings of the kernel are as before.

mod before;
mod capture;
pub(crate) mod check;
mod command;
mod course;
mod fault;
mod jump;
mod other_kernel;
mod pin_down;
mod plan;
mod quiet;
mod room;
mod stage;

use crate::limits::allow_descriptors;
use crate::patience::patiently;
use anyhow::{Context, Result};
use course::Course;
use persist_mem::blocks::MemoryBlocks;
use persist_mem::manifest::Phase;
use quiet::Quiet;
use std::convert::Infallible;
use std::path::Path;

pub(crate) use command::command;

const SYS: &str = "/sys";

/// Leaves for another kernel. Returns only when that failed; the host is as before then.
///
/// # Errors
/// What went wrong, in any phase.
fn run(kernel: &Path, verify: bool) -> Result<Infallible> {
    let uname = nix::sys::utsname::uname().context("asking for the kernel's release")?;
    let here = uname.release().to_string_lossy();
    let name = format!("upgrade-from-{here}.log");
    crate::log::keep(&Path::new(initramfs::init::LOGS).join(name));
    allow_descriptors();
    let mut course = Course::begin()?;
    course.enter(Phase::Check)?;
    let host = check::check(kernel)?;
    course.enter(Phase::Plan)?;
    let blocks = MemoryBlocks::open(Path::new(SYS))?;
    let _locked = Quiet::of_locked_pages();
    let mut plan = plan::make(&host, &blocks)?;
    // From here on nothing but ourselves moves memory.
    let _quiet = Quiet::of_all_pages();
    let place = plan.reserve()?;
    course.enter(Phase::Stage)?;
    let _staged = stage::stage(&host, &plan, &place)?;
    nix::unistd::sync();
    let rings = other_kernel::moved_rings(&host.image.release, &here);
    let (frozen, captured) = patiently(|| {
        course.enter(Phase::Freeze)?;
        let frozen = freezer::freeze_all(&[], rings)?;
        course.enter(Phase::Capture)?;
        let captured = capture::capture(&frozen, &host)?;
        Ok((frozen, captured))
    })?;
    // Nothing has been taken yet, and nobody is left who could end a child.
    frozen.stands()?;
    course.enter(Phase::PinDown)?;
    let pinned = pin_down::pin_down(captured, &mut plan, &place, &course, verify)?;
    course.enter(Phase::Jump)?;
    jump::jump(&pinned, &mut plan, &place).context("the jump failed")
}
