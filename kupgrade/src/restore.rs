//! `kupgrade restore`.

use crate::external::External;
use crate::image::Image;
use crate::signals::Held;
use crate::{after, say};
use anyhow::{Context, Result, bail};
use nix::time::ClockId;
use persist_mem::manifest::{DescriptionKind, Host, Manifest};
use persist_mem::pages_file::PagesFile;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use sys::Pid;

/// Rebuilds the tree saved in `dir`, or what can be of it (`partial`), and returns once it runs. On any failure
/// nothing of it is left.
pub(crate) fn run(dir: &Path, external: &[External], partial: bool) -> Result<ExitCode> {
    let image = Image::at(dir);
    let context = || format!("reading {}", image.manifest.display());
    let bytes = std::fs::read(&image.manifest).with_context(context)?;
    let manifest = Manifest::from_bytes(&bytes).with_context(context)?;
    let context = || format!("reading {}", image.pages.display());
    let sums = manifest.page_sums.clone().unwrap_or_default();
    let pages = PagesFile::open(&image.pages, &sums).with_context(context)?;
    let externals = own(external, &manifest)?;
    let options = resurrect::Options {
        elapsed: elapsed(&manifest.host)?,
        externals: Some(&externals),
        ..resurrect::Options::default()
    };
    let held = Held::hold()?;
    let (world, lost) = if partial {
        resurrect::restore_most(&manifest, &pages, options)?
    } else {
        (resurrect::restore(&manifest, &pages, options)?, Vec::new())
    };
    held.check()?;
    world.thaw()?;
    lost.iter().for_each(|one| say::aside(&one.to_string()));
    Ok(after::status(&lost))
}

/// Copies of this program's own descriptors: those named on the command line, and others that were
/// external when the tree was saved, if this program was given them.
fn own(external: &[External], manifest: &Manifest) -> Result<BTreeMap<i32, OwnedFd>> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let pidfd = sys::process::pidfd_open(me).context("opening a pidfd")?;
    let copy = |number: i32| {
        let copy = sys::process::pidfd_getfd(pidfd.as_fd(), number)
            .with_context(|| format!("--external fd[{number}]: it is not open here"))?;
        Ok((number, copy))
    };
    let (mut numbers, _) = External::split(external);
    for description in &manifest.descriptions {
        if let DescriptionKind::External { number } = description.kind
            && !numbers.contains(&number)
            && given(number)
        {
            numbers.push(number);
        }
    }
    numbers.into_iter().map(copy).collect()
}

/// Whether a descriptor was handed to this program: what it opens itself is close-on-exec.
fn given(number: i32) -> bool {
    let me = Pid(nix::unistd::getpid().as_raw());
    let told = sys::procdir::read(me, &format!("fdinfo/{number}")).unwrap_or_default();
    let told = String::from_utf8_lossy(&told);
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & nix::libc::O_CLOEXEC.cast_unsigned() == 0)
}

/// Time since the tree was saved, on the clock that its time-outs run by.
fn elapsed(host: &Host) -> Result<Duration> {
    let me = Pid(nix::unistd::getpid().as_raw());
    if freezer::capture::boot_id(me)? != host.boot_id {
        bail!(
            "the tree was saved before this host was started; its clocks would jump (an image is for the boot it was made in)"
        );
    }
    let now = sys::clock::read_ns(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    let passed = u64::try_from(now - host.clocks.monotonic).unwrap_or(0);
    Ok(Duration::from_nanos(passed))
}
