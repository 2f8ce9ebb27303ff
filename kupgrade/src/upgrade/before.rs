//! The host as it was before its worker began, for the command to put back when the worker was killed: nobody else is
//! there then to take back what it did.

use super::SYS;
use super::quiet::Quiet;
use persist_mem::blocks::MemoryBlocks;
use persist_mem::ranges::RangeSet;
use std::path::Path;

/// Memory blocks that are in use, and settings.
pub(super) struct Before {
    blocks: Option<(MemoryBlocks, RangeSet)>,
    settings: Quiet,
}

impl Before {
    /// Takes note of them. What cannot be read now is no different later: the worker says so.
    pub(super) fn note() -> Before {
        let blocks = MemoryBlocks::open(Path::new(SYS)).ok();
        Before {
            blocks: blocks.map(|blocks| {
                let online = blocks.online();
                (blocks, online)
            }),
            settings: Quiet::noted(),
        }
    }

    /// The worker has taken back what it did, or it is another kernel's host.
    pub(super) fn forget(self) {
        self.settings.forget();
    }

    /// Unloads the kernel that was staged, and puts the rest back.
    pub(super) fn put_back(self) {
        if let Err(errno) = sys::kexec::unload() {
            log::warn!("a loaded kernel may stay loaded: {errno}");
        }
        if let Some((blocks, online)) = &self.blocks {
            match blocks.restore(online) {
                Ok(again) if again.is_empty() => {}
                Ok(again) => log::info!("memory blocks in use again: {again:?}"),
                Err(error) => log::error!("memory blocks stay out of use: {error}"),
            }
        }
    }
}
