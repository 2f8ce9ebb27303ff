//! Where an open file lies (include/linux/dcache.h, fs/mount.h).

use super::{Kernel, Unreadable};

const WRONG: Unreadable = Unreadable::Inconsistent("the path of an open file");
/// Longer than any path that the kernel tells.
const LONGEST: usize = 4096;

/// A place below a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Below {
    /// The mount's number, as `/proc/PID/mountinfo` has it.
    pub(crate) mount: u32,
    /// The path from its root on, with a slash before every name; empty for the root.
    pub(crate) path: Vec<u8>,
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
        Ok(Below {
            mount: number.first().copied().ok_or(WRONG)? as u32,
            path: names,
        })
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
