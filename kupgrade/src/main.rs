//! The command: carries processes over the end of the kernel, or of themselves.
//!
//! Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 it failed, and
//! nothing was changed; 2 the command line is wrong; 3 `check` found something that is refused.
#![forbid(unsafe_code)]

mod after;
mod check;
mod checkpoint;
mod external;
mod image;
mod limits;
mod log;
mod patience;
mod report;
mod restore;
mod say;
mod signals;
mod upgrade;
mod worker;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    version,
    about = "Carries running processes over an upgrade of the kernel"
)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    upgrade: Option<Upgrade>,
}

#[derive(clap::Args)]
struct Upgrade {
    /// Carry the whole host onto this kernel (a bzImage with its modules in /lib/modules).
    #[arg(long, value_name = "VMLINUZ")]
    kernel: PathBuf,
    /// Record a checksum of every carried page and check it on the other side.
    #[arg(long)]
    verify: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Say which processes can be carried, and why the others cannot. Stops nothing.
    Check {
        /// Look at this process and its descendants only.
        #[arg(long)]
        pid: Option<i32>,
        /// One JSON array instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Save a process and its descendants into a directory and end them.
    Checkpoint {
        /// The process.
        #[arg(long)]
        pid: i32,
        /// The directory; made if it is not there, must not hold an image yet.
        #[arg(long)]
        dir: PathBuf,
        /// Let the processes run on.
        #[arg(long)]
        leave_running: bool,
        /// What leads out of the tree and is not carried. fd[NUMBER]: a descriptor of the tree's first
        /// process; at the restore this command's own with that number takes its place. unix:NAME: the
        /// peer of unix sockets by its path (or @ABSTRACT); they are connected to it again.
        #[arg(long)]
        external: Vec<external::External>,
    },
    /// Rebuild a saved tree with its ids; returns once it runs.
    Restore {
        /// The directory that `checkpoint` wrote.
        #[arg(long)]
        dir: PathBuf,
        /// A descriptor that was external when the tree was saved, as fd[NUMBER]: this command's own with
        /// that number is handed over.
        #[arg(long)]
        external: Vec<external::External>,
        /// Rebuild those that can be: a process that cannot, since a file of it is gone, say, ends as if it had
        /// been killed, and the others go on. The exit status is 4 then.
        #[arg(long)]
        partial: bool,
    },
    /// Tell what the last upgrade did and how long each part took.
    Report {
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    if initramfs::init::is_init() {
        initramfs::init::run();
    }
    log::init();
    let arguments = Arguments::parse();
    let done = match (arguments.upgrade, arguments.command) {
        (Some(order), _) => upgrade::command(&order.kernel, order.verify),
        (None, Some(command)) => run(command),
        (None, None) => Ok(ExitCode::from(2)),
    };
    done.unwrap_or_else(|error| {
        say::failure(&error);
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { pid, json } => check::run(pid.map(sys::Pid), json),
        Command::Checkpoint {
            pid,
            dir,
            leave_running,
            external,
        } => worker::run(|| checkpoint::run(sys::Pid(pid), &dir, leave_running, &external)),
        Command::Restore {
            dir,
            external,
            partial,
        } => restore::run(&dir, &external, partial),
        Command::Report { json } => report::run(json).map(|()| ExitCode::SUCCESS),
    }
}
