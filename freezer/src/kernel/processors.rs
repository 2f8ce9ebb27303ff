//! Counters that every processor has one of (`__percpu`, include/linux/percpu-defs.h).

use super::{Kernel, Unreadable, half};

impl Kernel {
    /// Four bytes of each processor that there may be.
    pub(crate) fn of_processors(&mut self, place: u64) -> Result<Vec<u32>, Unreadable> {
        const SYMBOL: &str = "__per_cpu_offset";
        let offsets = self
            .symbol(SYMBOL)
            .ok_or_else(|| Unreadable::NoField(SYMBOL.into()))?;
        let places: Vec<u64> = possible()
            .map(|cpu| offsets.wrapping_add(cpu * 8))
            .collect();
        let offsets = self.words(&places)?;
        let places = offsets
            .iter()
            .flatten()
            .map(|o| (place.wrapping_add(*o), 4));
        let places: Vec<_> = places.collect();
        let counts = self.read(&places)?;
        let counts: Option<Vec<u32>> = counts.iter().map(|c| half(c.as_ref()?, 0)).collect();
        counts.ok_or(Unreadable::Inconsistent("a counter of the processors"))
    }
}

/// A counter (`struct percpu_counter`) is added to as a whole from 1024 on (lib/percpu_counter.c,
/// `compute_batch_value`).
pub(super) fn few() -> bool {
    possible().end < 512
}

/// The numbers of the processors that there may be.
fn possible() -> core::ops::Range<u64> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|last| last.parse().ok());
    0..last.map_or(0, |last: u64| last.min(8191) + 1)
}
