//! Which of the descriptions that have been met a descriptor is open on, and by which paths files were met.
//!
//! The kernel's own addresses tell descriptions apart. Where one cannot be had, kcmp(2) orders those of the same
//! file, which are then searched by halves.

use crate::kernel::{self, OpenFile};
use crate::proc;
use persist_mem::manifest::{DescriptionId, FileRef};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use sys::process::{self, KcmpKind};
use sys::{Pid, Tid};

/// A copy of one descriptor of each description.
pub(super) type Copies = BTreeMap<DescriptionId, OwnedFd>;

/// Device and inode.
pub(super) type File = (u64, u64);

/// Every open file of a table by its number, as the kernel has it; empty where that cannot be read, and where the
/// process runs and has just changed it. Who holds a description that may be closed meanwhile compares it again.
pub(super) fn open_files(pid: Pid) -> BTreeMap<i32, OpenFile> {
    let found = kernel::look(|kernel| {
        let thread = proc::representative(pid).map_or_else(Vec::new, |tid| vec![tid]);
        let task = kernel.tasks(&thread)?.into_iter().flatten().next();
        task.map_or_else(|| Ok(BTreeMap::new()), |task| kernel.open_files(task))
    });
    found.unwrap_or_else(|why| {
        log::debug!("process {pid}: {why}");
        BTreeMap::new()
    })
}

/// Where the kernel has what a descriptor of this process is open on.
pub(super) fn address(own: &OwnedFd) -> Option<u64> {
    kernel::look(|kernel| kernel.own_file(own.as_fd())).ok()
}

/// Where a description that has not been met belongs among those of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this place in the order of kcmp(2).
    At(usize),
    /// It has not been compared.
    Anywhere,
}

/// The descriptions of one file.
#[derive(Debug, Default)]
struct Alike {
    ids: Vec<DescriptionId>,
    /// In the order of kcmp(2).
    sorted: bool,
}

/// A file as it was met by a path.
#[derive(Debug)]
struct Met {
    link: Vec<u8>,
    /// When it is a regular file whose path leads to it.
    file: Option<(File, FileRef)>,
}

#[derive(Debug)]
pub(super) struct Known {
    /// By their addresses; none as soon as one has been met without.
    addresses: Option<HashMap<u64, DescriptionId>>,
    files: HashMap<File, Alike>,
    /// By the addresses of mount and name.
    paths: HashMap<(u64, u64), Met>,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            addresses: Some(HashMap::new()),
            files: HashMap::new(),
            paths: HashMap::new(),
        }
    }
}

impl Known {
    /// The description that `copy` is open on, or where it belongs.
    ///
    /// # Errors
    /// As kcmp(2).
    pub(super) fn find(
        &mut self,
        address: Option<u64>,
        file: File,
        copy: &OwnedFd,
        copies: &Copies,
    ) -> sys::Result<Result<DescriptionId, Place>> {
        if let (Some(all), Some(address)) = (&self.addresses, address) {
            return Ok(all.get(&address).copied().ok_or(Place::Anywhere));
        }
        let Some(alike) = self.files.get_mut(&file) else {
            return Ok(Err(Place::Anywhere));
        };
        alike.sort(copies)?;
        let found = search(&alike.ids, copies, copy.as_raw_fd())?;
        Ok(match found {
            Ok(at) => Ok(alike.ids[at]),
            Err(at) => Err(Place::At(at)),
        })
    }

    /// The description at an address.
    pub(super) fn at(&self, address: u64) -> Option<DescriptionId> {
        self.addresses.as_ref()?.get(&address).copied()
    }

    /// Whether all of them are known by their addresses.
    pub(super) fn by_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    /// Takes in a description that was not found.
    pub(super) fn add(
        &mut self,
        address: Option<u64>,
        file: File,
        place: Place,
        id: DescriptionId,
    ) {
        match (&mut self.addresses, address) {
            (Some(all), Some(address)) => {
                all.insert(address, id);
            }
            (all, _) => *all = None,
        }
        let alike = self.files.entry(file).or_default();
        match place {
            Place::At(at) => alike.ids.insert(at.min(alike.ids.len()), id),
            Place::Anywhere => {
                alike.sorted = alike.ids.is_empty();
                alike.ids.push(id);
            }
        }
    }

    /// Where `/proc/PID/fd/FD` leads, when that has been asked of the same path before.
    pub(super) fn link(&self, open: &OpenFile) -> Option<&[u8]> {
        self.paths.get(&open.path).map(|met| met.link.as_slice())
    }

    /// The file of the same path, when it was one with a path that led to it. Its size is as it was then.
    pub(super) fn file(&self, open: &OpenFile, file: File) -> Option<&FileRef> {
        let met = self.paths.get(&open.path)?.file.as_ref();
        met.filter(|(same, _)| *same == file)
            .map(|(_, reference)| reference)
    }

    /// Notes a path.
    pub(super) fn note(&mut self, open: &OpenFile, link: &[u8], file: Option<(File, &FileRef)>) {
        let met = self.paths.entry(open.path).or_insert_with(|| Met {
            link: link.to_vec(),
            file: None,
        });
        if let Some((file, reference)) = file {
            met.file.get_or_insert_with(|| (file, reference.clone()));
        }
    }
}

impl Alike {
    /// Puts them in the order of kcmp(2).
    fn sort(&mut self, copies: &Copies) -> sys::Result<()> {
        if self.sorted {
            return Ok(());
        }
        let mut sorted: Vec<DescriptionId> = Vec::new();
        for id in &self.ids {
            match search(&sorted, copies, number(copies, *id))? {
                Ok(_) => {}
                Err(at) => sorted.insert(at, *id),
            }
        }
        self.ids = sorted;
        self.sorted = true;
        Ok(())
    }
}

fn number(copies: &Copies, id: DescriptionId) -> i32 {
    copies.get(&id).map_or(-1, AsRawFd::as_raw_fd)
}

/// Binary search by the order that kcmp(2) defines: the place of the same description, or the one where it
/// belongs.
fn search(
    sorted: &[DescriptionId],
    copies: &Copies,
    wanted: i32,
) -> sys::Result<Result<usize, usize>> {
    let me = Tid(nix::unistd::getpid().as_raw());
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let other = number(copies, sorted[middle]);
        match process::kcmp(me, me, KcmpKind::File, other, wanted)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: File = (1, 2);

    /// Takes in several open files, each as if it were a new descriptor.
    fn ids(address: impl Fn(usize, &OwnedFd) -> Option<u64>) -> Vec<u32> {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (one, two) = (open(), open());
        let again = [&one, &two, &one].map(|fd| fd.try_clone().unwrap());
        let all = [one, two].into_iter().chain(again).chain([open()]);
        let (mut known, mut copies) = (Known::default(), Copies::new());
        let mut found = Vec::new();
        for (index, fd) in all.enumerate() {
            let address = address(index, &fd);
            let id = match known.find(address, FILE, &fd, &copies).unwrap() {
                Ok(id) => id,
                Err(place) => {
                    let id = DescriptionId(u32::try_from(copies.len()).unwrap());
                    known.add(address, FILE, place, id);
                    copies.insert(id, fd);
                    id
                }
            };
            found.push(id.0);
        }
        found
    }

    #[test]
    fn descriptions_are_told_apart_with_and_without_addresses() {
        let expected = [0, 1, 0, 1, 0, 2];
        assert_eq!(ids(|_, _| None), expected);
        assert_eq!(ids(|_, fd| super::address(fd)), expected);
        // From the fourth on there is none.
        let some = |index, fd: &OwnedFd| (index < 3).then(|| super::address(fd)).flatten();
        assert_eq!(ids(some), expected);
    }
}
