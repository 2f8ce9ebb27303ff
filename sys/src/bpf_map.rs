//! Maps of BPF (bpf(2)): tables of keys and values that the kernel keeps.

use crate::raw::syscall;
use crate::{Errno, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: u64 = 0;
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_MAP_GET_NEXT_KEY: u64 = 4;
const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;
const BPF_MAP_FREEZE: u64 = 22;
/// Bytes of `struct bpf_map_info` that kernels since Linux 6.1 know.
const INFO_LEN: usize = 88;

/// Types whose values are there once for every processor.
pub const PERCPU_HASH: u32 = 5;
/// As [`PERCPU_HASH`].
pub const PERCPU_ARRAY: u32 = 6;

/// What a map is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// `BPF_MAP_TYPE_*`
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many there may be.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
    /// Its name, filled up with zeros.
    pub name: [u8; 16],
}

/// A map, of which the kernel has told how long its keys and values are: it reads and writes as much.
#[derive(Debug)]
pub struct Map<'a> {
    fd: BorrowedFd<'a>,
    shape: Shape,
    special: bool,
    /// Bytes of what is read and written as a value.
    value_len: usize,
}

/// `union bpf_attr` of the commands for elements.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// Of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Ask {
    map: u32,
    len: u32,
    info: u64,
}

/// # Safety
/// `attributes` are those of the command; pointers in it lead to as much as it reads and writes.
unsafe fn call<T>(command: u64, attributes: &mut T) -> Result<u64> {
    let args = [
        command,
        core::ptr::from_mut(attributes) as u64,
        size_of::<T>() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: as the caller promises.
    unsafe { syscall(libc::SYS_bpf, args) }
}

impl<'a> Map<'a> {
    /// Asks what a map is.
    ///
    /// # Errors
    /// As bpf(2); `EIO` where nothing tells how many processors there may be.
    pub fn of(fd: BorrowedFd<'a>) -> Result<Map<'a>> {
        let mut bytes = [0_u8; INFO_LEN];
        let mut ask = Ask {
            map: fd.as_raw_fd().cast_unsigned(),
            len: INFO_LEN as u32,
            info: bytes.as_mut_ptr() as u64,
        };
        // SAFETY: the kernel writes no more than the length that is given.
        unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut ask) }?;
        let word = |at: usize| {
            let word = bytes[at..].first_chunk::<4>();
            word.map_or(0, |word| u32::from_ne_bytes(*word))
        };
        let mut name = [0; 16];
        name.copy_from_slice(&bytes[24..40]);
        let shape = Shape {
            kind: word(0),
            key_size: word(8),
            value_size: word(12),
            max_entries: word(16),
            flags: word(20),
            name,
        };
        Ok(Map {
            fd,
            shape,
            // ifindex, the device's namespace, types, map_extra.
            special: bytes[40..].iter().any(|byte| *byte != 0),
            value_len: value_len(&shape)?,
        })
    }

    /// What it was made with.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether it is of a device, has types (BTF) or more to it.
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.special
    }

    /// The key behind one, or the first one; None behind the last.
    ///
    /// # Errors
    /// As bpf(2); `EINVAL` for a key of another length.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let key = match key {
            Some(key) => self.key(key)?,
            None => 0,
        };
        self.read(BPF_MAP_GET_NEXT_KEY, key, self.shape.key_size as usize)
    }

    /// The value of a key, None where there is none: of all processors for a map with values of each.
    ///
    /// # Errors
    /// As bpf(2); `EINVAL` for a key of another length.
    pub fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.read(BPF_MAP_LOOKUP_ELEM, self.key(key)?, self.value_len)
    }

    /// Gives a key a value.
    ///
    /// # Errors
    /// As bpf(2); `EINVAL` for a key or a value of another length.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        if value.len() != self.value_len {
            return Err(Errno::EINVAL);
        }
        let mut element = self.element(self.key(key)?, value.as_ptr() as u64);
        // SAFETY: key and value live through the call and have the lengths of this map's; both are only read.
        unsafe { call(BPF_MAP_UPDATE_ELEM, &mut element) }.map(drop)
    }

    /// From now on user space may not change it.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn freeze(&self) -> Result<()> {
        let mut number = [self.fd.as_raw_fd().cast_unsigned()];
        // SAFETY: there are no pointers in it.
        unsafe { call(BPF_MAP_FREEZE, &mut number) }.map(drop)
    }

    /// Where a key is, which has the right length.
    fn key(&self, key: &[u8]) -> Result<u64> {
        let right = key.len() == self.shape.key_size as usize;
        right.then_some(key.as_ptr() as u64).ok_or(Errno::EINVAL)
    }

    /// What a command writes for a key; None where there is nothing.
    fn read(&self, command: u64, key: u64, len: usize) -> Result<Option<Vec<u8>>> {
        let mut found = vec![0; len];
        let mut element = self.element(key, found.as_mut_ptr() as u64);
        // SAFETY: the key is one of the callers above, and `found` as long as this map's keys or values are.
        match unsafe { call(command, &mut element) } {
            Ok(_) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn element(&self, key: u64, value: u64) -> Element {
        Element {
            map: self.fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key,
            value,
            flags: 0,
        }
    }
}

/// kernel/bpf/syscall.c, `bpf_map_value_size`.
fn value_len(shape: &Shape) -> Result<usize> {
    let size = shape.value_size as usize;
    Ok(match shape.kind {
        PERCPU_HASH | PERCPU_ARRAY => size.next_multiple_of(8) * processors()?,
        _ => size,
    })
}

/// One more than the highest number a processor may have, and so not less than how many there may be.
fn processors() -> Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    let text = text.map_err(|_| Errno::EIO)?;
    let last = text.trim().rsplit([',', '-']).next();
    let last = last.and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or(Errno::EIO)
}

/// Makes an empty one.
///
/// # Errors
/// As bpf(2).
pub fn make(shape: &Shape) -> Result<OwnedFd> {
    // map_type to map_flags, inner_map_fd, numa_node, map_name.
    let mut attributes = [0_u32; 11];
    attributes[..5].copy_from_slice(&[
        shape.kind,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.flags,
    ]);
    for (word, bytes) in attributes[7..]
        .iter_mut()
        .zip(shape.name.as_chunks::<4>().0)
    {
        *word = u32::from_ne_bytes(*bytes);
    }
    // SAFETY: there are no pointers in it.
    let made = unsafe { call(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_put_in_comes_out() {
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"test");
        let shape = Shape {
            kind: 1,
            key_size: 4,
            value_size: 8,
            max_entries: 10,
            flags: 1,
            name,
        };
        let Ok(made) = make(&shape) else { return };
        let map = Map::of(made.as_fd()).unwrap();
        assert_eq!((map.shape(), map.is_special()), (&shape, false));
        assert_eq!(map.next_key(None), Ok(None));
        map.set(&[1, 2, 3, 4], &[5; 8]).unwrap();
        let key = map.next_key(None).unwrap().unwrap();
        assert_eq!(key, [1, 2, 3, 4]);
        assert_eq!(map.next_key(Some(&key)), Ok(None));
        assert_eq!(map.value(&key), Ok(Some(vec![5; 8])));
        // Not what lies behind them.
        assert_eq!(map.value(&key[..3]), Err(Errno::EINVAL));
        assert_eq!(map.set(&key, &[6; 7]), Err(Errno::EINVAL));
        map.freeze().unwrap();
        assert_eq!(map.set(&key, &[6; 8]), Err(Errno::EPERM));
    }

    #[test]
    fn values_of_every_processor_come_and_go() {
        let shape = Shape {
            kind: PERCPU_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 2,
            flags: 0,
            name: [0; 16],
        };
        let Ok(made) = make(&shape) else { return };
        let map = Map::of(made.as_fd()).unwrap();
        let value: Vec<u8> = map.value(&[0; 4]).unwrap().unwrap();
        assert_eq!(value.len() % 8, 0);
        let ones: Vec<u8> = [1, 0, 0, 0, 0, 0, 0, 0].repeat(value.len() / 8);
        map.set(&[1, 0, 0, 0], &ones).unwrap();
        let count = std::thread::available_parallelism().unwrap().get();
        let told = map.value(&[1, 0, 0, 0]).unwrap().unwrap();
        assert_eq!(told[..8 * count], ones[..8 * count]);
    }
}
