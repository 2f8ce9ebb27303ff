//! Options of sockets.

use super::number;
use crate::Result;
use crate::raw::syscall;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// getsockopt(2) with what `value` holds as input; cut to what the kernel gives.
///
/// # Errors
/// `ENOPROTOOPT` when the socket has no such option, and what the option says.
pub fn query_option(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    mut value: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut len = u32::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    let args = [
        number(fd),
        level as u64,
        name as u64,
        value.as_mut_ptr() as u64,
        (&raw mut len) as u64,
        0,
    ];
    // SAFETY: `value` has `len` bytes; SO_GET_FILTER, whose length counts instructions, is kept out.
    if (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    value.truncate(len as usize);
    Ok(value)
}

/// getsockopt(2) of an option of at most `capacity` bytes.
///
/// # Errors
/// As [`query_option`].
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, capacity: usize) -> Result<Vec<u8>> {
    query_option(fd, level, name, vec![0; capacity])
}

/// getsockopt(2) of an `int`.
///
/// # Errors
/// As [`query_option`].
pub fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let value = option(fd, level, name, 4)?;
    let mut word = [0; 4];
    word[..value.len()].copy_from_slice(&value);
    Ok(i32::from_ne_bytes(word))
}

/// setsockopt(2). Options whose value holds a pointer have functions of their own.
///
/// # Errors
/// `ENOPROTOOPT`, `EPERM`, `EINVAL`.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let programs = [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF];
    if level == libc::SOL_SOCKET && programs.contains(&name) {
        return Err(Errno::EINVAL);
    }
    set_raw(fd, level, name, value)
}

fn set_raw(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let args = [
        number(fd),
        level as u64,
        name as u64,
        value.as_ptr() as u64,
        value.len() as u64,
        0,
    ];
    // SAFETY: the kernel reads `value.len()` bytes; where they hold a pointer, the caller vouches.
    unsafe { syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// setsockopt(2) of an `int`.
///
/// # Errors
/// As [`set_option`].
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// The attached classic BPF program (`SO_GET_FILTER`, socket(7)), one `struct sock_filter` in each
/// u64; empty when there is none.
///
/// # Errors
/// `EACCES` when the filter is not a classic one.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u64>> {
    let mut count = 0u32;
    let ask = |pointer: u64, count: &mut u32| {
        let args = [
            number(fd),
            libc::SOL_SOCKET as u64,
            libc::SO_GET_FILTER as u64,
            pointer,
            core::ptr::from_mut(count) as u64,
            0,
        ];
        // SAFETY: with a count of 0 nothing is written; else `pointer` has room for `count`
        // instructions of 8 bytes.
        unsafe { syscall(libc::SYS_getsockopt, args) }
    };
    ask(0, &mut count)?;
    let mut program = vec![0u64; count as usize];
    if count > 0 {
        ask(program.as_mut_ptr() as u64, &mut count)?;
    }
    Ok(program)
}

/// Attaches a classic BPF program as [`filter`] gives it.
///
/// # Errors
/// `EINVAL` when the kernel's checker does not take it.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    attach(fd, libc::SO_ATTACH_FILTER, program)
}

/// Attaches a classic BPF program that chooses among the sockets of one port
/// (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)).
///
/// # Errors
/// `EINVAL` when the socket shares its port with none.
pub fn attach_port_program(fd: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn attach(fd: BorrowedFd<'_>, name: i32, program: &[u64]) -> Result<()> {
    let count = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // struct sock_fprog: u16 count, padding, pointer.
    let mut value = [0u8; 16];
    value[..2].copy_from_slice(&count.to_ne_bytes());
    value[8..].copy_from_slice(&(program.as_ptr() as u64).to_ne_bytes());
    set_raw(fd, libc::SOL_SOCKET, name, &value)
}

#[cfg(test)]
mod tests {
    use super::super::socket;
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_filter_comes_back_as_it_was_attached() {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(filter(socket.as_fd()).unwrap(), Vec::<u64>::new());
        // BPF_LD|BPF_W|BPF_ABS 0; BPF_RET|BPF_K 0xffff
        let program = [0x20u64, 0x06 | (0xffff << 32)];
        attach_filter(socket.as_fd(), &program).unwrap();
        assert_eq!(filter(socket.as_fd()).unwrap(), program);
        assert_eq!(
            attach_filter(socket.as_fd(), &[0xff]).unwrap_err(),
            Errno::EINVAL
        );
    }
}
