//! The command: carries processes over the end of the kernel, or of themselves.
//!
//! Results go to stdout, progress and errors to stderr. Exit status: 0 done; 1 it failed, and
//! nothing was changed; 2 the command line is wrong; 3 `check` found something that is refused.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the program that talks"
)]

mod after;
mod check;
mod checkpoint;
mod image;
mod log;
mod report;
mod restore;
mod signals;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    version,
    about = "Carries running processes over an upgrade of the kernel"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
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
    },
    /// Rebuild a saved tree with its ids; returns once it runs.
    Restore {
        /// The directory that `checkpoint` wrote.
        #[arg(long)]
        dir: PathBuf,
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
    let done = match Arguments::parse().command {
        Command::Check { pid, json } => check::run(pid.map(sys::Pid), json),
        Command::Checkpoint {
            pid,
            dir,
            leave_running,
        } => checkpoint::run(sys::Pid(pid), &dir, leave_running).map(|()| ExitCode::SUCCESS),
        Command::Restore { dir } => restore::run(&dir).map(|()| ExitCode::SUCCESS),
        Command::Report { json } => report::run(json).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("kupgrade: {error:#}");
        ExitCode::FAILURE
    })
}
