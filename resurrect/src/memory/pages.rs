//! Filling in saved pages.

use crate::ResurrectError;
use persist_mem::manifest::Extent;
use persist_mem::store::PageStore;
use sys::vm::{Source, write_process};
use sys::{PAGE_SIZE_U64, Pid};

/// Pages copied in one piece: a call moves less than 2 GiB.
const PIECE: u64 = 8192;
/// Pieces copied in one call.
const AT_ONCE: usize = 32;

/// Copies every extent's pages into the process with the id `host`.
pub(super) fn fill(
    pid: Pid,
    host: Pid,
    store: &dyn PageStore,
    extents: &[Extent],
) -> Result<(), ResurrectError> {
    let mut pieces: Vec<(Source, u64)> = Vec::new();
    let copy = |pieces: &mut Vec<(Source, u64)>| {
        let done = write_process(host, pieces);
        pieces.clear();
        done.map_err(ResurrectError::call(pid, "copying its pages"))
    };
    for extent in extents {
        let mut done = 0;
        while done < extent.pages {
            let pages = PIECE.min(extent.pages - done);
            let frame = extent.frame + done;
            let source = store.source(frame, pages);
            let source = source.ok_or(ResurrectError::NoPages { pid, frame, pages })?;
            pieces.push((source, extent.va + done * PAGE_SIZE_U64));
            if pieces.len() == AT_ONCE {
                copy(&mut pieces)?;
            }
            done += pages;
        }
    }
    copy(&mut pieces)
}
