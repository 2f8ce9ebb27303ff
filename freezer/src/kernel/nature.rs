//! What kind of thing a file is that is open somewhere (include/linux/fs.h).

use super::{Kernel, Unreadable};
use nix::sys::stat::makedev;

const WRONG: Unreadable = Unreadable::Inconsistent("the kind of an open file");
/// include/uapi/linux/magic.h
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFSOCK: u32 = 0o140_000;
/// More than names of such things have.
const LONGEST: u64 = 64;

/// A kind of open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Of no file system, with this name (`anon_inode:`).
    Anonymous(Vec<u8>),
    /// A socket of this address family.
    Socket(i32),
    /// A character device.
    Device(u64),
    /// A block device.
    Disk,
    /// A file, a directory, a pipe.
    Other,
}

impl Kernel {
    /// The kind of an open file by its `struct file`.
    pub(crate) fn nature(&mut self, file: u64) -> Result<Nature, Unreadable> {
        let mode = self.mode(file)?;
        let inode = self.inode(file)?;
        match mode & S_IFMT {
            S_IFSOCK => return self.family(file).map(Nature::Socket),
            S_IFCHR => {
                // 12 bits of the major number, 20 of the minor one (include/linux/kdev_t.h).
                let device = self.field_of(inode, "inode", "i_rdev")?;
                return Ok(Nature::Device(makedev(device >> 20, device & 0xf_ffff)));
            }
            S_IFBLK => return Ok(Nature::Disk),
            _ => {}
        }
        let holder = self.field_of(inode, "inode", "i_sb")?;
        if self.field_of(holder, "super_block", "s_magic")? != ANON_INODE_FS_MAGIC {
            return Ok(Nature::Other);
        }
        let entry = self.field_of(file, "file", "f_path.dentry")?;
        let found = self.fields(entry, "dentry", &["d_name.name", "d_name.len"])?;
        let [name, len] = found[..] else {
            return Err(WRONG);
        };
        let len = Some(len).filter(|len| *len <= LONGEST).ok_or(WRONG)?;
        let name = self.read(&[(name, len as usize)])?.pop().flatten();
        name.map(Nature::Anonymous).ok_or(WRONG)
    }

    fn family(&mut self, file: u64) -> Result<i32, Unreadable> {
        let socket = self.field_of(file, "file", "private_data")?;
        let sk = self.field_of(socket, "socket", "sk")?;
        let family = self.field_of(sk, "sock", "__sk_common.skc_family")?;
        i32::try_from(family).map_err(|_| WRONG)
    }

    fn field_of(&mut self, at: u64, structure: &str, path: &str) -> Result<u64, Unreadable> {
        self.fields(at, structure, &[path])?
            .first()
            .copied()
            .ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    #[test]
    fn kinds_are_told() {
        let all: [(OwnedFd, Nature); 5] = [
            (
                nix::sys::eventfd::EventFd::new().unwrap().into(),
                Nature::Anonymous(b"[eventfd]".to_vec()),
            ),
            (
                std::net::UdpSocket::bind("[::1]:0").unwrap().into(),
                Nature::Socket(10),
            ),
            (
                std::fs::File::open("/dev/null").unwrap().into(),
                Nature::Device(makedev(1, 3)),
            ),
            (std::fs::File::open("/proc").unwrap().into(), Nature::Other),
            (nix::unistd::pipe().unwrap().0, Nature::Other),
        ];
        for (fd, expected) in all {
            let found = look(|kernel| {
                let file = kernel.own_file(fd.as_fd())?;
                kernel.nature(file)
            });
            let Some(found) = readable(found) else { return };
            assert_eq!(found, expected);
        }
    }
}
