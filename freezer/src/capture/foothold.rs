//! Where a thread's first calls are made, and what it comes back through should we die meanwhile.

use super::inside::Inside;
use crate::freeze::USED_BELOW_STACK;
use crate::proc::{self, Mapping, Pagemap};
use std::collections::HashMap;
use sys::Pid;
use sys::gate::{self, Gate};
use sys::tracee::{Foothold, Tracee, TraceeError, find_gate};
use sys::vm::ProcMem;

/// Bytes of code that are searched in one mapping.
const LOOK_AT: usize = 16 << 20;
/// Stands at the start of stack memory that was made for frames: found again, it is used again.
const MAGIC: [u8; 16] = *b"kupgrade's frame";

/// Stands, with the size in bytes, at the start of a stack's part that frames were put into: it was not in use.
const MARK: [u8; 16] = *b"kupgrade's place";

/// What is known of a mapped file's code, relative to the mapping's start.
#[derive(Clone, Copy, Debug, Default)]
struct Code {
    gate: Option<Gate>,
    restorer: Option<u64>,
    syscall: Option<u64>,
}

/// Finds footholds; remembers the files it has looked through.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    known: HashMap<(Vec<u8>, u64, u64), Code>,
}

/// A way to make calls in a process.
pub(super) struct Way {
    /// A `syscall` instruction.
    pub(super) gate: u64,
    /// The way back; without it the process depends on our life for some microseconds.
    pub(super) foothold: Option<Foothold>,
    /// What the stack was made to grow by for the way back.
    pub(super) grown: Option<Grown>,
    /// What lay where the way back was put.
    pub(super) below: Option<Below>,
}

/// Memory below a thread's stack pointer where frames are put, and what was there: nothing of use, unless the
/// program has several stacks in one.
pub(super) struct Below {
    start: u64,
    bytes: Vec<u8>,
}

impl Below {
    /// What lies in `size` bytes below `top`, where they are writable.
    fn of(mem: &ProcMem, top: u64, size: u64) -> Option<Below> {
        let start = top.checked_sub(size)?;
        let bytes = mem.read_vec(start, usize::try_from(size).ok()?).ok()?;
        mem.write(start, &[*bytes.first()?]).ok()?;
        Some(Below { start, bytes })
    }

    /// Puts it back.
    pub(super) fn put_back(&self, mem: &ProcMem) -> sys::Result<()> {
        mem.write(self.start, &self.bytes)
    }
}

/// Stack that is there for frames only: its first address, its size in bytes, and the stack's end.
#[derive(Clone, Copy)]
pub(super) struct Grown {
    start: u64,
    size: u64,
    end: u64,
}

impl Grown {
    /// Gives it back through a thread that is on that stack, if there is one: the way back lies below what
    /// the thread uses then, where it would have made room for a signal.
    pub(super) fn give_back(
        self,
        foothold: Foothold,
        threads: &mut [Inside],
    ) -> Result<(), TraceeError> {
        // Room for another frame above.
        let stack = self.start + 2 * self.size + 2 * USED_BELOW_STACK..self.end;
        for thread in threads.iter_mut().map(|thread| &mut thread.tracee) {
            let rsp = thread.regs()?.rsp;
            if stack.contains(&rsp) {
                let free_below = (rsp - USED_BELOW_STACK) & !15;
                let below = Below::of(thread.mem(), free_below, self.size);
                thread.set_foothold(Foothold {
                    free_below,
                    ..foothold
                });
                let unmapped = thread.unmap(foothold.gate.call, self.start, self.size);
                let put_back = below.map_or(Ok(()), |below| below.put_back(thread.mem()));
                let tid = thread.tid();
                return unmapped.and(put_back.map_err(|errno| TraceeError::Request {
                    tid,
                    doing: "putting its stack back",
                    errno,
                }));
            }
        }
        Ok(())
    }
}

impl Finder {
    /// None when no system call instruction is mapped. `stacks` holds the stack pointers of all threads.
    pub(super) fn find(
        &mut self,
        first: &Tracee,
        stacks: &[u64],
        maps: &[Mapping],
        frame: u64,
    ) -> Option<Way> {
        let Code {
            gate,
            restorer,
            syscall,
        } = self.search(first.mem(), maps);
        let mut free = None;
        let foothold = gate.zip(restorer).and_then(|(gate, restorer)| {
            let free = free.insert(free_memory(first, stacks, maps, frame)?);
            Some(Foothold {
                gate,
                restorer,
                free_below: free.end,
            })
        });
        let (grown, below) = free.map_or((None, None), |free| (free.grown, free.below));
        if foothold.is_none() {
            let lacks = match (gate, restorer) {
                (None, _) => "no gate into the kernel",
                (_, None) => "no return from signals",
                _ => "no room on its stack",
            };
            log::warn!(
                "process {} ({}): no way back is found ({lacks}): it must not be left alone for some microseconds",
                first.pid(),
                proc::comm(first.pid())
            );
        }
        Some(Way {
            gate: syscall?,
            foothold,
            grown,
            below,
        })
    }

    /// Looks through the code of a process that runs, so that it is known when it stands still. What has changed
    /// by then is looked for again.
    pub(crate) fn learn(&mut self, pid: Pid) {
        let maps = proc::read(pid, "maps").ok();
        let maps = maps.and_then(|text| proc::parse_smaps(&text));
        if let (Some(maps), Ok(mem)) = (maps, proc::memory(pid)) {
            self.search(&mem, &maps);
        }
    }

    /// The first of everything.
    fn search(&mut self, mem: &ProcMem, maps: &[Mapping]) -> Code {
        let mut code: Vec<_> = maps.iter().filter(|map| map.perms[2] == b'x').collect();
        // The vdso has gates; the C library has both, the program itself when it is static.
        code.sort_by_key(|map| (map.name != b"[vdso]", !is_libc(&map.name)));
        let mut all = Code::default();
        for map in code {
            let found = self.code(mem, map);
            all.gate = all.gate.or(found.gate);
            all.restorer = all.restorer.or(found.restorer);
            all.syscall = all.syscall.or(found.syscall);
            if all.gate.is_some() && all.restorer.is_some() {
                break;
            }
        }
        all
    }

    /// What a mapping's code holds, with the addresses it has here.
    fn code(&mut self, mem: &ProcMem, map: &Mapping) -> Code {
        let key = (map.name.clone(), map.inode, map.offset);
        let known = (map.inode != 0)
            .then(|| self.known.get(&key).copied())
            .flatten();
        let here = |code: Code| Code {
            gate: code.gate.map(|gate| Gate {
                call: gate.call + map.start,
                ..gate
            }),
            restorer: code.restorer.map(|at| at + map.start),
            syscall: code.syscall.map(|at| at + map.start),
        };
        // Code can be changed in one process only, by a debugger: look whether it is still there.
        if let Some(found) = known.map(here)
            && found.still_there(mem)
        {
            return found;
        }
        let len = usize::try_from(map.end - map.start)
            .unwrap_or(LOOK_AT)
            .min(LOOK_AT);
        let Ok(bytes) = mem.read_vec(map.start, len) else {
            return Code::default();
        };
        let code = Code {
            gate: gate::gates(&bytes, 0).next(),
            restorer: gate::restorer(&bytes, 0),
            syscall: find_gate(&bytes).map(|at| at as u64),
        };
        self.known.insert(key, code);
        here(code)
    }
}

impl Code {
    fn still_there(&self, mem: &ProcMem) -> bool {
        let read = |at: u64| mem.read_vec(at, 64).unwrap_or_default();
        let same_gate = self.gate.is_none_or(|gate| {
            let bytes = read(gate.call);
            gate::gates(&bytes, gate.call).next() == Some(gate)
        });
        let same_restorer = self
            .restorer
            .is_none_or(|at| gate::restorer(&read(at), at) == Some(at));
        same_gate && same_restorer
    }
}

fn is_libc(name: &[u8]) -> bool {
    name.windows(5).any(|part| part == b"/libc") || name.windows(7).any(|part| part == b"ld-musl")
}

/// Memory for frames: it ends at `end`.
struct Free {
    end: u64,
    grown: Option<Grown>,
    below: Option<Below>,
}

impl Free {
    fn up_to(end: u64) -> Free {
        Free {
            end,
            grown: None,
            below: None,
        }
    }
}

/// Memory for a frame of `size` bytes that nobody uses: below what the thread uses of its stack, where the kernel would
/// make room for a signal; or the stack is made to grow downwards, as it does by itself.
fn free_memory(first: &Tracee, stacks: &[u64], maps: &[Mapping], size: u64) -> Option<Free> {
    let mem = first.mem();
    let stack = maps.iter().find(|map| map.name == b"[stack]")?;
    let rsp = first.regs().ok()?.rsp;
    let top = rsp.wrapping_sub(USED_BELOW_STACK) & !15;
    // Nobody else's frames may be there.
    let alone = |free: core::ops::Range<u64>| !stacks.iter().any(|rsp| free.contains(rsp));
    if (stack.start + size..stack.end).contains(&top)
        && alone(top - size..top)
        && let Some(below) = Below::of(mem, top, size)
    {
        return Some(Free {
            below: Some(below),
            ..Free::up_to(top)
        });
    }
    // A look at a page that was never touched makes it one of zeros.
    let touched = touched(first, stack.start, size);
    let begins_with = |mark: &[u8]| {
        let bytes = || mem.read_vec(stack.start, mark.len());
        touched && bytes().is_ok_and(|bytes| bytes == mark)
    };
    let grown_to = |start: u64| Free {
        grown: Some(Grown {
            start,
            size,
            end: stack.end,
        }),
        ..Free::up_to(start + size)
    };
    // Somebody may still be on their way back through it.
    if begins_with(&MAGIC) && alone(stack.start..stack.start + size) {
        return Some(grown_to(stack.start));
    }
    // What it grew by nobody could give back if no thread is on it. Something may wait there to be gone on with: only
    // what was never touched is free.
    if alone(stack.start..stack.end) && stack.end - stack.start > 2 * size {
        let mark = [&MARK[..], &size.to_le_bytes()].concat();
        let marked = !touched && mem.write(stack.start, &mark).is_ok();
        if marked || begins_with(&mark) {
            return Some(Free::up_to(stack.start + size));
        }
    }
    let start = stack.start - size;
    // The program's own memory may begin right there: mprotect(2) splits a stack.
    let is_free = |map: &Mapping| map.end <= start || map.start >= stack.start;
    // A sealed one (mseal(2)) would stay as it has grown.
    if maps.iter().all(is_free) && !stack.has(b"sl") && mem.write(start, &MAGIC).is_ok() {
        return Some(grown_to(start));
    }
    // RLIMIT_STACK, or something is mapped there. Below the red zone nothing is kept; stacks that do not grow may be
    // too small for more.
    let has_room = |map: &Mapping| {
        (map.start..map.end).contains(&rsp) && (map.start == stack.start || map.has(b"gd"))
    };
    if !maps.iter().any(has_room) {
        return None;
    }
    let below = Below::of(mem, top, size)?;
    Some(Free {
        below: Some(below),
        ..Free::up_to(top)
    })
}

/// Whether anything is in these pages, as far as is known.
fn touched(of: &Tracee, start: u64, size: u64) -> bool {
    let states = Pagemap::open(of.pid()).and_then(|pages| pages.states(start, start + size));
    states.map_or(true, |states| {
        let mut pages = states.iter();
        pages.any(|page| page.present() || page.swapped())
    })
}
