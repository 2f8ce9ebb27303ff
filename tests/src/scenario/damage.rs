//! Failures after the jump. A process that cannot be rebuilt is lost, and to the others it is as if somebody had
//! killed it. When nothing can be, all processes are lost and the host is not: it boots to its init and says on the
//! console what happened.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Host;
use crate::jump;
use crate::programs::SHORT;
use crate::rig::Rig;

/// How long the other kernel may take until its own init has a shell.
const LIMIT: Duration = Duration::from_secs(120);

/// Jumps with a manifest that kupgrade itself spoils as it writes it
/// (`KUPGRADE_FAULT=manifest:HOW`).
fn spoiled(host: &mut Host, rig: &Rig, how: &str, word: &str) -> Result<()> {
    let to = rig.kernel("6.12")?;
    host.vm.shell.must("lab_token=before", SHORT)?;
    host.vm.shell.type_line(&format!(
        "KUPGRADE_FAULT=manifest:{how} kupgrade --kernel {} --verify",
        to.guest_vmlinuz()
    ))?;
    host.vm
        .wait_console("kupgrade: the processes could not be carried", LIMIT)?;
    host.vm
        .shell
        .greet(LIMIT)
        .context("no shell after the failure")?;
    let now = jump::release(&mut host.vm)?;
    if now != to.release {
        bail!("the host runs {now}: it did not jump");
    }
    let token = host.vm.shell.must("echo \"token=$lab_token\"", SHORT)?;
    if token.contains("before") {
        bail!("the shell was carried: the manifest was not spoiled");
    }
    let console = host.vm.console_text();
    if !console.to_lowercase().contains(word) {
        bail!("the report on the console does not say '{word}'");
    }
    if console.contains("Kernel panic") {
        bail!("the new kernel panicked");
    }
    Ok(())
}

/// One bit of a record is another.
pub(super) fn bit_flip(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "bit-flip", "crc")
}

/// Nothing is where the command line says.
pub(super) fn missing(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "missing", "no manifest")
}

/// Written by a version that is not known.
pub(super) fn foreign_version(host: &mut Host, rig: &Rig) -> Result<()> {
    spoiled(host, rig, "version", "version")
}

/// One process cannot be rebuilt (`KUPGRADE_FAULT=process:PID`).
pub(super) fn lost_process(host: &mut Host, rig: &Rig) -> Result<()> {
    let to = rig.kernel("6.12")?;
    let shell = &mut host.vm.shell;
    shell.must("lab_token=before", SHORT)?;
    // It has a child, and a pipe to one that goes on; a shell waits for it.
    shell.must(
        "lost='sleep 1000 > /dev/null & echo $! > /tmp/child; echo $$ > /tmp/lost; while :; do sleep 0.2; done'; \
         (sh -c \"$lost\" | (cat > /tmp/piped; echo closed > /tmp/end); echo > /tmp/waited) & sleep 2",
        SHORT,
    )?;
    let pid = shell.must("cat /tmp/lost", SHORT)?;
    let pid = pid.trim();
    let fault = format!("KUPGRADE_FAULT=process:{pid} ");
    let jump = jump::upgrade_with(&mut host.vm, to, &fault)?;
    let [lost] = &jump.report.lost[..] else {
        bail!("the report names as lost {:?}", jump.report.lost);
    };
    if lost.pid.to_string() != pid || lost.comm != "sh" || !lost.why.contains("/nowhere") {
        bail!("the report says {lost:?} instead of process {pid}");
    }
    let text = host.vm.shell.must(
        "sleep 2; echo \"token=$lab_token\"; cat /tmp/end; ls /tmp/waited; \
         test -e /proc/$(cat /tmp/lost) || echo gone; kill -0 $(cat /tmp/child) && echo child; \
         echo \"$(grep -c ' /proc ' /proc/self/mounts) of proc\"",
        SHORT,
    )?;
    for word in [
        "token=before",
        "closed",
        "/tmp/waited",
        "gone",
        "child",
        "1 of proc",
    ] {
        if !text.contains(word) {
            bail!("nothing says '{word}' afterwards:\n{text}");
        }
    }
    if !host.vm.console_text().contains("(sh) is lost: ") {
        bail!("the console does not tell who is lost");
    }
    // And on again: what the first try has left does no harm.
    let jump = jump::upgrade(&mut host.vm, rig.kernel("backports")?)?;
    match &jump.report.lost[..] {
        [] => Ok(()),
        lost => bail!("the next upgrade has lost {lost:?}"),
    }
}

/// The restore begins again without one process: nothing of the first time is in the way.
pub(super) fn lost_among_subjects(host: &mut Host, rig: &Rig) -> Result<()> {
    host.must_upgrade_without_one(rig, "6.12")
}
