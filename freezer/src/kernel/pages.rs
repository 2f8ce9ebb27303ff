//! Where the kernel keeps a page that it names by its `struct page`.
//!
//! All memory is mapped in one place, and its `struct page`s are one array in another; both places are chosen
//! at boot on borders of 1 GiB (arch/x86/mm/kaslr.c). They are found with a page whose number and contents are
//! known, and what they are is proved by what lies there.

use super::{Kernel, Unreadable};
use std::os::fd::AsFd;
use sys::PAGE_SIZE;
use sys::known_page::KnownPage;

const WRONG: Unreadable = Unreadable::Inconsistent("the map of all memory");
const BORDER: u64 = 1 << 30;
/// Borders below an address that are tried: a page of up to 4 TiB of memory.
const TRIED: u64 = 4096;

/// Both places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Where physical address 0 is mapped.
    memory: u64,
    /// `struct page` of page 0.
    pages: u64,
    /// Bytes of a `struct page`.
    size: u64,
}

impl Places {
    /// `page` is any `struct page`.
    fn find(kernel: &mut Kernel, page: u64) -> Result<Places, Unreadable> {
        let field = |structure, path| Ok(kernel.btf.field(structure, path)?.offset);
        let (mm, pgd) = (field("task_struct", "mm")?, field("mm_struct", "pgd")?);
        let mapping = field("file", "f_mapping")?;
        // The two lie on each other.
        let of_page = field("page", "mapping").or_else(|_| field("folio", "mapping"))?;
        let size = kernel.btf.size_of("page")?;
        let known = KnownPage::make().map_err(Unreadable::NotAllowed)?;
        // The tables of this process's pages lie in memory, so they are mapped with it.
        let own = kernel.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let mm = kernel.word(own.wrapping_add(mm), "the own memory")?;
        let table = kernel.word(mm.wrapping_add(pgd), "the own memory")?;
        let (at, contents) = (known.number * PAGE_SIZE as u64, known.contents.as_slice());
        let memory = first_border(kernel, table, at, contents)?;
        let file = kernel.own_file(known.file.as_fd())?;
        let its = kernel.word(file.wrapping_add(mapping), "a file in memory")?;
        let at = known.number * size + of_page;
        let pages = first_border(kernel, page, at, &its.to_le_bytes())?;
        Ok(Places {
            memory,
            pages,
            size,
        })
    }
}

/// The border below `address` with this behind it at `offset`.
fn first_border(
    kernel: &mut Kernel,
    address: u64,
    offset: u64,
    contents: &[u8],
) -> Result<u64, Unreadable> {
    let first = address & !(BORDER - 1);
    let borders: Vec<u64> = (0..TRIED).map(|n| first.wrapping_sub(n * BORDER)).collect();
    for some in borders.chunks(64) {
        let requests: Vec<_> = some
            .iter()
            .map(|border| (border.wrapping_add(offset), contents.len()))
            .collect();
        let found = kernel.read(&requests)?;
        let right = found
            .iter()
            .position(|bytes| bytes.as_deref() == Some(contents));
        if let Some(border) = right.and_then(|at| some.get(at)) {
            return Ok(*border);
        }
    }
    Err(WRONG)
}

impl Kernel {
    /// Where the contents of a page are.
    pub(crate) fn contents_of_page(&mut self, page: u64) -> Result<u64, Unreadable> {
        let places = match self.places {
            Some(places) => places,
            None => Places::find(self, page)?,
        };
        self.places = Some(places);
        let number = page.checked_sub(places.pages).ok_or(WRONG)?;
        if number % places.size != 0 {
            return Err(WRONG);
        }
        let at = number / places.size * PAGE_SIZE as u64;
        Ok(places.memory.wrapping_add(at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;

    #[test]
    fn a_page_is_found_by_what_names_it() {
        let found = look(|kernel| {
            // Any address in the array will do to begin with; this one comes from the page cache of a file.
            let known = KnownPage::make().map_err(Unreadable::NotAllowed)?;
            let file = kernel.own_file(known.file.as_fd())?;
            let field = |structure, path| Ok(kernel.btf.field(structure, path)?.offset);
            let (mapping, head) = (
                field("file", "f_mapping")?,
                field("address_space", "i_pages.xa_head")?,
            );
            let mapping = kernel.word(file + mapping, "a file")?;
            let page = kernel.word(mapping + head, "a file's pages")?;
            let at = kernel.contents_of_page(page)?;
            let bytes = kernel.read(&[(at, known.contents.len())])?.pop().flatten();
            Ok((bytes, known.contents.clone()))
        });
        if let Some((bytes, contents)) = readable(found) {
            assert_eq!(bytes, Some(contents));
        }
    }
}
