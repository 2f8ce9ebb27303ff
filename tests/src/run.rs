//! The plain commands: set-up, a machine for some commands, a machine for a person.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::termios::{self, SetArg};

use crate::rig::Rig;
use crate::setup::Cache;
use crate::setup::kernels::STANDARD;
use crate::setup::rootfs::Flavour;
use crate::ui;
use crate::vm::Vm;

/// What `cargo lab run` takes.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The kernel to boot: 6.1, 6.12, backports, a package or a vmlinuz
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// MiB of RAM
    #[arg(long, default_value_t = 3072)]
    memory: u64,
    /// Seconds that each command may take
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Print the console's log at the end
    #[arg(long)]
    console: bool,
    /// Do not build kupgrade: boot without it
    #[arg(long)]
    plain: bool,
    /// A file of the host to bring along as /opt/kupgrade/NAME; may be given more than once
    #[arg(long)]
    file: Vec<PathBuf>,
    /// The commands, one argument each
    #[arg(required = true, last = true)]
    commands: Vec<String>,
}

/// What `cargo lab shell` takes.
#[derive(Args)]
pub(crate) struct ShellArgs {
    /// The kernel to boot: 6.1, 6.12, backports, a package or a vmlinuz
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// MiB of RAM
    #[arg(long, default_value_t = 3072)]
    memory: u64,
}

/// `cargo lab setup`
pub(crate) fn setup(update: bool) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let kernels = cache.kernels(&STANDARD.map(str::to_owned), update)?;
    for kernel in &kernels {
        cache.initrd(kernel)?;
    }
    let bare = cache.bare_initrd()?;
    cache.disk(Flavour::Demo, &kernels)?;
    crate::vm::decide_accel(
        &crate::paths::cache()?,
        &cache.qemu()?,
        kernels.last().context("no kernel")?,
        &bare,
    )?;
    for kernel in &kernels {
        ui::say(&format!(
            "{:<6} {}",
            kernel.short(),
            kernel.vmlinuz().display()
        ));
    }
    ui::step("everything is there");
    Ok(ExitCode::SUCCESS)
}

/// `cargo lab run`: exits with the first status that is not 0.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let rig = Rig::prepare(
        "run",
        std::slice::from_ref(&args.kernel),
        !args.plain,
        &args.file,
    )?;
    let mut vm = rig.boot(&rig.spec("run", &args.kernel, args.memory)?)?;
    ui::step(&format!(
        "the machine runs; its logs are in {}",
        vm.dir().display()
    ));
    let mut code = ExitCode::SUCCESS;
    for command in &args.commands {
        ui::say(&format!("# {command}"));
        let result = vm.shell.run(command, Duration::from_secs(args.timeout));
        let output = match result {
            Ok(output) => output,
            Err(error) => return Err(vm.explain(error)),
        };
        ui::say(output.text.trim_end_matches('\n'));
        if output.status != 0 {
            ui::say(&format!("(exit status {})", output.status));
            code = ExitCode::from(u8::try_from(output.status).unwrap_or(1));
            break;
        }
    }
    if args.console {
        ui::say("--- console");
        ui::say(&vm.console_text());
    }
    Ok(code)
}

/// `cargo lab shell`
pub(crate) fn shell(args: &ShellArgs) -> Result<ExitCode> {
    let rig = Rig::prepare("shell", std::slice::from_ref(&args.kernel), true, &[])?;
    let mut vm = rig.boot(&rig.spec("shell", &args.kernel, args.memory)?)?;
    ui::step(&format!(
        "the console's log is {}; Ctrl-] ends the machine",
        vm.console().display()
    ));
    for kernel in STANDARD {
        ui::say(&format!(
            "    kupgrade --kernel {}",
            rig.kernel(kernel)?.guest_vmlinuz()
        ));
    }
    vm.shell
        .must("stty echo onlcr; PS1='\\w \\$ '", Duration::from_secs(10))?;
    let stdin = std::io::stdin();
    let saved = termios::tcgetattr(&stdin).ok();
    if let Some(saved) = &saved {
        let mut raw = saved.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
    }
    let result = bridge(&mut vm);
    if let Some(saved) = &saved {
        termios::tcsetattr(&stdin, SetArg::TCSANOW, saved)?;
    }
    ui::say("");
    result.map(|()| ExitCode::SUCCESS)
}

/// Joins the terminal and the guest's shell until Ctrl-], end of input or the machine's end.
fn bridge(vm: &mut Vm) -> Result<()> {
    let (mut line, inbox) = vm.shell.raw()?;
    line.write_all(b"\n")?;
    let (left, gone) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) && byte[0] != 0x1d {
            if line.write_all(&byte).is_err() {
                break;
            }
        }
        let _ = left.send(());
    });
    let mut out = std::io::stdout();
    while gone.try_recv().is_err() {
        match inbox.take(Duration::from_millis(50)) {
            Some(bytes) => {
                out.write_all(&bytes)?;
                out.flush()?;
            }
            None => return Ok(()),
        }
    }
    Ok(())
}
