//! What an epoll watches (fs/eventpoll.c, `struct eventpoll`): a tree of entries, and the list of those that are to be
//! told.

use super::{Kernel, Unreadable, half, word};
use std::collections::HashMap;

const WRONG: Unreadable = Unreadable::Inconsistent("an epoll");
/// More entries than an epoll has by far, to end a tree that leads nowhere.
const MOST: usize = 1 << 20;

/// An entry of an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Address of the `struct file` that is watched.
    pub(crate) file: u64,
    /// The number it was registered with.
    pub(crate) number: i32,
    /// How many others are to be told before it, when it is to be told.
    pub(crate) told: Option<u32>,
}

/// Where things are in `struct epitem`.
struct Fields {
    len: usize,
    node: u64,
    children: [u64; 2],
    file: u64,
    number: u64,
    owner: u64,
    link: u64,
}

impl Fields {
    fn find(kernel: &Kernel) -> Result<Fields, Unreadable> {
        let field = |path| Ok(kernel.btf.field("epitem", path)?.offset);
        Ok(Fields {
            len: kernel.btf.size_of("epitem")? as usize,
            node: field("rbn")?,
            children: [field("rbn.rb_left")?, field("rbn.rb_right")?],
            file: field("ffd.file")?,
            number: field("ffd.fd")?,
            owner: field("ep")?,
            link: field("rdllink")?,
        })
    }
}

impl Kernel {
    /// The entries of an epoll by its `struct file`, in the order of `/proc/PID/fdinfo`.
    pub(crate) fn epoll(&mut self, epoll: u64) -> Result<Vec<Entry>, Unreadable> {
        let fields = Fields::find(self)?;
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let root = field("eventpoll", "rbr.rb_root.rb_node")?;
        let head = field("eventpoll", "rdllist")?;
        let epoll = self.word(epoll.wrapping_add(private), "an epoll")?;
        let head = epoll.wrapping_add(head);
        let ends = self.words(&[epoll.wrapping_add(root), head])?;
        let [Some(root), Some(first)] = ends[..] else {
            return Err(WRONG);
        };
        let items = self.epoll_items(epoll, root, &fields)?;
        let places = order(head, first, &items, &fields)?;
        let mut entries = Vec::new();
        for (item, bytes) in &items {
            entries.push(Entry {
                file: word(bytes, fields.file).ok_or(WRONG)?,
                number: half(bytes, fields.number).ok_or(WRONG)?.cast_signed(),
                told: places.get(item).copied(),
            });
        }
        // As the tree is sorted (ep_cmp_ffd).
        entries.sort_unstable_by_key(|entry| (entry.file, entry.number));
        Ok(entries)
    }

    /// Every `struct epitem` below a node by its address: those of one depth at a time.
    fn epoll_items(
        &mut self,
        epoll: u64,
        root: u64,
        fields: &Fields,
    ) -> Result<HashMap<u64, Vec<u8>>, Unreadable> {
        let mut found = HashMap::new();
        let mut nodes = vec![root];
        loop {
            nodes.retain(|node| *node != 0);
            if nodes.is_empty() {
                return Ok(found);
            }
            if found.len() + nodes.len() > MOST {
                return Err(WRONG);
            }
            let items = nodes.iter().map(|node| node.wrapping_sub(fields.node));
            let items: Vec<(u64, usize)> = items.map(|item| (item, fields.len)).collect();
            nodes.clear();
            for ((item, _), bytes) in items.iter().zip(self.read(&items)?) {
                let bytes = bytes.ok_or(WRONG)?;
                if word(&bytes, fields.owner) != Some(epoll) {
                    return Err(WRONG);
                }
                for child in fields.children {
                    nodes.push(word(&bytes, child).ok_or(WRONG)?);
                }
                found.insert(*item, bytes);
            }
        }
    }
}

/// The places of entries in the list of those that are to be told.
fn order(
    head: u64,
    first: u64,
    items: &HashMap<u64, Vec<u8>>,
    fields: &Fields,
) -> Result<HashMap<u64, u32>, Unreadable> {
    let mut places = HashMap::new();
    let mut next = first;
    while next != head {
        let item = next.wrapping_sub(fields.link);
        let bytes = items.get(&item).ok_or(WRONG)?;
        let place = u32::try_from(places.len()).map_err(|_| WRONG)?;
        if places.insert(item, place).is_some() {
            return Err(WRONG);
        }
        next = word(bytes, fields.link).ok_or(WRONG)?;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn entries_and_what_is_to_be_told() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let pipes = [(); 50].map(|()| nix::unistd::pipe().unwrap());
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for (reader, _) in &pipes {
            epoll.add(reader, EpollEvent::new(edge, 0)).unwrap();
        }
        nix::unistd::write(&pipes[0].1, b"x").unwrap();
        let mut told = [EpollEvent::empty(); 3];
        assert_eq!(epoll.wait(&mut told, EpollTimeout::ZERO), Ok(1));
        for ready in [7, 3] {
            nix::unistd::write(&pipes[ready].1, b"x").unwrap();
        }
        let found = look(|kernel| {
            let own = kernel.own_file(epoll.0.as_fd())?;
            let files: Result<Vec<u64>, _> = pipes
                .iter()
                .map(|(fd, _)| kernel.own_file(fd.as_fd()))
                .collect();
            Ok((kernel.epoll(own)?, files?))
        });
        if let Some((entries, files)) = readable(found) {
            assert!(entries.is_sorted_by_key(|entry| entry.file));
            assert_eq!(entries.len(), pipes.len());
            for (index, (reader, _)) in pipes.iter().enumerate() {
                let told = [7, 3].iter().position(|ready| *ready == index);
                let expected = Entry {
                    file: files[index],
                    number: reader.as_raw_fd(),
                    told: told.map(|place| place as u32),
                };
                assert!(entries.contains(&expected), "{expected:?}");
            }
        }
    }
}
