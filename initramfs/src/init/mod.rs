//! `/init` of the overlay: from the new kernel's first process to the running world.
//!
//! | module | what it does |
//! |---|---|
//! | [`saved`] | finds and checks what the old kernel left behind |
//! | [`memory`] | hands memory back, before and after the processes are rebuilt |
//! | [`meanwhile`] | settings that are others while processes are rebuilt |
//! | [`world`] | makes the world, starts the restorer, becomes the supervisor |
//! | [`restorer`] | rebuilds the processes |
//! | [`standstill`] | notices when that waits for ever |
//!
//! Whatever fails ends in the host's own init with a report on the console.

mod meanwhile;
mod memory;
mod restorer;
mod saved;
mod standstill;
mod world;

use crate::early::cmdline::CommandLine;
use crate::early::fallback::{Fallback, fallback_boot, fallback_here};
use crate::early::switch::{NEW_ROOT, discard_overlay, switch_root};
use crate::early::{EarlyError, basics, kmsg, load};
use crate::modules::Stage;
use crate::mounts::{self, MountError, Phase};
use log::LevelFilter;
use resurrect::supervisor::SupervisorError;
use resurrect::supervisor::report::TimeLine;
use saved::{Saved, SavedError};
use std::convert::Infallible;
use std::path::{Path, PathBuf};

/// Where the log of each kernel's kupgrade is kept.
pub const LOGS: &str = "/var/log/kupgrade";

/// Word of the command line with the level of what is logged (`debug`); `info` without it.
pub const LOG_KEY: &str = "kupgrade.log";

/// Why the processes are not carried.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Early(#[from] EarlyError),
    #[error(transparent)]
    Mounts(#[from] MountError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error("handing memory back: {0}")]
    Memory(#[from] persist_mem::handback::HandBackError),
    #[error("{0}")]
    Restorer(String),
}

type Result<T> = std::result::Result<T, InitError>;

/// Whether this process is the first one of an initramfs made by kupgrade.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1 && Path::new("/").join(crate::modules::LIST_PATH).exists()
}

/// A failure, and whether the root was changed when it happened.
struct Failure {
    error: InitError,
    switched: bool,
}

impl<E: Into<InitError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure {
            error: error.into(),
            switched: false,
        }
    }
}

/// The whole way. Never returns: it ends as the world's supervisor or as the host's init.
pub fn run() -> ! {
    let mut time = TimeLine::begin(sys::clock::tsc());
    let basics = basics::mount_basics();
    let line = CommandLine::read(Path::new("/proc/cmdline")).unwrap_or_default();
    let level = line.get(LOG_KEY).and_then(|level| level.parse().ok());
    // Without a log everything else works all the same.
    let _ = kmsg::install(Path::new("/dev/kmsg"), level.unwrap_or(LevelFilter::Info));
    if let Err(error) = basics {
        kmsg::announce(&error.to_string());
    }
    let plan = Fallback::from_command_line(&line);
    let failure = match journey(&line, &mut time) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let reason = failure.error.to_string();
    if failure.switched {
        fallback_here(&plan, &reason)
    } else {
        fallback_boot(&plan, &reason)
    }
}

fn journey(line: &CommandLine, time: &mut TimeLine) -> std::result::Result<Infallible, Failure> {
    let saved = Saved::find(line)?;
    log::info!(
        "{} processes of {} to be carried to {}",
        saved.manifest.processes.len(),
        saved.manifest.host.release,
        release()
    );
    time.done("manifest");
    for stage in [Stage::Root, Stage::World] {
        load::load_modules(Path::new("/"), stage)?;
    }
    time.done("modules");
    memory::make_room(&saved)?;
    time.done("make-room");
    let root = Path::new(NEW_ROOT);
    let mut warnings = Vec::new();
    for error in mounts::restore(&saved.upgrade.mounts, root, Phase::Outside)? {
        log::warn!("{error}");
        warnings.push(error.to_string());
    }
    discard_overlay();
    switch_root(root)?;
    time.done("mounts");
    keep_log();
    world::start(saved, time, warnings).map_err(|error| Failure {
        error,
        switched: true,
    })
}

/// `uname -r`.
fn release() -> String {
    nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// From now on the log goes to the root file system, too.
fn keep_log() {
    let path = PathBuf::from(LOGS).join(format!("init-{}.log", release()));
    if let Err(error) = kmsg::copy_to(&path) {
        log::warn!("{}: {error}", path.display());
    }
}
