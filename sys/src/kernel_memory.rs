//! Reading the kernel's own memory, and nothing but reading, with a BPF program (bpf(2)).
//!
//! Some state of a process no interface shows. A program of type `BPF_PROG_TYPE_SYSCALL` (Linux 5.14)
//! runs when it is asked to (`BPF_PROG_TEST_RUN`) and copies what a list of addresses names
//! (`bpf_probe_read_kernel`, which checks every address and never faults) into an array that this process
//! has mapped. What lies where is for the callers to know (`freezer::kernel`). It takes CAP_BPF and CAP_PERFMON, and a kernel that is not locked down to confidentiality.

use crate::raw::syscall;
use crate::{Errno, PAGE_SIZE, Result};
use memmap2::{Mmap, MmapOptions, MmapRaw};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: u64 = 0;
const BPF_PROG_LOAD: u64 = 5;
const BPF_PROG_TEST_RUN: u64 = 10;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Helpers (include/uapi/linux/bpf.h).
const KTIME_GET_NS: i32 = 5;
const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;
const JIFFIES64: i32 = 118;
const KALLSYMS_LOOKUP_NAME: i32 = 179;
/// The helper that reads is for programs whose licence says so; this is the one of the program alone.
const LICENCE: &core::ffi::CStr = c"Dual MIT/GPL";

/// Reads in one run of the program, which the kernel checks one by one when it is loaded.
const SLOTS: usize = 128;
/// Most bytes of one read.
const CHUNK: usize = 240;
/// A slot: address, length, result (0 or a negative error number), bytes.
const SLOT: usize = 16 + CHUNK;
/// Before the slots: the running thread's `task_struct`, and the address that was looked up.
const HEADER: usize = 16;
/// Longest name that is looked up, with its end.
const NAME: usize = 64;

/// Something to read: an address in the kernel, and how many bytes.
pub type Request = (u64, usize);

/// The kernel's description of its types, byte for byte (`/sys/kernel/btf/vmlinux`): some megabytes.
#[derive(Debug)]
pub enum Types {
    /// As the kernel has it (Linux 6.16).
    Mapped(Mmap),
    /// A copy.
    Copied(Vec<u8>),
}

impl Types {
    /// The running kernel's.
    ///
    /// # Errors
    /// `NotFound` without CONFIG_DEBUG_INFO_BTF.
    pub fn read() -> std::io::Result<Types> {
        const PATH: &str = "/sys/kernel/btf/vmlinux";
        let file = std::fs::File::open(PATH)?;
        // SAFETY: the kernel never changes it.
        match unsafe { Mmap::map(&file) } {
            Ok(mapped) => Ok(Types::Mapped(mapped)),
            Err(_) => std::fs::read(PATH).map(Types::Copied),
        }
    }
}

impl From<Vec<u8>> for Types {
    fn from(bytes: Vec<u8>) -> Types {
        Types::Copied(bytes)
    }
}

impl core::ops::Deref for Types {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Types::Mapped(bytes) => bytes,
            Types::Copied(bytes) => bytes,
        }
    }
}

/// The program, and the memory it copies into.
#[derive(Debug)]
pub struct KernelMemory {
    reader: OwnedFd,
    /// The program that looks up names, where it has been needed.
    finder: Option<OwnedFd>,
    map: OwnedFd,
    shared: MmapRaw,
}

impl KernelMemory {
    /// Loads the program.
    ///
    /// # Errors
    /// `EPERM` without privileges or when the kernel is locked down, `EINVAL` or `ENOSYS` when it has no
    /// such programs.
    pub fn open() -> Result<KernelMemory> {
        let map = create_map()?;
        let reader = load(&reader(map.as_raw_fd()))?;
        let shared = MmapOptions::new()
            .len(map_len())
            .map_raw(&map)
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(KernelMemory {
            reader,
            finder: None,
            map,
            shared,
        })
    }

    /// Address of the calling thread's `task_struct`.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn own_task(&mut self) -> Result<u64> {
        self.set_word(HEADER + 8, 0);
        run(&self.reader)?;
        Ok(self.word(0))
    }

    /// Reads everything that is asked for, as far as it is there: None for what is not mapped.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn read(&mut self, requests: &[Request]) -> Result<Vec<Option<Vec<u8>>>> {
        let mut found: Vec<Option<Vec<u8>>> = requests
            .iter()
            .map(|(_, len)| Some(Vec::with_capacity(*len)))
            .collect();
        let chunks: Vec<(usize, u64, usize)> = requests
            .iter()
            .enumerate()
            .flat_map(|(index, (address, len))| {
                (0..*len).step_by(CHUNK).map(move |at| {
                    let from = address.wrapping_add(at as u64);
                    (index, from, CHUNK.min(len - at))
                })
            })
            .collect();
        for batch in chunks.chunks(SLOTS) {
            for (slot, (_, address, len)) in batch.iter().enumerate() {
                self.set_word(HEADER + slot * SLOT, *address);
                self.set_word(HEADER + slot * SLOT + 8, *len as u64);
            }
            if batch.len() < SLOTS {
                self.set_word(HEADER + batch.len() * SLOT + 8, 0);
            }
            run(&self.reader)?;
            for (slot, (index, _, len)) in batch.iter().enumerate() {
                let at = HEADER + slot * SLOT;
                let failed = self.word(at + 8) >> 32 != 0;
                let bytes = &mut found[*index];
                if failed {
                    *bytes = None;
                } else if let Some(bytes) = bytes {
                    self.copy(at + 16, *len, bytes);
                }
            }
        }
        Ok(found)
    }

    /// Address of a symbol of the kernel.
    ///
    /// # Errors
    /// `ENOENT` when there is none of that name, `EPERM` when addresses are hidden
    /// (kernel.kptr_restrict), `EINVAL` before Linux 5.16.
    pub fn symbol(&mut self, name: &str) -> Result<u64> {
        if name.len() >= NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        let finder = match self.finder.take() {
            Some(finder) => finder,
            None => load(&finder(self.map.as_raw_fd()))?,
        };
        let mut bytes = [0; NAME];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            self.set_word(HEADER + 16 + index * 8, u64::from_ne_bytes(*word));
        }
        self.set_word(8, 0);
        let status = run(&finder);
        self.finder = Some(finder);
        match (status?.cast_signed(), self.word(8)) {
            (0, 0) => Err(Errno::ENOENT),
            (0, address) => Ok(address),
            (error, _) => Err(Errno::from_raw(-error)),
        }
    }

    /// The kernel's count of ticks (`jiffies`), and the first time namespace's CLOCK_MONOTONIC in nanoseconds
    /// at the same moment.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn ticks(&mut self) -> Result<(u64, u64)> {
        let mut program = address_of_map(6, self.map.as_raw_fd()).to_vec();
        program.extend([call(JIFFIES64), store_u64(6, 8, 0)]);
        program.extend([call(KTIME_GET_NS), store_u64(6, 16, 0), set(0, 0), exit()]);
        run(&load(&program)?)?;
        Ok((self.word(8), self.word(16)))
    }

    /// A word of the shared memory; `at` is a multiple of eight.
    fn word(&self, at: usize) -> u64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.shared.len());
        // SAFETY: inside of the mapping and aligned; volatile, since the kernel writes there.
        unsafe { self.shared.as_ptr().add(at).cast::<u64>().read_volatile() }
    }

    fn set_word(&mut self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8) && at + 8 <= self.shared.len());
        let place = self.shared.as_mut_ptr();
        // SAFETY: inside of the mapping, which is writable, and aligned.
        unsafe { place.add(at).cast::<u64>().write_volatile(value) };
    }

    fn copy(&self, at: usize, len: usize, to: &mut Vec<u8>) {
        let words = (0..len.next_multiple_of(8)).step_by(8);
        let bytes = words.flat_map(|offset| self.word(at + offset).to_ne_bytes());
        to.extend(bytes.take(len));
    }
}

fn map_len() -> usize {
    (HEADER + SLOTS * SLOT).next_multiple_of(PAGE_SIZE)
}

/// Makes a bpf(2) call whose argument is a structure given as 32-bit words.
fn bpf(command: u64, attributes: &mut [u32]) -> Result<u64> {
    let args = [
        command,
        attributes.as_mut_ptr() as u64,
        size_of_val(attributes) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the callers below give the structure of the command; pointers in it are to what lives through
    // the call.
    unsafe { syscall(libc::SYS_bpf, args) }
}

fn owned(fd: u64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

/// An array with one element, which holds all.
fn create_map() -> Result<OwnedFd> {
    let len = u32::try_from(map_len()).unwrap_or(0);
    // map_type, key_size, value_size, max_entries, map_flags
    let mut attributes = [BPF_MAP_TYPE_ARRAY, 4, len, 1, BPF_F_MMAPABLE];
    bpf(BPF_MAP_CREATE, &mut attributes).map(owned)
}

fn low_high(pointer: u64) -> [u32; 2] {
    [pointer as u32, (pointer >> 32) as u32]
}

fn load(program: &[Instruction]) -> Result<OwnedFd> {
    let code: Vec<u64> = program.iter().map(Instruction::encode).collect();
    let (instructions, licence) = (code.as_ptr() as u64, LICENCE.as_ptr() as u64);
    let mut attributes = [0; 12];
    attributes[0] = BPF_PROG_TYPE_SYSCALL;
    attributes[1] = u32::try_from(code.len()).unwrap_or(0);
    attributes[2..4].copy_from_slice(&low_high(instructions));
    attributes[4..6].copy_from_slice(&low_high(licence));
    // log_level, log_size, log_buf, kern_version, prog_flags
    attributes[11] = BPF_F_SLEEPABLE;
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// Runs a program and returns what it returned.
fn run(program: &OwnedFd) -> Result<u32> {
    // prog_fd, retval, and nothing of the rest (`test` of `union bpf_attr`)
    let mut attributes = [0; 20];
    attributes[0] = program.as_raw_fd().cast_unsigned();
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes[1])
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    number: i32,
}

impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
        Instruction {
            code,
            to,
            from,
            offset,
            number,
        }
    }

    fn encode(&self) -> u64 {
        let [a, b] = self.offset.to_le_bytes();
        let [c, d, e, f] = self.number.to_le_bytes();
        u64::from_le_bytes([self.code, self.from << 4 | self.to, a, b, c, d, e, f])
    }
}

/// `to = number`
const fn set(to: u8, number: i32) -> Instruction {
    Instruction::new(0xb7, to, 0, 0, number)
}
/// `to = from`
const fn copy(to: u8, from: u8) -> Instruction {
    Instruction::new(0xbf, to, from, 0, 0)
}
/// `to += number`
const fn add(to: u8, number: i32) -> Instruction {
    Instruction::new(0x07, to, 0, 0, number)
}
/// `to += from`
const fn add_register(to: u8, from: u8) -> Instruction {
    Instruction::new(0x0f, to, from, 0, 0)
}
/// `to *= number`
const fn multiply(to: u8, number: i32) -> Instruction {
    Instruction::new(0x27, to, 0, 0, number)
}
/// `to = *(u64 *)(from + offset)`
const fn load_u64(to: u8, from: u8, offset: i16) -> Instruction {
    Instruction::new(0x79, to, from, offset, 0)
}
/// `to = *(u32 *)(from + offset)`
const fn load_u32(to: u8, from: u8, offset: i16) -> Instruction {
    Instruction::new(0x61, to, from, offset, 0)
}
/// `*(u64 *)(to + offset) = from`
const fn store_u64(to: u8, offset: i16, from: u8) -> Instruction {
    Instruction::new(0x7b, to, from, offset, 0)
}
/// `*(u32 *)(to + offset) = from`
const fn store_u32(to: u8, offset: i16, from: u8) -> Instruction {
    Instruction::new(0x63, to, from, offset, 0)
}
/// `if to == number`, skips `over` instructions.
const fn skip_if_equal(to: u8, number: i32, over: i16) -> Instruction {
    Instruction::new(0x15, to, 0, over, number)
}
/// `if to > number` (unsigned), skips `over` instructions.
const fn skip_if_above(to: u8, number: i32, over: i16) -> Instruction {
    Instruction::new(0x25, to, 0, over, number)
}
/// `if to < number` (unsigned), skips `over` instructions.
const fn skip_if_below(to: u8, number: i32, over: i16) -> Instruction {
    Instruction::new(0xa5, to, 0, over, number)
}
const fn call(helper: i32) -> Instruction {
    Instruction::new(0x85, 0, 0, 0, helper)
}
const fn exit() -> Instruction {
    Instruction::new(0x95, 0, 0, 0, 0)
}
/// `to` = address of the map's element: two instructions.
const fn address_of_map(to: u8, map: i32) -> [Instruction; 2] {
    const PSEUDO_MAP_VALUE: u8 = 2;
    [
        Instruction::new(0x18, to, PSEUDO_MAP_VALUE, 0, map),
        Instruction::new(0, 0, 0, 0, 0),
    ]
}

/// The program that reads: r6 the shared memory, r7 the slot's number, r8 the slot.
fn reader(map: i32) -> Vec<Instruction> {
    let mut program = address_of_map(6, map).to_vec();
    program.extend([
        call(GET_CURRENT_TASK),
        store_u64(6, 0, 0),
        set(7, 0),
        // The loop.
        copy(9, 7),
        multiply(9, SLOT as i32),
        copy(8, 6),
        add_register(8, 9),
        load_u32(2, 8, HEADER as i16 + 8),
        skip_if_equal(2, 0, 8),
        skip_if_above(2, CHUNK as i32, 7),
        load_u64(3, 8, HEADER as i16),
        copy(1, 8),
        add(1, HEADER as i32 + 16),
        call(PROBE_READ_KERNEL),
        store_u32(8, HEADER as i16 + 12, 0),
        add(7, 1),
        skip_if_below(7, SLOTS as i32, -14),
        set(0, 0),
        exit(),
    ]);
    program
}

/// The program that looks up a name, which lies in the first slot.
fn finder(map: i32) -> Vec<Instruction> {
    let mut program = address_of_map(6, map).to_vec();
    program.extend([
        copy(1, 6),
        add(1, HEADER as i32 + 16),
        set(2, NAME as i32),
        set(3, 0),
        copy(4, 6),
        add(4, 8),
        call(KALLSYMS_LOOKUP_NAME),
        exit(),
    ]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None on a machine where it cannot be.
    fn open() -> Option<KernelMemory> {
        match KernelMemory::open() {
            Ok(memory) => Some(memory),
            Err(Errno::EPERM | Errno::ENOSYS) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_own_task_names_itself() {
        let Some(mut memory) = open() else { return };
        let name = c"peeked-at";
        nix::sys::prctl::set_name(name).unwrap();
        let task = memory.own_task().unwrap();
        // More than one run's worth of reads, and one that is longer than a slot.
        let mut requests: Vec<Request> = (0..40).map(|page| (task + page * 100, 100)).collect();
        requests.push((task, 4000));
        let found = memory.read(&requests).unwrap();
        let pieces = found[..40].concat_all();
        let whole = found[40].clone().unwrap();
        assert_eq!(pieces, whole);
        let name = name.to_bytes();
        assert!(whole.windows(name.len()).any(|bytes| bytes == name));
    }

    trait ConcatAll {
        fn concat_all(&self) -> Vec<u8>;
    }

    impl ConcatAll for [Option<Vec<u8>>] {
        fn concat_all(&self) -> Vec<u8> {
            self.iter().flatten().flatten().copied().collect()
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let Some(mut memory) = open() else { return };
        let task = memory.own_task().unwrap();
        let found = memory.read(&[(8, 8), (task, 8), (task, 0)]).unwrap();
        assert_eq!((found[0].as_ref(), found[2].clone()), (None, Some(vec![])));
        assert_eq!(found[1].as_ref().unwrap().len(), 8);
    }

    #[test]
    fn functions_have_addresses() {
        let Some(mut memory) = open() else { return };
        match memory.symbol("do_no_restart_syscall") {
            Ok(address) => assert!(address >> 63 == 1),
            Err(Errno::EPERM) => return,
            Err(other) => panic!("{other}"),
        }
        let missing = memory.symbol("there_is_no_such_function");
        assert_eq!(missing, Err(Errno::ENOENT));
    }
}
