//! Failures before the jump: whatever it is, the host runs on as it was and the message says why.

use anyhow::{Result, bail};

use super::Host;
use crate::programs::SHORT;
use crate::rig::Rig;

/// The command for a good upgrade, with a variable of the environment before it.
fn command(rig: &Rig, environment: &str) -> Result<String> {
    Ok(format!(
        "{environment} kupgrade --kernel {} --verify",
        rig.kernel("6.12")?.guest_vmlinuz()
    ))
}

/// A file that is no kernel.
pub(super) fn not_a_kernel(host: &mut Host, _rig: &Rig) -> Result<()> {
    host.must_refuse(
        "kupgrade --kernel /etc/services --verify",
        &["/etc/services"],
    )
}

/// A file that does not exist.
pub(super) fn no_such_file(host: &mut Host, _rig: &Rig) -> Result<()> {
    host.must_refuse("kupgrade --kernel /boot/none --verify", &["/boot/none"])
}

/// A bzImage without the 64-bit entry (`xloadflags` bit 0 at 0x236).
pub(super) fn kernel_of_32_bits(host: &mut Host, rig: &Rig) -> Result<()> {
    let kernel = rig.kernel("6.12")?.guest_vmlinuz();
    host.vm.shell.must(
        &format!(
            "cp {kernel} /var/lab/vmlinuz-32 && printf '\\0\\0' | \
             dd of=/var/lab/vmlinuz-32 bs=1 seek=$((0x236)) conv=notrunc status=none"
        ),
        SHORT,
    )?;
    host.must_refuse(
        "kupgrade --kernel /var/lab/vmlinuz-32 --verify",
        &["64-bit"],
    )
}

/// A half-made mount (fsopen(2)): nobody can rebuild it.
pub(super) fn unsupported_descriptor(host: &mut Host, rig: &Rig) -> Result<()> {
    let pid = host.vm.shell.must(
        "python3 -c 'import ctypes, time; ctypes.CDLL(None).syscall(430, b\"tmpfs\", 0) >= 0 or exit(1); \
         open(\"/var/lab/holder\", \"w\"); time.sleep(3600)' & \
         until [ -e /var/lab/holder ]; do kill -0 $! || break; sleep 0.1; done; rm /var/lab/holder && echo $!",
        SHORT,
    )?;
    let pid = pid.lines().last().unwrap_or_default().trim().to_owned();
    if pid.parse::<u32>().is_err() {
        bail!("the holder of a half-made mount did not start: {pid}");
    }
    host.must_refuse(&command(rig, "")?, &[&pid, "half-made mounts"])?;
    host.must_refuse("kupgrade check", &[&pid, "half-made mounts"])?;
    host.vm
        .shell
        .must(&format!("kill {pid}; wait {pid}; true"), SHORT)?;
    Ok(())
}

/// A socket that is bound to a virtual interface which is down, and so is no obstacle by itself.
const NAMES_VIRTUAL: &str = "rm -f /var/lab/holder; ip link add down0 type dummy; \
     (exec python3 -c 'import os, socket, time; s = socket.socket(2, 2); s.setsockopt(1, 25, b\"down0\"); \
     open(\"/var/lab/holder\", \"w\").write(str(os.getpid())); time.sleep(3600)' </dev/null >/dev/null 2>&1 &) \
     ; for i in $(seq 100); do [ -s /var/lab/holder ] && break; sleep 0.1; done; [ -s /var/lab/holder ]";

/// A packet filter, a queueing discipline, who needs what is not made again: the host would come back without them.
pub(super) fn lost_network(host: &mut Host, rig: &Rig) -> Result<()> {
    for (set, words, unset) in [
        (
            "python3 /opt/kupgrade/lab/nft_table.py add",
            &["ip guard", "nftables"][..],
            "python3 /opt/kupgrade/lab/nft_table.py delete",
        ),
        (
            "tc qdisc add dev lo root tbf rate 1gbit burst 1mb latency 1s",
            &["tbf", "interface lo"],
            "tc qdisc delete dev lo root",
        ),
        (
            "ip nexthop add id 7 dev lo",
            &["next hops"],
            "ip nexthop delete id 7",
        ),
        (
            NAMES_VIRTUAL,
            &["interface down0"],
            "kill $(cat /var/lab/holder); ip link delete down0",
        ),
    ] {
        host.vm.shell.must(set, SHORT)?;
        host.must_refuse(&command(rig, "")?, words)?;
        host.vm.shell.must(unset, SHORT)?;
    }
    Ok(())
}

/// A parent in vfork(2) does not stop until its child lets go, which is not known here.
pub(super) fn unstoppable(host: &mut Host, rig: &Rig) -> Result<()> {
    let prefix = "/var/lab/unstoppable";
    let pid = host.vm.shell.must(
        &format!(
            "/opt/kupgrade/subject vfork-parent {prefix} </dev/null >/dev/null 2>&1 & \
             until [ -e {prefix}.ready ]; do kill -0 $! || break; sleep 0.1; done; rm {prefix}.ready && echo $!"
        ),
        SHORT,
    )?;
    let pid = pid.lines().last().unwrap_or_default().trim().to_owned();
    host.must_refuse(&command(rig, "")?, &[&pid, "vfork"])?;
    host.vm
        .shell
        .must(&format!("touch {prefix}.ask; wait {pid}"), SHORT)?;
    Ok(())
}

/// kexec_load(2) switched off by the administrator.
pub(super) fn kexec_disabled(host: &mut Host, rig: &Rig) -> Result<()> {
    host.vm
        .shell
        .must("echo 1 > /proc/sys/kernel/kexec_load_disabled", SHORT)?;
    host.must_refuse(&command(rig, "")?, &["kexec_load_disabled"])
}

/// ptrace(2) switched off by the administrator, until the next boot.
pub(super) fn nobody_traces(host: &mut Host, rig: &Rig) -> Result<()> {
    let scope = "/proc/sys/kernel/yama/ptrace_scope";
    host.vm.shell.must(&format!("echo 3 > {scope}"), SHORT)?;
    host.must_refuse(&command(rig, "")?, &["ptrace_scope is 3"])
}

/// A machine too small for a boot window.
pub(super) fn no_window(host: &mut Host, rig: &Rig) -> Result<()> {
    host.must_refuse(&command(rig, "")?, &["window"])
}

/// `KUPGRADE_FAULT=sigterm:PHASE` makes kupgrade send itself the signal when it enters the
/// phase: from the freeze on there is nobody else left to send one.
fn sigterm(host: &mut Host, rig: &Rig, phase: &str) -> Result<()> {
    host.must_refuse(
        &command(rig, &format!("KUPGRADE_FAULT=sigterm:{phase}"))?,
        &["signal"],
    )
}

/// SIGTERM while the upgrade is planned.
pub(super) fn sigterm_plan(host: &mut Host, rig: &Rig) -> Result<()> {
    sigterm(host, rig, "plan")
}

/// SIGTERM while the kernel is loaded.
pub(super) fn sigterm_stage(host: &mut Host, rig: &Rig) -> Result<()> {
    sigterm(host, rig, "stage")
}

/// SIGTERM while the processes are stopped.
pub(super) fn sigterm_freeze(host: &mut Host, rig: &Rig) -> Result<()> {
    sigterm(host, rig, "freeze")
}

/// SIGTERM while the processes are described.
pub(super) fn sigterm_capture(host: &mut Host, rig: &Rig) -> Result<()> {
    sigterm(host, rig, "capture")
}

/// SIGTERM during the last look at the pages.
pub(super) fn sigterm_pin_down(host: &mut Host, rig: &Rig) -> Result<()> {
    sigterm(host, rig, "pin-down")
}

/// SIGKILL during the last look at the pages: memory blocks are out of use then, a kernel is loaded, settings are
/// changed, and the worker can take nothing back.
pub(super) fn sigkill_pin_down(host: &mut Host, rig: &Rig) -> Result<()> {
    const STATE: &str = "grep -c online /sys/devices/system/memory/memory*/state; cat /sys/kernel/kexec_loaded \
                         /sys/kernel/mm/transparent_hugepage/enabled /proc/sys/vm/swappiness \
                         /proc/sys/vm/compact_unevictable_allowed";
    let before = host.vm.shell.must(STATE, SHORT)?;
    let killed = command(rig, "KUPGRADE_FAULT=sigkill:pin-down")?;
    host.must_refuse(&killed, &["the worker was killed"])?;
    let after = host.vm.shell.must(STATE, SHORT)?;
    if before != after {
        bail!("it was killed, and the host was\n{before}\nand is\n{after}");
    }
    Ok(())
}
