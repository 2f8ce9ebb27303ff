//! Stores of saved pages.

use sys::vm::Source;

/// Where the pages that extents name are found.
pub trait PageStore: Sync {
    /// Where `pages` pages from page `frame` on lie in this process's memory; None when the store does
    /// not have them.
    fn source(&self, frame: u64, pages: u64) -> Option<Source>;
}
