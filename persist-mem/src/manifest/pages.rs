//! What the file of pages must hold.

use serde::{Deserialize, Serialize};

/// Check sums of the pages beside an image of `kupgrade checkpoint`, run by run: pages that were damaged or cut
/// off on their disk are found before anything is built of them.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PageSums {
    /// Pages in the file.
    pub pages: u64,
    /// Pages of a run; the last one may have fewer.
    pub run: u32,
    /// CRC-32 of each run.
    pub crcs: Vec<u32>,
}
