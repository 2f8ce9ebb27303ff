//! Tiles of AMX, which a process has to ask for.

use std::arch::asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kit::{SOON, Setting, Watch, args, not_here, raw, same};

const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
const XTILEDATA: u64 = 18;
/// Bytes of a tile: 16 rows of 64.
const TILE: usize = 1024;

fn may() -> Result<bool> {
    let mut mask = 0_u64;
    let asked = args([ARCH_GET_XCOMP_PERM, &raw mut mask as u64]);
    same("arch_prctl", &0, &raw(libc::SYS_arch_prctl, asked))?;
    Ok(mask >> XTILEDATA & 1 == 1)
}

/// Palette 1, all eight tiles as large as they can be.
fn config() -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for tile in 0..8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
    }
    config
}

fn pattern(number: usize) -> Vec<u8> {
    let bytes = (0..TILE).map(|at| (at * 7 + number * 31) as u8);
    bytes.collect()
}

/// A thread has values in two tiles while it spins, until it is told to look at them.
struct Holder {
    stop: Arc<AtomicBool>,
    found: Receiver<[Vec<u8>; 2]>,
    number: usize,
}

impl Holder {
    fn start(number: usize) -> Holder {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, found) = channel();
        let told = stop.clone();
        std::thread::spawn(move || {
            let held = [pattern(number), pattern(number + 1)];
            let found = hold(&held, &told);
            let _ = send.send(found);
        });
        Holder {
            stop,
            found,
            number,
        }
    }

    fn finish(&self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let found = self.found.recv_timeout(SOON).context("no answer")?;
        let held = [pattern(self.number), pattern(self.number + 1)];
        same("whether its tiles are the same", &true, &(found == held))
    }
}

fn hold([a, b]: &[Vec<u8>; 2], stop: &AtomicBool) -> [Vec<u8>; 2] {
    let config = config();
    let mut found = [vec![0; TILE], vec![0; TILE]];
    let [c, d] = found.each_mut().map(|bytes| bytes.as_mut_ptr());
    // SAFETY: loads and stores whole tiles, for which there is room; nothing else uses them.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm3, [{a} + {stride}*1]",
            "tileloadd tmm6, [{b} + {stride}*1]",
            "2: pause",
            "cmp byte ptr [{stop}], 0",
            "je 2b",
            "tilestored [{c} + {stride}*1], tmm3",
            "tilestored [{d} + {stride}*1], tmm6",
            "tilerelease",
            config = in(reg) config.as_ptr(),
            a = in(reg) a.as_ptr(),
            b = in(reg) b.as_ptr(),
            c = in(reg) c,
            d = in(reg) d,
            stop = in(reg) stop.as_ptr(),
            stride = in(reg) 64_u64,
        );
    }
    found
}

/// Threads with tiles, and the first one without.
pub(crate) fn held(_: &Setting) -> Result<Watch> {
    let asked = args([ARCH_REQ_XCOMP_PERM, XTILEDATA]);
    if raw(libc::SYS_arch_prctl, asked) != 0 {
        return not_here("AMX");
    }
    let start = || -> Vec<Holder> { (1..4).map(|number| Holder::start(number * 10)).collect() };
    let mut holders = start();
    std::thread::sleep(Duration::from_millis(100));
    Ok(Watch::new(move || {
        same("whether it may use AMX", &true, &may()?)?;
        holders.iter().try_for_each(Holder::finish)?;
        holders = start();
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }))
}

/// It has asked, and uses them later.
pub(crate) fn asked(_: &Setting) -> Result<Watch> {
    let asked = args([ARCH_REQ_XCOMP_PERM, XTILEDATA]);
    if raw(libc::SYS_arch_prctl, asked) != 0 {
        return not_here("AMX");
    }
    Ok(Watch::new(|| {
        same("whether it may use AMX", &true, &may()?)?;
        let held = [pattern(1), pattern(2)];
        let found = hold(&held, &AtomicBool::new(true));
        same("whether tiles can be used", &true, &(found == held))
    }))
}
