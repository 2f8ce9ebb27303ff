//! The lab: virtual machines in which whole upgrades are tried.
//!
//! `cargo lab demo` tells the story, `cargo lab test` runs every test there is. Start reading
//! at [`rig`] (what a machine is booted from), [`vm`] and [`guest`] (driving one).

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the lab is a command; all printing goes through `ui`"
)]

mod bare;
mod conformance;
mod demo;
mod guest;
mod jump;
mod native;
mod paths;
mod programs;
mod report;
mod rig;
mod run;
mod scenario;
mod setup;
mod tool;
mod ui;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Virtual machines for kupgrade: the demonstration, the tests, a machine to play in.
#[derive(Parser)]
#[command(name = "cargo lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install, download and build all that a machine needs, and keep it in the cache
    Setup {
        /// Ask apt for newer kernels
        #[arg(long)]
        update: bool,
    },
    /// Carry a host with work on it from kernel to kernel and tell the story
    Demo(demo::DemoArgs),
    /// Run every test: those of `cargo test`, then those in machines
    Test(scenario::TestArgs),
    /// Show the table of what is carried, as the last tests found it
    Conformance(conformance::ConformanceArgs),
    /// Measure checkpoint and restore on one kernel beside CRIU
    Bench(native::BenchmarkArgs),
    /// One checkpoint and restore, as PID 1 of its own namespaces
    #[command(hide = true)]
    BenchWorker(native::BenchArgs),
    /// One subject's life on one kernel, as PID 1 of its own namespaces
    #[command(hide = true)]
    NativeWorker(native::WorkerArgs),
    /// Measure a bare kexec into an archive that does nothing
    Bare(bare::BareArgs),
    /// Boot a machine, run commands in it one after the other, print what they print
    Run(run::RunArgs),
    /// Boot a machine and sit at its root shell (Ctrl-] leaves and ends it)
    Shell(run::ShellArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup { update } => run::setup(update),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => scenario::test(&args),
        Command::Conformance(args) => conformance::conformance(&args),
        Command::Bench(args) => native::bench(&args),
        Command::BenchWorker(args) => native::bench_worker(&args),
        Command::NativeWorker(args) => native::worker(&args),
        Command::Bare(args) => bare::bare(&args),
        Command::Run(args) => run::run(&args),
        Command::Shell(args) => run::shell(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            ui::complain(&format!("lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
