//! The story: a host with work on it is carried from kernel to kernel.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::bare;
use crate::jump;
use crate::programs::{self, Pause, Program};
use crate::report::{self, Summary};
use crate::rig::Rig;
use crate::ui;
use crate::vm::Vm;

/// What `cargo lab demo` takes.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// The kernel to start from: 6.1, 6.12, backports, a package or a vmlinuz
    #[arg(long, default_value = "6.1")]
    from: String,
    /// The kernel to go to; more than one, separated by commas, makes a chain
    #[arg(long, default_value = "6.12", value_delimiter = ',')]
    to: Vec<String>,
    /// MiB of RAM of the machine
    #[arg(long, default_value_t = 3072)]
    memory: u64,
    /// MiB of values in Redis
    #[arg(long, default_value_t = 500)]
    data: u64,
    /// Write the summary to this file, one object per upgrade
    #[arg(long)]
    json: Option<PathBuf>,
    /// Do not measure the bare kexec
    #[arg(long)]
    no_bare: bool,
    /// Everything but the upgrade: do the programs verify themselves when nothing happens?
    #[arg(long)]
    rehearse: bool,
}

/// `cargo lab demo`
pub(crate) fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let mut wanted = vec![args.from.clone()];
    wanted.extend(args.to.iter().cloned());
    let rig = Rig::prepare("demo", &wanted, true, &[])?;
    ui::step(&format!(
        "booting Debian 12 with kernel {}",
        rig.kernel(&args.from)?.release
    ));
    let mut vm = rig.boot(&rig.spec("demo", &args.from, args.memory)?)?;
    let mut programs = programs::demonstration(args.data);
    if let Err(error) = begin(&mut vm, &mut programs) {
        return Err(vm.explain(error));
    }
    let mut summaries = Vec::new();
    for to in &args.to {
        let (summary, goes_on) = one_upgrade(&rig, &mut vm, &mut programs, to, args.rehearse);
        summaries.extend(summary);
        if !goes_on {
            break;
        }
    }
    drop(vm);
    if !args.no_bare {
        compare(&rig, args, &mut summaries);
    }
    if let Some(path) = &args.json {
        report::write_json(path, &summaries)?;
    }
    ui::say(&report::tables(&summaries));
    let wrong = summaries.iter().any(|summary| !summary.errors.is_empty());
    if wrong {
        ui::complain(&format!(
            "lab: not everything is as it should be; the logs are in {}",
            rig.dir.display()
        ));
    }
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn begin(vm: &mut Vm, programs: &mut [Box<dyn Program>]) -> Result<()> {
    for program in programs {
        ui::step(&format!("starting: {}", program.name()));
        program.start(&mut vm.shell)?;
    }
    Ok(())
}

/// Makes one upgrade and verifies everything. Returns its summary and whether the machine can
/// go on to the next one.
fn one_upgrade(
    rig: &Rig,
    vm: &mut Vm,
    programs: &mut [Box<dyn Program>],
    to: &str,
    rehearse: bool,
) -> (Option<Summary>, bool) {
    let from = jump::release(vm).unwrap_or_default();
    match try_upgrade(rig, vm, programs, to, rehearse) {
        Ok(summary) => (summary, true),
        Err(error) => {
            let error = vm.explain(error);
            ui::complain(&format!("lab: {error:#}"));
            (
                Some(Summary::failed(
                    &from,
                    to,
                    format!("{}", error.root_cause()),
                )),
                false,
            )
        }
    }
}

fn try_upgrade(
    rig: &Rig,
    vm: &mut Vm,
    programs: &mut [Box<dyn Program>],
    to: &str,
    rehearse: bool,
) -> Result<Option<Summary>> {
    ui::step("noting what must be the same afterwards");
    for program in programs.iter_mut() {
        program.note(&mut vm.shell)?;
    }
    let kernel = rig.kernel(to)?;
    let tell = |text: &str| ui::step(&format!("    {text}"));
    if rehearse {
        let errors = programs::verify_all(
            programs,
            &mut vm.shell,
            &Pause {
                blackout_ms: Some(0.0),
            },
            tell,
        );
        return Ok(
            (!errors.is_empty()).then(|| Summary::failed("rehearsal", to, errors.join("; ")))
        );
    }
    ui::step(&format!(
        "typing: kupgrade --kernel {} --verify",
        kernel.guest_vmlinuz()
    ));
    let jump = jump::upgrade(vm, kernel)?;
    ui::step(&format!(
        "the same shell answers on {} after {:.1} s",
        jump.to,
        jump.command.as_secs_f64()
    ));
    let pause = Pause {
        blackout_ms: Some(jump.report.blackout_ms),
    };
    let errors = programs::verify_all(programs, &mut vm.shell, &pause, tell);
    ui::step("waiting for the memory to be handed back");
    let mem_after = jump::wait_for_memory(vm, jump.mem_before)?;
    Ok(Some(Summary::new(&jump, mem_after, errors)))
}

/// Measures the bare kexec of every upgrade that was made.
fn compare(rig: &Rig, args: &DemoArgs, summaries: &mut [Summary]) {
    let mut from = &args.from;
    for (to, summary) in args.to.iter().zip(summaries) {
        ui::step(&format!("for comparison: a bare kexec {from} -> {to}"));
        match bare::measure(rig, from, to, args.memory) {
            Ok(ms) => summary.compare(ms),
            Err(error) => summary
                .errors
                .push(format!("the bare kexec was not measured: {error:#}")),
        }
        from = to;
    }
}
