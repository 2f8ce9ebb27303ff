//! Where an open file lies (include/linux/dcache.h, fs/mount.h).

use super::{Kernel, Unreadable};

const WRONG: Unreadable = Unreadable::Inconsistent("the path of an open file");
/// Longer than any path that the kernel tells.
const LONGEST: usize = 4096;

/// More names of one file are not looked at.
const MOST_NAMES: usize = 256;

/// A place below a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Below {
    /// The mount's number, as `/proc/PID/mountinfo` has it.
    pub(crate) mount: u32,
    /// The path from its root on, with a slash before every name; empty for the root.
    pub(crate) path: Vec<u8>,
}

/// Names of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownNames {
    /// The device as the kernel has it inside: 12 bits of major, 20 of minor.
    pub(crate) device: u32,
    /// The kernel knows it by a name, even if that was taken away: who has it open has it by one.
    pub(crate) open: bool,
    /// With a slash before every name; empty for the root.
    pub(crate) paths: Vec<Vec<u8>>,
}

impl Kernel {
    /// The type and permissions of an open file's inode (`st_mode`).
    pub(crate) fn mode(&mut self, file: u64) -> Result<u32, Unreadable> {
        let inode = self.inode(file)?;
        let found = self.fields(inode, "inode", &["i_mode"])?;
        found.first().map(|mode| *mode as u32).ok_or(WRONG)
    }

    /// Where the file of a mount and a name lies; [`Unreadable`] also when it has no name any more.
    pub(crate) fn below(&mut self, (mount, name): (u64, u64)) -> Result<Below, Unreadable> {
        let root = self.fields(mount, "vfsmount", &["mnt_root"])?;
        let root = root.first().copied().ok_or(WRONG)?;
        let whole = mount.wrapping_sub(self.btf.field("mount", "mnt")?.offset);
        let number = self.fields(whole, "mount", &["mnt_id"])?;
        Ok(Below {
            mount: number.first().copied().ok_or(WRONG)? as u32,
            path: self.names(name, root)?,
        })
    }

    /// The path from one name to another below it.
    fn names(&mut self, name: u64, root: u64) -> Result<Vec<u8>, Unreadable> {
        let (mut at, mut names) = (name, Vec::new());
        while at != root {
            let fields = ["d_parent", "d_hash.pprev", "d_name.name", "d_name.len"];
            let found = self.fields(at, "dentry", &fields)?;
            let [parent, hashed, name, len] = found[..] else {
                return Err(WRONG);
            };
            let len = usize::try_from(len).map_err(|_| WRONG)?;
            if parent == at || hashed == 0 || len == 0 || len + names.len() > LONGEST {
                return Err(Unreadable::NoField("name of the file any more".into()));
            }
            let name = self.read(&[(name, len)])?.pop().flatten().ok_or(WRONG)?;
            names = [&b"/"[..], &name, &names].concat();
            at = parent;
        }
        Ok(names)
    }

    /// The names by which the kernel knows an inode just now, from the root of its file system on.
    pub(crate) fn known_names(&mut self, inode: u64) -> Result<KnownNames, Unreadable> {
        let alias = self.btf.field("dentry", "d_u.d_alias");
        let alias = alias
            .or_else(|_| self.btf.field("dentry", "d_alias"))?
            .offset;
        let found = self.fields(inode, "inode", &["i_sb", "i_dentry.first"])?;
        let [system, mut at] = found[..] else {
            return Err(WRONG);
        };
        let found = self.fields(system, "super_block", &["s_dev", "s_root"])?;
        let [dev, root] = found[..] else {
            return Err(WRONG);
        };
        let mut known = KnownNames {
            device: dev as u32,
            open: at != 0,
            paths: Vec::new(),
        };
        for _ in 0..MOST_NAMES {
            if at == 0 {
                break;
            }
            // Those that were taken away are no names any more.
            known
                .paths
                .extend(self.names(at.wrapping_sub(alias), root).ok());
            at = self.word(at, "the names of a file")?;
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::os::fd::AsFd;

    #[test]
    fn a_file_is_found_below_its_mount() {
        let path = std::env::temp_dir().join(format!("kupgrade-below-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        let below = || {
            look(|kernel| {
                let address = kernel.own_file(file.as_fd())?;
                let open = kernel.describe(&[address])?;
                Ok((kernel.mode(address)?, kernel.below(open[0].path)?))
            })
        };
        let found = readable(below());
        std::fs::remove_file(&path).unwrap();
        let Some((mode, found)) = found else { return };
        assert_eq!(mode & 0o170_000, 0o100_000);
        let text = path.as_os_str().as_encoded_bytes();
        assert!(
            text.ends_with(&found.path) && found.path.starts_with(b"/"),
            "{found:?}"
        );
        assert!(below().is_err(), "it has no name any more");
    }
}
