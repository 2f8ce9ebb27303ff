//! The mappings of a process with their flags.
//!
//! `/proc/PID/smaps` tells everything, and the kernel counts the pages of every mapping for it. While a process
//! stands still they are taken from `/proc/PID/maps`, and their flags from the kernel's memory. What each bit
//! of them is called is not the same for all kernels: it is learnt from this process's own smaps. Whatever is
//! not as expected, or needs more than that, is read from smaps.

use crate::FreezerError;
use crate::kernel::{self, Unreadable, Vma};
use crate::proc::{self, Mapping, parse_smaps};
use memmap2::{Advice, MmapMut, MmapOptions};
use std::sync::OnceLock;
use sys::{Pid, Tid};

/// The mappings of a process but for `[vsyscall]`, which is the kernel's.
pub(super) fn of(pid: Pid) -> Result<Vec<Mapping>, FreezerError> {
    read(pid, "smaps")
}

/// As [`of`], of a process that stands still, through one of its threads. How many pages there are is not told.
pub(super) fn of_stopped(pid: Pid, first: Tid) -> Result<Vec<Mapping>, FreezerError> {
    match quickly(pid, first)? {
        Some(maps) => Ok(maps),
        None => of(pid),
    }
}

/// Makes ready to look at stopped ones.
pub(crate) fn prepare() {
    names();
}

fn read(pid: Pid, what: &str) -> Result<Vec<Mapping>, FreezerError> {
    let text = proc::read(pid, what)?;
    let mut maps = parse_smaps(&text).ok_or_else(|| FreezerError::Format {
        pid,
        what: what.into(),
        text: "a line has an unknown form".into(),
    })?;
    maps.retain(|map| map.name != b"[vsyscall]");
    // A name with `\012` in it looks like one with a newline.
    for map in maps.iter_mut().filter(|map| map.inode != 0) {
        if map.name.contains(&b'\n')
            && let Ok(name) = proc::link(pid, &map.map_file())
        {
            map.name = name;
        }
    }
    Ok(maps)
}

/// None when smaps must tell.
fn quickly(pid: Pid, first: Tid) -> Result<Option<Vec<Mapping>>, FreezerError> {
    let Some(names) = names() else {
        return Ok(None);
    };
    let found = kernel::look(|kernel| match kernel.tasks(&[first])?[..] {
        [Some(task)] => kernel.vmas(task),
        _ => Err(Unreadable::Inconsistent("a stopped thread")),
    });
    let vmas = match found {
        Ok(vmas) => vmas,
        Err(why) => {
            log::debug!("process {pid}: its mappings are read from smaps: {why}");
            return Ok(None);
        }
    };
    let mut maps = read(pid, "maps")?;
    if maps.len() != vmas.len() {
        return Ok(None);
    }
    for (map, vma) in maps.iter_mut().zip(&vmas) {
        let Some(flags) = names.of(vma.flags).filter(|_| is_same(map, vma)) else {
            return Ok(None);
        };
        map.flags = flags;
        map.protection_key = names.keys.then_some(0);
        map.policy = vma.policy;
    }
    Ok(Some(maps))
}

fn is_same(map: &Mapping, vma: &Vma) -> bool {
    (map.start, map.end) == (vma.start, vma.end)
}

/// What smaps calls the bits of a mapping's flags.
struct Names {
    names: [Option<[u8; 2]>; 64],
    /// The processor has protection keys. Those but 0 have bits that smaps does not name, so that they are
    /// never known here.
    keys: bool,
}

/// Flags of mappings of which more is to be told: locked ones (pages), those of huge pages (size). And what
/// smaps has no name for.
const NOT_ENOUGH: [&[u8; 2]; 4] = [b"lo", b"lf", b"ht", b"??"];

fn names() -> Option<&'static Names> {
    static NAMES: OnceLock<Option<Names>> = OnceLock::new();
    NAMES.get_or_init(Names::learn).as_ref()
}

impl Names {
    /// From the mappings of this process; None where that cannot be.
    fn learn() -> Option<Names> {
        let me = Pid(nix::unistd::getpid().as_raw());
        let _samples = samples().ok()?;
        let own = || kernel::look(|kernel| kernel.own_task().and_then(|task| kernel.vmas(task)));
        let before = own().ok()?;
        let maps = of(me).ok()?;
        let after = own().ok()?;
        let mut learnt = Names {
            names: [None; 64],
            keys: maps.iter().any(|map| map.protection_key.is_some()),
        };
        for map in &maps {
            // Memory of this process may have come and gone meanwhile.
            let same = |vma: &&Vma| is_same(map, vma);
            match (before.iter().find(same), after.iter().find(same)) {
                (Some(before), Some(after)) if before == after => {
                    learnt.add(before.flags, &map.flags)?;
                }
                _ => {}
            }
        }
        Some(learnt)
    }

    /// Names stand in the order of the bits (fs/proc/task_mmu.c, show_smap_vma_flags). None when something
    /// is not as it was before.
    fn add(&mut self, flags: u64, names: &[[u8; 2]]) -> Option<()> {
        if flags.count_ones() as usize != names.len() {
            return Some(());
        }
        let bits = (0..64_usize).filter(|bit| flags >> bit & 1 == 1);
        for (bit, name) in bits.zip(names) {
            if *self.names[bit].get_or_insert(*name) != *name {
                return None;
            }
        }
        Some(())
    }

    /// Those of a mapping; None when some are not known, or do not tell enough.
    fn of(&self, flags: u64) -> Option<Vec<[u8; 2]>> {
        (0..64_usize)
            .filter(|bit| flags >> bit & 1 == 1)
            .map(|bit| self.names[bit].filter(|name| !NOT_ENOUGH.contains(&name)))
            .collect()
    }
}

/// Mappings with flags that this process may have no other of.
fn samples() -> std::io::Result<(Vec<MmapMut>, memmap2::MmapRaw)> {
    const ADVICE: [Advice; 6] = [
        Advice::DontFork,
        Advice::DontDump,
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::Random,
        Advice::Sequential,
    ];
    let page = || MmapOptions::new().len(sys::PAGE_SIZE).map_anon();
    let mut all = Vec::new();
    for advice in ADVICE {
        let sample = page()?;
        // Kernels without huge pages know no advice on them.
        let _ = sample.advise(advice);
        all.push(sample);
    }
    let unreserved = MmapOptions::new()
        .len(sys::PAGE_SIZE)
        .no_reserve_swap()
        .map_anon()?;
    all.push(unreserved);
    let shared = sys::vm::memfd(c"kupgrade", 0)?;
    nix::unistd::ftruncate(&shared, sys::PAGE_SIZE as i64)?;
    let shared = MmapOptions::new().len(sys::PAGE_SIZE).map_raw(&shared)?;
    Ok((all, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_order_of_bits() {
        let mut names = Names {
            names: [None; 64],
            keys: false,
        };
        assert_eq!(names.add(0b1010, &[*b"wr", *b"sh"]), Some(()));
        assert_eq!(names.of(0b1000), Some(vec![*b"sh"]));
        assert_eq!(names.of(0b1100), None, "a bit that is not known");
        assert_eq!(
            names.add(0b111, &[*b"rd", *b"wr"]),
            Some(()),
            "a hidden bit"
        );
        assert_eq!(names.of(0b1), None);
        assert_eq!(names.add(0b1, &[*b"lo"]), Some(()));
        assert_eq!(names.of(0b1), None, "locked memory needs more");
        assert_eq!(names.add(0b10, &[*b"rd"]), None, "another name");
    }

    #[test]
    fn a_process_that_sleeps_is_seen_as_by_smaps() {
        if kernel::look(|kernel| kernel.own_task()).is_err() {
            return;
        }
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = Pid(child.id().cast_signed());
        // Until it sleeps it maps things.
        let sleeps = || {
            let call = proc::read_text(pid, "syscall").unwrap_or_default();
            ["35 ", "230 "].iter().any(|nr| call.starts_with(nr))
        };
        while !sleeps() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let quick = quickly(pid, pid.leader());
        let slow = of(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut slow = slow.unwrap();
        for map in &mut slow {
            (map.resident, map.swapped) = (0, 0);
        }
        // Where the names cannot be learnt, smaps is read.
        let expected = names().map(|_| slow);
        let quick = quick.unwrap().map(|mut maps| {
            for map in &mut maps {
                assert_ne!(map.policy.take(), Some(true), "it has set none");
            }
            maps
        });
        assert_eq!(quick, expected);
    }
}
