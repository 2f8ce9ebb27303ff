//! Tunnels: network interfaces whose packets a process reads and writes through `/dev/net/tun`
//! (Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h).

use crate::raw::syscall;
use crate::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `IFF_DETACH_QUEUE`: this descriptor takes no part at present.
pub const DETACHED: u32 = 0x400;
/// `IFF_PERSIST`: the interface outlives its descriptors.
pub const PERSISTENT: u32 = 0x800;
/// `IFF_TAP`: frames of Ethernet.
pub const TAP: u32 = 2;
/// `IFF_VNET_HDR`: packets begin with a header of virtio.
pub const VNET_HDR: u32 = 0x4000;

/// Bytes of an interface's name with its end.
const NAME: usize = 16;
/// `struct ifreq`: the name, then what is asked.
type IfReq = [u8; 40];

/// `_IOW('T', number, int)`, and `_IOR` likewise.
const fn write(number: u64) -> u64 {
    0x4004_5400 | number
}
const fn read(number: u64) -> u64 {
    0x8004_5400 | number
}

const SET_IFF: u64 = write(202);
const SET_PERSIST: u64 = write(203);
const SET_OWNER: u64 = write(204);
const SET_LINK: u64 = write(205);
const SET_GROUP: u64 = write(206);
const SET_OFFLOADS: u64 = write(208);
const GET_IFF: u64 = read(210);
const GET_SEND_BUFFER: u64 = read(211);
const SET_SEND_BUFFER: u64 = write(212);
const GET_HEADER_SIZE: u64 = read(215);
const SET_HEADER_SIZE: u64 = write(216);
const SET_QUEUE: u64 = write(217);
const SET_INDEX: u64 = write(218);
/// `TUNGETFILTER`, of a `struct sock_fprog`.
const GET_FILTER: u64 = 0x8010_54db;
const SET_LITTLE_ENDIAN: u64 = write(220);
const GET_LITTLE_ENDIAN: u64 = read(221);
const SET_BIG_ENDIAN: u64 = write(222);
const GET_BIG_ENDIAN: u64 = read(223);

fn ioctl(fd: BorrowedFd<'_>, request: u64, argument: u64) -> Result<u64> {
    let fd = i64::from(fd.as_raw_fd()).cast_unsigned();
    // SAFETY: private to this module: the argument is a number, or the address of a buffer of the size that
    // the request says, which lives through the call.
    unsafe { syscall(libc::SYS_ioctl, [fd, request, argument, 0, 0, 0]) }
}

fn get(fd: BorrowedFd<'_>, request: u64) -> Result<i32> {
    let mut value = 0_i32;
    ioctl(fd, request, &raw mut value as u64)?;
    Ok(value)
}

fn set(fd: BorrowedFd<'_>, request: u64, value: i32) -> Result<()> {
    ioctl(fd, request, &raw const value as u64).map(drop)
}

/// A number as the argument itself.
fn set_number(fd: BorrowedFd<'_>, request: u64, value: u64) -> Result<()> {
    ioctl(fd, request, value).map(drop)
}

fn request(name: &str, flags: u32) -> Result<IfReq> {
    let mut request: IfReq = [0; 40];
    let bytes = name.as_bytes();
    if bytes.len() >= NAME {
        return Err(Errno::ENAMETOOLONG);
    }
    request[..bytes.len()].copy_from_slice(bytes);
    request[NAME..NAME + 2].copy_from_slice(&(flags as u16).to_ne_bytes());
    Ok(request)
}

/// The interface of a descriptor, and its flags (`IFF_*` of if_tun.h); None when it has none yet.
///
/// # Errors
/// As ioctl(2); `EILSEQ` when the name is no UTF-8.
pub fn interface(fd: BorrowedFd<'_>) -> Result<Option<(String, u32)>> {
    let mut answer: IfReq = [0; 40];
    match ioctl(fd, GET_IFF, &raw mut answer as u64) {
        Ok(_) => {}
        Err(Errno::EBADFD) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let name = answer[..NAME].split(|byte| *byte == 0).next();
    let name = core::str::from_utf8(name.unwrap_or_default()).map_err(|_| Errno::EILSEQ)?;
    let flags = u16::from_ne_bytes([answer[NAME], answer[NAME + 1]]);
    Ok(Some((name.to_owned(), flags.into())))
}

/// Makes the interface, or takes part in it when it is there.
///
/// # Errors
/// `EBUSY` when it is somebody else's, among others.
pub fn attach(fd: BorrowedFd<'_>, name: &str, flags: u32) -> Result<()> {
    let mut request = request(name, flags)?;
    ioctl(fd, SET_IFF, &raw mut request as u64).map(drop)
}

/// Chooses the number of the interface that [`attach`] will make.
///
/// # Errors
/// As ioctl(2).
pub fn choose_index(fd: BorrowedFd<'_>, index: u32) -> Result<()> {
    set(fd, SET_INDEX, index.cast_signed())
}

/// Takes a descriptor of an interface with several of them out of use.
///
/// # Errors
/// As ioctl(2).
pub fn detach(fd: BorrowedFd<'_>) -> Result<()> {
    let mut request = request("", DETACHED)?;
    ioctl(fd, SET_QUEUE, &raw mut request as u64).map(drop)
}

/// Settings of an interface that are asked for and made through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `TUNSETSNDBUF`.
    pub send_buffer: i32,
    /// `TUNSETVNETHDRSZ`.
    pub header_size: i32,
    /// `TUNSETVNETLE`.
    pub little_endian: bool,
    /// `TUNSETVNETBE`, where the kernel knows it.
    pub big_endian: bool,
}

/// Asks for them.
///
/// # Errors
/// As ioctl(2).
pub fn settings(fd: BorrowedFd<'_>) -> Result<Settings> {
    Ok(Settings {
        send_buffer: get(fd, GET_SEND_BUFFER)?,
        header_size: get(fd, GET_HEADER_SIZE)?,
        little_endian: get(fd, GET_LITTLE_ENDIAN)? != 0,
        big_endian: get(fd, GET_BIG_ENDIAN).is_ok_and(|value| value != 0),
    })
}

/// Makes those that differ from what a new interface has.
///
/// # Errors
/// As ioctl(2).
pub fn set_settings(fd: BorrowedFd<'_>, wanted: Settings) -> Result<()> {
    let now = settings(fd)?;
    if now.header_size != wanted.header_size {
        set(fd, SET_HEADER_SIZE, wanted.header_size)?;
    }
    if now.little_endian != wanted.little_endian {
        set(fd, SET_LITTLE_ENDIAN, wanted.little_endian.into())?;
    }
    if now.big_endian != wanted.big_endian {
        set(fd, SET_BIG_ENDIAN, wanted.big_endian.into())?;
    }
    // Of every descriptor, though it is asked for as one.
    set(fd, SET_SEND_BUFFER, wanted.send_buffer)
}

/// The interface outlives its descriptors.
///
/// # Errors
/// As ioctl(2).
pub fn make_persistent(fd: BorrowedFd<'_>) -> Result<()> {
    set_number(fd, SET_PERSIST, 1)
}

/// The user and group that may use it.
///
/// # Errors
/// As ioctl(2).
pub fn give_to(fd: BorrowedFd<'_>, owner: Option<u32>, group: Option<u32>) -> Result<()> {
    if let Some(owner) = owner {
        set_number(fd, SET_OWNER, owner.into())?;
    }
    if let Some(group) = group {
        set_number(fd, SET_GROUP, group.into())?;
    }
    Ok(())
}

/// The hardware type (`ARPHRD_*`) of an interface that is down.
///
/// # Errors
/// As ioctl(2).
pub fn set_link_type(fd: BorrowedFd<'_>, kind: u16) -> Result<()> {
    set_number(fd, SET_LINK, kind.into())
}

/// What an interface hands over unfinished (`TUN_F_*`, `TUNSETOFFLOAD`), as its features tell (ethtool(8)): nobody
/// can ask for it otherwise.
///
/// # Errors
/// `ENODEV` when there is none of this name.
pub fn offloads(name: &str) -> Result<u32> {
    const COUNT: u32 = 0x37;
    const NAMES: u32 = 0x1b;
    const VALUES: u32 = 0x3a;
    /// `ETH_SS_FEATURES`.
    const FEATURES: u32 = 4;
    /// `ETH_GSTRING_LEN`.
    const LEN: usize = 32;
    // struct ethtool_sset_info: command, nothing, the sets that are asked for (64 bits), the number in each.
    let mut counts = [COUNT, 0, 1 << FEATURES, 0, 0];
    ethtool(name, &mut counts)?;
    let count = counts[4] as usize;
    // struct ethtool_gstrings: command, set, number, the names.
    let mut names = vec![0; 3 + count * LEN / 4];
    names[..3].copy_from_slice(&[NAMES, FEATURES, counts[4]]);
    ethtool(name, &mut names)?;
    // struct ethtool_gfeatures: command, number of blocks; of each those available, requested, active, and fixed.
    let blocks = count.div_ceil(32);
    let mut values = vec![0; 2 + blocks * 4];
    values[..2].copy_from_slice(&[VALUES, blocks as u32]);
    ethtool(name, &mut values)?;
    let is_active = |feature: &str| {
        let mut all = names[3..].chunks(LEN / 4);
        let at = all.position(|words| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes.split(|byte| *byte == 0).next() == Some(feature.as_bytes())
        });
        let word = at.and_then(|at| Some((values.get(2 + at / 32 * 4 + 2)?, at % 32)));
        word.is_some_and(|(word, bit)| word >> bit & 1 == 1)
    };
    let found = OFFLOADS.iter().filter(|(feature, _)| is_active(feature));
    Ok(found.fold(0, |all, (_, bits)| all | bits))
}

/// Features of interfaces, and what `TUNSETOFFLOAD` makes them of.
const OFFLOADS: [(&str, u32); 5] = [
    ("tx-checksum-ip-generic", 0x01),
    ("tx-tcp-segmentation", 0x02),
    ("tx-tcp6-segmentation", 0x04),
    ("tx-tcp-ecn-segmentation", 0x08),
    ("tx-udp-segmentation", 0x60),
];

/// An ethtool request, whose answer has room in it as the request says.
fn ethtool(name: &str, words: &mut [u32]) -> Result<()> {
    const SIOCETHTOOL: u64 = 0x8946;
    let mut request = request(name, 0)?;
    request[NAME..NAME + 8].copy_from_slice(&(words.as_mut_ptr() as u64).to_ne_bytes());
    let any = crate::socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    ioctl(any.as_fd(), SIOCETHTOOL, &raw mut request as u64).map(drop)
}

/// Has packets handed over unfinished.
///
/// # Errors
/// `EINVAL` for what the kernel does not know.
pub fn set_offloads(fd: BorrowedFd<'_>, offloads: u32) -> Result<()> {
    set_number(fd, SET_OFFLOADS, offloads.into())
}

/// Whether packets pass a filter (`TUNATTACHFILTER`), which cannot be read.
///
/// # Errors
/// As ioctl(2).
pub fn has_filter(fd: BorrowedFd<'_>) -> Result<bool> {
    // struct sock_fprog: the number of instructions, and an address.
    let mut program = [0_u64; 2];
    match ioctl(fd, GET_FILTER, program.as_mut_ptr() as u64) {
        Ok(_) => Ok(program[0] as u16 != 0),
        // Only TAP has them.
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}
