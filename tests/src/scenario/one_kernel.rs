//! `kupgrade checkpoint` and `restore` inside a machine, on the kernel it has.

use anyhow::{Result, bail};

use super::Host;
use crate::native;
use crate::programs::SHORT;
use crate::rig::Rig;

/// Every subject, on the kernel of the machine.
pub(super) fn every_subject(host: &mut Host, _rig: &Rig) -> Result<()> {
    native::every_subject(&mut host.vm.shell)
}

/// A tree is saved and runs on; one that holds what is not carried is refused by name and runs on too.
pub(super) fn checkpoint(host: &mut Host, _rig: &Rig) -> Result<()> {
    let shell = &mut host.vm.shell;
    let start = |code: &str| {
        format!(
            "rm -f /var/lab/ck.*; setsid python3 -c '{code}' </dev/null >/dev/null 2>&1 & \
             for i in $(seq 100); do [ -s /var/lab/ck.count ] && break; sleep 0.2; done; cat /var/lab/ck.pid"
        )
    };
    let count = "import os,time,ctypes,itertools\ns=None\nopen(\"/var/lab/ck.pid\",\"w\").write(str(os.getpid()))\n\
                 for n in itertools.count(1):\n  open(\"/var/lab/ck.next\",\"w\").write(str(n))\n  \
                 os.rename(\"/var/lab/ck.next\",\"/var/lab/ck.count\"); time.sleep(0.1)\n";
    let pid = last_line(&shell.must(&start(count), SHORT)?);
    shell.must(
        &format!("rm -rf /var/lab/ck-image; kupgrade checkpoint --pid {pid} --dir /var/lab/ck-image --leave-running"),
        SHORT,
    )?;
    shell.must(
        "[ -s /var/lab/ck-image/manifest ] && [ -s /var/lab/ck-image/pages ]",
        SHORT,
    )?;
    goes_on(host, &pid)?;
    let shell = &mut host.vm.shell;
    shell.must(&format!("kill {pid}; wait {pid}; true"), SHORT)?;

    let holder = count.replace("s=None", "s=ctypes.CDLL(None).syscall(430,b\"tmpfs\",0)");
    let pid = last_line(&shell.must(&start(&holder), SHORT)?);
    let refused = shell.run(
        &format!("kupgrade checkpoint --pid {pid} --dir /var/lab/ck-other 2>&1; echo status $?"),
        SHORT,
    )?;
    let text = refused.ok()?;
    if !text.contains("half-made mounts") || !text.contains(&pid) || !text.contains("status 1") {
        bail!("a half-made mount is not refused by name: {text}");
    }
    goes_on(host, &pid)?;
    let shell = &mut host.vm.shell;
    shell.must(
        &format!("[ ! -e /var/lab/ck-other/manifest ]; kill {pid}; wait {pid}; true"),
        SHORT,
    )?;
    Ok(())
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

/// The counter must move, in a process that nobody traces.
fn goes_on(host: &mut Host, pid: &str) -> Result<()> {
    let command = format!(
        "grep -q '^TracerPid:.0$' /proc/{pid}/status && a=$(cat /var/lab/ck.count) && sleep 2 && \
         b=$(cat /var/lab/ck.count) && [ \"$b\" -gt \"$a\" ]"
    );
    host.vm.shell.must(&command, SHORT).map(drop)
}
