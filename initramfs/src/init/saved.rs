//! What the old kernel left behind.

use crate::early::cmdline::CommandLine;
use persist_mem::format::FormatError;
use persist_mem::manifest::{Manifest, Upgrade};
use persist_mem::physmem::{PhysMem, PhysMemError};
use persist_mem::ranges::RangeSet;
use persist_mem::superblock::{CMDLINE_KEY, Superblock, SuperblockError};

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    #[error("there is no manifest: the command line names none ({CMDLINE_KEY}=)")]
    NotNamed,
    #[error("there is no manifest: {CMDLINE_KEY}={0} is no address")]
    BadAddress(String),
    #[error(transparent)]
    Memory(#[from] PhysMemError),
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("the manifest is that of a checkpoint, not of an upgrade")]
    NoUpgrade,
}

/// A checked manifest and where it lies.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) superblock: Superblock,
    pub(crate) manifest: Manifest,
    pub(crate) upgrade: Upgrade,
}

impl Saved {
    /// Reads what the command line points to.
    pub(crate) fn find(line: &CommandLine) -> Result<Saved, SavedError> {
        let text = line.get(CMDLINE_KEY).ok_or(SavedError::NotNamed)?;
        let digits = text.trim_start_matches("0x");
        let address =
            u64::from_str_radix(digits, 16).map_err(|_| SavedError::BadAddress(text.to_owned()))?;
        let memory = PhysMem::open()?;
        let superblock = Superblock::read(&memory, address)?;
        let mut manifest = Manifest::from_bytes(&superblock.read_body(&memory)?)?;
        let upgrade = manifest.upgrade.take().ok_or(SavedError::NoUpgrade)?;
        Ok(Saved {
            superblock,
            manifest,
            upgrade: *upgrade,
        })
    }

    /// Physical bytes that are still needed: carried pages and the manifest.
    pub(crate) fn needed(&self) -> RangeSet {
        self.upgrade.memory.kept().union(&self.superblock.ranges())
    }

    /// Time stamp counter ticks per second.
    pub(crate) fn tsc_hz(&self) -> u64 {
        self.upgrade.tsc_khz.saturating_mul(1000)
    }
}
