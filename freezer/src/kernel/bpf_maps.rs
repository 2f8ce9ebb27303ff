//! Who uses a map of BPF (include/linux/bpf.h, `struct bpf_map`).

use super::{Kernel, Unreadable};

const WRONG: Unreadable = Unreadable::Inconsistent("a map of BPF");

impl Kernel {
    /// How often a map is referred to, and how often by user space, by the `struct file` of a descriptor of it.
    pub(crate) fn users_of_map(&mut self, file: u64) -> Result<[u64; 2], Unreadable> {
        let map = self.fields(file, "file", &["private_data"])?;
        let map = map.first().copied().filter(|at| *at != 0).ok_or(WRONG)?;
        let counts = ["refcnt.counter", "usercnt.counter"];
        match self.fields(map, "bpf_map", &counts)?[..] {
            [all, user] => Ok([all, user]),
            _ => Err(WRONG),
        }
    }
}
