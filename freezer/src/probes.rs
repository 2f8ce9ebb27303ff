//! Probes of the kernel's in the code of programs (uprobes, Documentation/trace/uprobetracer.rst).
//!
//! One is a break point in the copy of a page that the process has of its own. It would be taken for the program's,
//! which would end at it where the probe is not set any more.

use crate::proc::{self, Mapping, Pagemap};
use crate::{FreezerError, Refusal, freeze};
use std::os::unix::fs::FileExt;
use sys::{PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// `int3`
const BREAK_POINT: u8 = 0xcc;

/// Why a process is not carried, if one is set in it. Those that a tracer has set are the tracer's.
///
/// # Errors
/// When its mappings cannot be read.
pub(crate) fn refusal(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    let maps = proc::parse_smaps(&proc::read(pid, "maps")?).unwrap_or_default();
    let pages = Pagemap::open(pid)?;
    for map in maps.iter().filter(|map| is_code(map)) {
        let states = pages.states(map.start, map.end)?;
        let places = (map.start..map.end).step_by(PAGE_SIZE).zip(states);
        let mut copies = places.filter(|(_, page)| page.present() && !page.file_or_shared());
        let found = copies.find(|(page, _)| has_one(pid, map, *page));
        if let Some((page, _)) = found.filter(|_| !is_traced(pid)) {
            return Ok(Some(Refusal {
                pid,
                comm: proc::comm(pid),
                resource: format!("vma {:x}-{:x}", map.start, map.end),
                reason: format!(
                    "a probe (uprobes) or another break point is set at {page:x} or behind, which is not carried"
                ),
            }));
        }
    }
    Ok(None)
}

fn is_traced(pid: Pid) -> bool {
    let threads = proc::threads(pid).unwrap_or_default();
    let mut tracers = threads.iter().map(|tid| freeze::tracer_of(pid, *tid));
    tracers.any(|tracer| tracer.is_some())
}

/// Whether it is of the code of a file.
fn is_code(map: &Mapping) -> bool {
    let small = map.page_size == 0 || map.page_size == PAGE_SIZE_U64;
    map.perms[2] == b'x' && !map.shared() && map.inode != 0 && small
}

/// Whether one is in a page that is the process's own. What cannot be read is found out elsewhere.
fn has_one(pid: Pid, map: &Mapping, page: u64) -> bool {
    let own = proc::memory(pid).and_then(|mem| mem.read_vec(page, PAGE_SIZE));
    let mut of_file = vec![0; PAGE_SIZE];
    let file = proc::open(pid, &map.map_file());
    let read = file.map(|file| file.read_at(&mut of_file, map.offset + page - map.start));
    match (own, read) {
        (Ok(own), Ok(Ok(_))) => is_probed(&own, &of_file),
        _ => false,
    }
}

/// Whether nothing but break points tells a page from what the file has.
fn is_probed(own: &[u8], of_file: &[u8]) -> bool {
    let mut changed = own.iter().zip(of_file).filter(|(own, was)| own != was);
    let any = changed.clone().next().is_some();
    any && changed.all(|(own, _)| *own == BREAK_POINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_break_points_are_probes() {
        assert!(!is_probed(b"\x55\x48\xc3", b"\x55\x48\xc3"));
        assert!(is_probed(b"\xcc\x48\xc3", b"\x55\x48\xc3"));
        assert!(!is_probed(b"\xcc\x49\xc3", b"\x55\x48\xc3"));
        assert!(!is_probed(b"\xcc", b"\xcc"), "the file's own");
    }
}
