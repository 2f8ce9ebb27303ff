//! What is registered with a ring of io_uring: files, buffers, an eventfd. How the kernel keeps the first two has
//! changed with Linux 6.13 (`struct io_rsrc_data`).

use super::uring::RING;
use super::{Kernel, Unreadable, half, word};

const WRONG: Unreadable = Unreadable::Inconsistent("what is registered with a ring of io_uring");
/// Most files (io_uring/rsrc.h), and more than there may be buffers.
const MOST: u64 = 1 << 20;
/// An address of a `struct file` has flags in its last bits.
const FLAGS: u64 = 7;
/// Tags in a page of them.
const TAGS_PER_PAGE: u64 = 512;

/// What is registered with a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registered {
    /// `struct file` of each file, 0 for a free place.
    pub(crate) files: Vec<u64>,
    /// Where in the memory of who registered it each buffer is and how long, None for a free place.
    pub(crate) buffers: Vec<Option<(u64, u64)>>,
    /// Tags of files and of buffers, by their places.
    pub(crate) tags: [Vec<u64>; 2],
    /// The places that files are put into, where these are not all.
    pub(crate) places: Option<(u32, u32)>,
    /// `struct eventfd_ctx` of an eventfd, and whether it is told of what comes later only
    /// (`IORING_REGISTER_EVENTFD_ASYNC`).
    pub(crate) eventfd: Option<(u64, bool)>,
    /// Something is not as it is by itself: buffers of the kernel's.
    pub(crate) special: Option<&'static str>,
}

impl Kernel {
    pub(super) fn registered(&mut self, ring: u64) -> Result<Registered, Unreadable> {
        let mut found = Registered {
            eventfd: self.registered_eventfd(ring)?,
            ..Registered::default()
        };
        if self.btf.field(RING, "file_table.data.nr").is_ok() {
            self.by_nodes(ring, &mut found)?;
        } else {
            self.by_arrays(ring, &mut found)?;
        }
        let files = found.files.len() as u64;
        let range = ["file_alloc_start", "file_alloc_end"];
        let range = [
            self.number_in(ring, RING, range[0])?,
            self.number_in(ring, RING, range[1])?,
        ];
        if files > 0 && range != [0, files] {
            let [first, end] = range.map(|place| u32::try_from(place).unwrap_or(0));
            found.places = Some((first, end.saturating_sub(first)));
        }
        for tags in &mut found.tags {
            if tags.iter().all(|tag| *tag == 0) {
                tags.clear();
            }
        }
        Ok(found)
    }

    /// What a kind of file has of its own.
    pub(crate) fn private_data(&mut self, file: u64) -> Result<u64, Unreadable> {
        self.number_in(file, "file", "private_data")
    }

    /// Whether an eventfd gives 1 for every read.
    pub(crate) fn is_semaphore(&mut self, file: u64) -> Result<bool, Unreadable> {
        const EFD_SEMAPHORE: u64 = 1;
        let context = self.private_data(file)?;
        let flags = self.number_in(context, "eventfd_ctx", "flags")?;
        Ok(flags & EFD_SEMAPHORE != 0)
    }

    /// The counter of an eventfd.
    pub(crate) fn event_count(&mut self, file: u64) -> Result<u64, Unreadable> {
        let context = self.private_data(file)?;
        self.number_in(context, "eventfd_ctx", "count")
    }

    fn number_in(&mut self, at: u64, structure: &str, path: &str) -> Result<u64, Unreadable> {
        let field = self.btf.field(structure, path)?;
        let len = field.size.min(8) as usize;
        let read = self.read(&[(at.wrapping_add(field.offset), len)])?;
        let mut bytes = read.into_iter().flatten().next().ok_or(WRONG)?;
        bytes.resize(8, 0);
        word(&bytes, 0).ok_or(WRONG)
    }

    fn registered_eventfd(&mut self, ring: u64) -> Result<Option<(u64, bool)>, Unreadable> {
        const OF: &str = "io_ev_fd";
        let at = self.number_in(ring, RING, "io_ev_fd")?;
        if at == 0 {
            return Ok(None);
        }
        let context = self.number_in(at, OF, "cq_ev_fd")?;
        let later = match self.btf.flag(OF, "eventfd_async") {
            Ok((byte, bit)) => {
                let read = self.read(&[(at.wrapping_add(byte), 1)])?.pop().flatten();
                read.ok_or(WRONG)?.first().is_some_and(|it| it & bit != 0)
            }
            Err(_) => self.number_in(at, OF, "eventfd_async")? != 0,
        };
        Ok(Some((context, later)))
    }

    /// Words that follow each other.
    fn many(&mut self, first: u64, count: u64) -> Result<Vec<u64>, Unreadable> {
        if count > MOST {
            return Err(WRONG);
        }
        let places: Vec<u64> = (0..count).map(|n| first.wrapping_add(n * 8)).collect();
        let words: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        words.ok_or(WRONG)
    }

    /// Before Linux 6.13.
    fn by_arrays(&mut self, ring: u64, found: &mut Registered) -> Result<(), Unreadable> {
        let count = self.number_in(ring, RING, "nr_user_files")?;
        if count > 0 {
            let files = self.number_in(ring, RING, "file_table.files")?;
            let files = self.many(files, count)?;
            found.files = files.into_iter().map(|file| file & !FLAGS).collect();
            found.tags[0] = self.tags(ring, "file_data", count)?;
        }
        let count = self.number_in(ring, RING, "nr_user_bufs")?;
        if count > 0 {
            let buffers = self.number_in(ring, RING, "user_bufs")?;
            for buffer in self.many(buffers, count)? {
                let one = self.mapped_buffer(buffer)?;
                found.buffers.push(one);
            }
            found.tags[1] = self.tags(ring, "buf_data", count)?;
        }
        Ok(())
    }

    fn tags(&mut self, ring: u64, data: &str, count: u64) -> Result<Vec<u64>, Unreadable> {
        let mut found = Vec::new();
        let data = self.number_in(ring, RING, data)?;
        let pages = self.number_in(data, "io_rsrc_data", "tags")?;
        for page in 0..count.div_ceil(TAGS_PER_PAGE) {
            let at = self.word(pages.wrapping_add(page * 8), "tags")?;
            found.extend(self.many(at, (count - page * TAGS_PER_PAGE).min(TAGS_PER_PAGE))?);
        }
        Ok(found)
    }

    fn by_nodes(&mut self, ring: u64, found: &mut Registered) -> Result<(), Unreadable> {
        const NODE: &str = "io_rsrc_node";
        for (count, nodes, are_files) in [
            ("file_table.data.nr", "file_table.data.nodes", true),
            ("buf_table.nr", "buf_table.nodes", false),
        ] {
            let count = self.number_in(ring, RING, count)?;
            if count == 0 {
                continue;
            }
            let nodes = self.number_in(ring, RING, nodes)?;
            for node in self.many(nodes, count)? {
                let inside = match node {
                    0 => 0,
                    node if are_files => self.number_in(node, NODE, "file_ptr")? & !FLAGS,
                    node => self.number_in(node, NODE, "buf")?,
                };
                let tag = match node {
                    0 => 0,
                    node => self.number_in(node, NODE, "tag")?,
                };
                found.tags[usize::from(!are_files)].push(tag);
                match are_files {
                    true => found.files.push(inside),
                    false if inside == 0 => found.buffers.push(None),
                    false => {
                        let one = self.mapped_buffer(inside)?;
                        found.buffers.push(one);
                    }
                }
            }
        }
        if found.buffers.iter().flatten().any(|(at, _)| *at == 0) {
            found.special = Some("buffers of the kernel");
        }
        Ok(())
    }

    /// `struct io_mapped_ubuf`
    fn mapped_buffer(&mut self, at: u64) -> Result<Option<(u64, u64)>, Unreadable> {
        const OF: &str = "io_mapped_ubuf";
        let size = self.btf.size_of(OF)? as usize;
        let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
        let start = word(&bytes, self.btf.field(OF, "ubuf")?.offset).ok_or(WRONG)?;
        if let Ok(end) = self.btf.field(OF, "ubuf_end") {
            let end = word(&bytes, end.offset).ok_or(WRONG)?;
            // A free place ends before it begins.
            return Ok(end.checked_sub(start).map(|len| (start, len)));
        }
        if start == u64::MAX {
            // A free place of the kernels after that.
            return Ok(None);
        }
        let len = self.btf.field(OF, "len")?;
        let len = match len.size {
            8 => word(&bytes, len.offset).ok_or(WRONG)?,
            _ => half(&bytes, len.offset).ok_or(WRONG)?.into(),
        };
        Ok(Some((start, len)))
    }
}
