//! The kernel's vdso in a process.
//!
//! Programs keep pointers into it, so it must be where it was. On the kernel that made it, it is moved
//! there. On another kernel the old image stays at its address as ordinary memory, and each of its
//! functions begins with a jump to the function of the same name in the new kernel's vdso, which stays
//! where it was parked. A function that an older kernel lacks becomes the system call it stands for.

use super::empty::{MREMAP_MOVE_TO, kernel_ranges};
use crate::ResurrectError;
use crate::calls::{nr, run};
use object::{Object, ObjectSymbol};
use persist_mem::manifest::{AddressSpace, Backing, Vma};
use sys::batch::Batch;
use sys::cpu_clock::Plan;
use sys::tracee::Tracee;
use sys::{Errno, Pid, remainder};

const MAP_PRIVATE_ANONYMOUS_FIXED: u64 = 0x2 | 0x20 | 0x10_0000;
const PROT_READ_WRITE: u64 = 3;
const PROT_READ_EXEC: u64 = 5;

/// This kernel's vdso as every new process has it in its parking.
pub(super) struct Parked {
    /// Mappings in ascending order at their parked places, the vdso itself last.
    ranges: Vec<(u64, u64, String)>,
    /// The vdso's bytes.
    image: Vec<u8>,
}

impl Parked {
    pub(super) fn of_this_kernel(parking: u64) -> Result<Parked, ResurrectError> {
        let failed = || ResurrectError::own("reading this kernel's vdso");
        let me = Pid(nix::unistd::getpid().as_raw());
        let maps = sys::procdir::read(me, "maps").map_err(failed())?;
        let mut ranges = kernel_ranges(&maps);
        let base = ranges.first().map_or(0, |r| r.0);
        let mut image = Vec::new();
        for (start, end, name) in &mut ranges {
            if name == "[vdso]" {
                let len = usize::try_from(*end - *start).map_err(|_| failed()(Errno::ERANGE))?;
                let mem = sys::vm::ProcMem::open(me).map_err(failed())?;
                image = mem.read_vec(*start, len).map_err(failed())?;
            }
            *end = *end - base + parking;
            *start = *start - base + parking;
        }
        Ok(Parked { ranges, image })
    }

    fn vdso(&self) -> Option<u64> {
        self.ranges.iter().find(|r| r.2 == "[vdso]").map(|r| r.0)
    }

    /// How clocks of processor time are made to go on in it.
    pub(super) fn cpu_clocks(&self) -> Option<Plan> {
        Plan::of(&self.image)
    }

    /// Whether it is the one that a process had.
    fn is(&self, image: &[u8], old: &[&Vma]) -> bool {
        self.image == image && same_shape(old, &self.ranges)
    }
}

fn of_kernel(mm: &AddressSpace) -> Vec<&Vma> {
    let vmas = mm.vmas.iter();
    vmas.filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Vvar))
        .collect()
}

/// Where a process has this kernel's vdso once it was placed, which programs come to by whatever way.
pub(super) fn start(mm: &AddressSpace, parked: &Parked) -> Option<u64> {
    let old = of_kernel(mm);
    let vdso = old.iter().find(|vma| vma.backing == Backing::Vdso)?;
    let mut image = mm.vdso.clone();
    remainder::take_out(&mut image);
    match parked.is(&image, &old) {
        true => Some(vdso.start),
        false => parked.vdso(),
    }
}

/// Puts the vdso where the process had it. Returns calls that are still to be made.
pub(super) fn place(
    pid: Pid,
    leader: &mut Tracee,
    mm: &AddressSpace,
    parked: &Parked,
) -> Result<Batch, ResurrectError> {
    let old = of_kernel(mm);
    let mut batch = Batch::new();
    if old.is_empty() {
        for (start, end, _) in &parked.ranges {
            let args = [(*start).into(), (*end - *start).into()];
            batch.call("removing the vdso", nr::MUNMAP, args);
        }
        return Ok(batch);
    }
    let mut image = mm.vdso.clone();
    let makes_rests = remainder::take_out(&mut image);
    if parked.is(&image, &old) {
        for (vma, (start, _, _)) in old.iter().zip(&parked.ranges) {
            let len = vma.len();
            let move_to = MREMAP_MOVE_TO;
            let args = [
                (*start).into(),
                len.into(),
                len.into(),
                move_to.into(),
                vma.start.into(),
            ];
            batch.call("moving the vdso", nr::MREMAP, args);
        }
        if makes_rests {
            run(pid, "moving the vdso", leader, &core::mem::take(&mut batch))?;
            make_rests(pid, leader, &old, &image)?;
        }
        return Ok(batch);
    }
    keep_old_image(pid, leader, &old, mm, parked)?;
    Ok(batch)
}

/// Of a process that has the vdso of the one it was forked from: what only its own has.
pub(super) fn adapt(
    pid: Pid,
    leader: &Tracee,
    theirs: &AddressSpace,
    own: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut image = own.vdso.clone();
    if theirs.vdso == own.vdso || !remainder::take_out(&mut image) {
        return Ok(());
    }
    let old: Vec<&Vma> = own.vmas.iter().collect();
    make_rests(pid, leader, &old, &image)
}

fn same_shape(old: &[&Vma], new: &[(u64, u64, String)]) -> bool {
    let base = |n: usize| new.get(n).map_or(0, |r| r.0);
    old.len() == new.len()
        && old.iter().zip(new).all(|(vma, (start, end, _))| {
            vma.len() == end - start && vma.start - old[0].start == start - base(0)
        })
}

/// A thread of it makes the rest of a call from its vdso, or has done so before.
fn make_rests(pid: Pid, leader: &Tracee, old: &[&Vma], image: &[u8]) -> Result<(), ResurrectError> {
    let vdso = old.iter().find(|vma| vma.backing == Backing::Vdso);
    let (Some(vdso), Some(at)) = (vdso, remainder::place(image)) else {
        return Ok(());
    };
    let written = leader
        .mem()
        .write(vdso.start + at as u64, remainder::code());
    written.map_err(ResurrectError::call(pid, "going on with a call"))
}

fn keep_old_image(
    pid: Pid,
    leader: &mut Tracee,
    old: &[&Vma],
    mm: &AddressSpace,
    parked: &Parked,
) -> Result<(), ResurrectError> {
    let doing = "keeping its old vdso";
    let impossible = |why: String| ResurrectError::Impossible { pid, why };
    let Some(vma) = old.iter().find(|vma| vma.backing == Backing::Vdso) else {
        return Ok(());
    };
    let new = parked
        .vdso()
        .ok_or_else(|| impossible("this kernel has no vdso".into()))?;
    let image = redirected(&mm.vdso, &parked.image, new).map_err(impossible)?;
    let mut batch = Batch::new();
    let args = [
        vma.start.into(),
        vma.len().into(),
        PROT_READ_WRITE.into(),
        MAP_PRIVATE_ANONYMOUS_FIXED.into(),
        (-1).into(),
        0.into(),
    ];
    batch.call("mapping the old vdso", nr::MMAP, args);
    run(pid, doing, leader, &batch)?;
    leader
        .mem()
        .write(vma.start, &image)
        .map_err(ResurrectError::call(pid, doing))?;
    let mut batch = Batch::new();
    let args = [vma.start.into(), vma.len().into(), PROT_READ_EXEC.into()];
    batch.call("protecting the old vdso", nr::MPROTECT, args);
    run(pid, doing, leader, &batch).map(drop)
}

/// Functions of a vdso: name, offset.
fn functions(image: &[u8]) -> Result<Vec<(String, u64)>, String> {
    let file = object::File::parse(image).map_err(|e| format!("a vdso is no ELF file: {e}"))?;
    let symbols = file
        .dynamic_symbols()
        .filter(|s| s.is_definition() && s.kind() == object::SymbolKind::Text);
    Ok(symbols
        .filter_map(|s| Some((s.name().ok()?.to_owned(), s.address())))
        .collect())
}

/// The old image with each function replaced by a jump into the new one at `new_base`.
fn redirected(old: &[u8], new: &[u8], new_base: u64) -> Result<Vec<u8>, String> {
    let (from, to) = (functions(old)?, functions(new)?);
    let mut image = old.to_vec();
    let mut starts: Vec<u64> = from.iter().map(|(_, at)| *at).collect();
    starts.sort_unstable();
    starts.dedup();
    for (name, at) in &from {
        let target = to.iter().find(|(other, _)| other == name);
        let Some(code) = (match target {
            Some((_, offset)) => Some(jump(new_base + offset)),
            None => without(name)?,
        }) else {
            continue;
        };
        let next = starts.iter().find(|start| *start > at);
        let room = next.map_or(old.len() as u64, |next| *next) - at;
        if room < code.len() as u64 {
            return Err(format!(
                "the vdso's function {name} is too short for a jump"
            ));
        }
        let place = usize::try_from(*at).map_err(|e| e.to_string())?;
        image
            .get_mut(place..place + code.len())
            .ok_or_else(|| format!("the vdso's function {name} lies outside of it"))?
            .copy_from_slice(&code);
    }
    Ok(image)
}

/// `movabs r11, target; jmp r11`: r11 belongs to nobody across a call.
fn jump(target: u64) -> Vec<u8> {
    [
        &[0x49, 0xbb],
        &target.to_le_bytes()[..],
        &[0x41, 0xff, 0xe3],
    ]
    .concat()
}

/// Code for a function that this kernel's vdso lacks: its system call takes the same arguments. None
/// where the old code needs nothing of the kernel and may stay.
fn without(name: &str) -> Result<Option<Vec<u8>>, String> {
    let call: u32 = match name.trim_start_matches("__vdso_") {
        "clock_gettime" => 228,
        "clock_getres" => 229,
        "gettimeofday" => 96,
        "time" => 201,
        "getcpu" => 309,
        "getrandom" => 318,
        // A store and a compare-and-exchange that a newer kernel recognises by their addresses.
        "futex_robust_list64_try_unlock" | "futex_robust_list32_try_unlock" => return Ok(None),
        // It enters what a process with a device has (`/dev/sgx_enclave`), which is not carried. Kernels may be built
        // without (CONFIG_X86_SGX).
        "sgx_enter_enclave" => return Ok(None),
        _ => return Err(format!("this kernel's vdso lacks {name}")),
    };
    // mov eax, call; syscall; ret
    Ok(Some(
        [&[0xb8], &call.to_le_bytes()[..], &[0x0f, 0x05, 0xc3]].concat(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_jumps_to_its_namesake() {
        let parked = Parked::of_this_kernel(0x10_0000).unwrap();
        let base = parked.vdso().unwrap();
        let image = redirected(&parked.image, &parked.image, base).unwrap();
        let found = functions(&parked.image).unwrap();
        assert!(found.iter().any(|(name, _)| name == "__vdso_clock_gettime"));
        for (name, at) in found {
            let at = at as usize;
            assert_eq!(image[at..at + 2], [0x49, 0xbb], "{name}");
            let target = u64::from_le_bytes(image[at + 2..at + 10].try_into().unwrap());
            assert_eq!(target, base + at as u64, "{name}");
        }
    }

    #[test]
    fn what_an_older_kernel_lacks_is_a_system_call() {
        let code = without("__vdso_getrandom").unwrap().unwrap();
        assert_eq!(code, [0xb8, 0x3e, 1, 0, 0, 0x0f, 0x05, 0xc3]);
        assert_eq!(
            without("__vdso_futex_robust_list64_try_unlock").unwrap(),
            None
        );
        assert_eq!(without("__vdso_sgx_enter_enclave").unwrap(), None);
        assert!(without("__vdso_news").is_err());
    }
}
