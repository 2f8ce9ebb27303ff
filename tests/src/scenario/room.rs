//! Hosts whose memory is full of what is to be carried.

use anyhow::{Result, bail};

use super::Host;
use crate::guest::Shell;
use crate::programs::SHORT;
use crate::rig::Rig;

/// Fills memory here and there: of `TIMES` as much only every such piece is kept, so that with 2 hardly any memory block
/// is without a page of it. Then answers whether it is still as it was when `/var/lab/ask` is there.
const HOLDER: &str = "\
import mmap, os, time
PIECE = 1 << 16
times = int(os.environ['TIMES'])
size = times * int(os.environ['MIB']) << 20
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.madvise(mmap.MADV_NOHUGEPAGE)
page = bytes(range(256)) * 16
def pages():
    return (at for piece in range(0, size, times * PIECE) for at in range(piece, piece + PIECE, 4096))
for piece in range(0, size, PIECE):
    held[piece:piece + PIECE] = page * (PIECE // 4096)
for piece in range(0, size, PIECE):
    if piece % (times * PIECE):
        held.madvise(mmap.MADV_DONTNEED, piece, PIECE)
for at in pages():
    held[at:at + 8] = at.to_bytes(8, 'little')
open('/var/lab/held', 'w').write('full')
while not os.path.exists('/var/lab/ask'):
    time.sleep(0.1)
good = all(held[at:at + 4096] == at.to_bytes(8, 'little') + page[8:] for at in pages())
open('/var/lab/answer', 'w').write('as before' if good else 'DAMAGED')
";

/// Starts the program and waits until it holds `mib` MiB, in a mapping of `times` that size.
fn hold(shell: &mut Shell, mib: u64, times: u64) -> Result<()> {
    shell.must(
        &format!("mkdir -p /var/lab && cat > /var/lab/holder.py << 'END'\n{HOLDER}END"),
        SHORT,
    )?;
    let start = format!(
        "(MIB={mib} TIMES={times} setsid python3 /var/lab/holder.py < /dev/null > /var/lab/holder.log 2>&1 &)"
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
    hold(&mut host.vm.shell, 850, 1)?;
    let command = format!("kupgrade --kernel {}", rig.kernel("6.12")?.guest_vmlinuz());
    host.must_refuse(&command, &["memory", "about half can be carried"])
}

/// Less than half of it, in nearly all memory blocks: some are emptied to make room.
pub(super) fn nearly_half(host: &mut Host, rig: &Rig) -> Result<()> {
    hold(&mut host.vm.shell, 1600, 2)?;
    host.must_upgrade(rig, "6.12")?;
    let wait = "touch /var/lab/ask; for i in $(seq 1200); do [ -s /var/lab/answer ] && break; sleep 0.1; done; cat /var/lab/answer";
    let told = host.vm.shell.must(wait, 10 * SHORT)?;
    if told.trim() != "as before" {
        bail!("what was held is not: {told}");
    }
    nobody_writes(&mut host.vm.shell)
}

/// A service manager makes file systems read-only before it ends the machine: nothing of the upgrade may be in the way.
fn nobody_writes(shell: &mut Shell) -> Result<()> {
    let ended = "for i in $(seq 100); do pgrep -f holder.py > /dev/null || break; sleep 0.1; done";
    let command = format!("{ended}; mount -o remount,ro / && mount -o remount,rw /");
    shell.must(&command, SHORT).map(drop)
}
