//! Hosts whose memory is full of what is to be carried.

use anyhow::{Result, bail};

use super::Host;
use crate::guest::Shell;
use crate::programs::SHORT;
use crate::rig::Rig;

/// Fills memory, then answers whether it is still as it was when `/var/lab/ask` is there.
const HOLDER: &str = "\
import os, time
size = int(os.environ['MIB']) << 20
page = bytes(range(256)) * 16
held = bytearray(size)
for at in range(0, size, 4096):
    held[at:at + 4096] = page
    held[at:at + 8] = at.to_bytes(8, 'little')
open('/var/lab/held', 'w').write('full')
while not os.path.exists('/var/lab/ask'):
    time.sleep(0.1)
good = all(held[at:at + 4096] == at.to_bytes(8, 'little') + page[8:] for at in range(0, size, 4096))
open('/var/lab/answer', 'w').write('as before' if good else 'DAMAGED')
";

/// Starts the program and waits until it holds `mib` MiB.
fn hold(shell: &mut Shell, mib: u64) -> Result<()> {
    shell.must(
        &format!("mkdir -p /var/lab && cat > /var/lab/holder.py << 'END'\n{HOLDER}END"),
        SHORT,
    )?;
    let start = format!(
        "(MIB={mib} setsid python3 /var/lab/holder.py < /dev/null > /var/lab/holder.log 2>&1 &)"
    );
    shell.must(&start, SHORT)?;
    let wait = "for i in $(seq 1200); do [ -s /var/lab/held ] && break; sleep 0.1; done; cat /var/lab/held";
    let told = shell.must(wait, 10 * SHORT)?;
    if told.trim() != "full" {
        bail!("the program that holds memory did not get there: {told}");
    }
    Ok(())
}

/// More than can be there twice.
pub(super) fn too_full(host: &mut Host, rig: &Rig) -> Result<()> {
    hold(&mut host.vm.shell, 850)?;
    let command = format!("kupgrade --kernel {}", rig.kernel("6.12")?.guest_vmlinuz());
    host.must_refuse(&command, &["memory", "about half can be carried"])
}

/// Nearly half of it: blocks are emptied to make room.
pub(super) fn nearly_half(host: &mut Host, rig: &Rig) -> Result<()> {
    hold(&mut host.vm.shell, 1150)?;
    host.must_upgrade(rig, "6.12")?;
    let wait = "touch /var/lab/ask; for i in $(seq 1200); do [ -s /var/lab/answer ] && break; sleep 0.1; done; cat /var/lab/answer";
    let told = host.vm.shell.must(wait, 10 * SHORT)?;
    if told.trim() != "as before" {
        bail!("what was held is not: {told}");
    }
    Ok(())
}
