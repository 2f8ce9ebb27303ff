//! Maps of BPF (bpf(2)): tables of keys and values that the kernel keeps.

use crate::raw::syscall;
use crate::{Errno, Result};
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

/// What a map is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A map, as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it was made with.
    pub shape: Shape,
    /// It is of a device, has types (BTF) or more to it.
    pub special: bool,
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

fn call<T>(command: u64, attributes: &mut T) -> Result<u64> {
    let args = [
        command,
        core::ptr::from_mut(attributes) as u64,
        size_of::<T>() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the callers below give the structure of the command; pointers in it are to buffers that live through
    // the call and have the sizes of the map's keys and values.
    unsafe { syscall(libc::SYS_bpf, args) }
}

/// What a map is.
///
/// # Errors
/// As bpf(2).
pub fn info(map: BorrowedFd<'_>) -> Result<Info> {
    let mut bytes = [0_u8; INFO_LEN];
    let mut ask = Ask {
        map: map.as_raw_fd().cast_unsigned(),
        len: INFO_LEN as u32,
        info: bytes.as_mut_ptr() as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut ask)?;
    let word = |at: usize| {
        let word = bytes[at..].first_chunk::<4>();
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    };
    let mut name = [0; 16];
    name.copy_from_slice(&bytes[24..40]);
    Ok(Info {
        shape: Shape {
            kind: word(0),
            key_size: word(8),
            value_size: word(12),
            max_entries: word(16),
            flags: word(20),
            name,
        },
        // ifindex, the device's namespace, types, map_extra.
        special: bytes[40..].iter().any(|byte| *byte != 0),
    })
}

/// The key behind one, or the first one; None behind the last.
///
/// # Errors
/// As bpf(2).
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, len: usize) -> Result<Option<Vec<u8>>> {
    let mut next = vec![0; len];
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    match call(BPF_MAP_GET_NEXT_KEY, &mut element) {
        Ok(_) => Ok(Some(next)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The value of a key, None where there is none. `len` are the bytes of a value, of all processors for a map with
/// values of each.
///
/// # Errors
/// As bpf(2).
pub fn value(map: BorrowedFd<'_>, key: &[u8], len: usize) -> Result<Option<Vec<u8>>> {
    let mut found = vec![0; len];
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.as_ptr() as u64,
        value: found.as_mut_ptr() as u64,
        flags: 0,
    };
    match call(BPF_MAP_LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Gives a key a value.
///
/// # Errors
/// As bpf(2).
pub fn set(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<()> {
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, &mut element).map(drop)
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
    let made = call(BPF_MAP_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// From now on user space may not change it.
///
/// # Errors
/// As bpf(2).
pub fn freeze(map: BorrowedFd<'_>) -> Result<()> {
    let mut number = [map.as_raw_fd().cast_unsigned()];
    call(BPF_MAP_FREEZE, &mut number).map(drop)
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
        let Ok(map) = make(&shape) else { return };
        let map = map.as_fd();
        let told = info(map).unwrap();
        assert_eq!((told.shape, told.special), (shape, false));
        assert_eq!(next_key(map, None, 4), Ok(None));
        set(map, &[1, 2, 3, 4], &[5; 8]).unwrap();
        let key = next_key(map, None, 4).unwrap().unwrap();
        assert_eq!(key, [1, 2, 3, 4]);
        assert_eq!(next_key(map, Some(&key), 4), Ok(None));
        assert_eq!(value(map, &key, 8), Ok(Some(vec![5; 8])));
        freeze(map).unwrap();
        assert_eq!(set(map, &key, &[6; 8]), Err(Errno::EPERM));
    }
}
