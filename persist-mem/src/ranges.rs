//! Sets of half-open ranges of physical addresses (or page frame numbers).
//!
//! A [`RangeSet`] is sorted, its ranges are not empty and do not touch: `[0x1000, 0x2000)` and
//! `[0x2000, 0x3000)` become `[0x1000, 0x3000)`. So two sets with the same members are equal.

use std::fmt;
use std::ops::Range;

/// A set of numbers as maximal runs in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    runs: Vec<Range<u64>>,
}

/// The part two ranges have in common; empty when there is none.
#[must_use]
pub fn overlap(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Start rounded up and end rounded down to multiples of `unit`; empty when nothing is left.
#[must_use]
pub fn shrink(range: &Range<u64>, unit: u64) -> Range<u64> {
    let start = range
        .start
        .checked_next_multiple_of(unit)
        .unwrap_or(range.end);
    let end = range.end - range.end % unit;
    start..end.max(start)
}

/// Start rounded down and end rounded up to multiples of `unit` (at the very top: to the last
/// number there is).
#[must_use]
pub fn grow(range: &Range<u64>, unit: u64) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(unit);
    range.start - range.start % unit..end.unwrap_or(u64::MAX)
}

impl RangeSet {
    /// The set of one range; empty if the range is.
    #[must_use]
    pub fn from_range(range: Range<u64>) -> RangeSet {
        [range].into_iter().collect()
    }

    /// The runs, ascending, neither empty nor touching.
    #[must_use]
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// Iterates over the runs.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.runs.iter()
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Number of members.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.runs.iter().map(|r| r.end - r.start).sum()
    }

    /// One past the largest member; 0 for the empty set.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(0, |r| r.end)
    }

    /// The run `number` is in.
    #[must_use]
    pub fn run_of(&self, number: u64) -> Option<&Range<u64>> {
        let at = self.runs.partition_point(|r| r.end <= number);
        self.runs.get(at).filter(|r| r.start <= number)
    }

    /// Whether `number` is a member.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.run_of(number).is_some()
    }

    /// Whether all of `range` is in the set. An empty range always is.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self
                .run_of(range.start)
                .is_some_and(|run| range.end <= run.end)
    }

    /// Whether any of `range` is in the set.
    #[must_use]
    pub fn touches(&self, range: &Range<u64>) -> bool {
        !range.is_empty()
            && self
                .from(range.start)
                .first()
                .is_some_and(|run| run.start < range.end)
    }

    /// The runs that end after `number`.
    fn from(&self, number: u64) -> &[Range<u64>] {
        let at = self.runs.partition_point(|r| r.end <= number);
        self.runs.get(at..).unwrap_or_default()
    }

    /// The members inside `range`, as runs.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let range = range.clone();
        self.from(range.start)
            .iter()
            .map(move |run| overlap(run, &range))
            .take_while(|part| !part.is_empty())
    }

    /// Number of members inside `range`.
    #[must_use]
    pub fn count_within(&self, range: &Range<u64>) -> u64 {
        self.within(range).map(|r| r.end - r.start).sum()
    }

    /// Members of both sets.
    #[must_use]
    pub fn intersect(&self, other: &RangeSet) -> RangeSet {
        self.iter().flat_map(|run| other.within(run)).collect()
    }

    /// Members of this set that are not in the other.
    #[must_use]
    pub fn minus(&self, other: &RangeSet) -> RangeSet {
        let mut runs = Vec::new();
        for run in &self.runs {
            let mut start = run.start;
            for hole in other.within(run) {
                if start < hole.start {
                    runs.push(start..hole.start);
                }
                start = hole.end;
            }
            if start < run.end {
                runs.push(start..run.end);
            }
        }
        RangeSet { runs }
    }

    /// Members of either set.
    #[must_use]
    pub fn union(&self, other: &RangeSet) -> RangeSet {
        self.iter().chain(other.iter()).cloned().collect()
    }

    /// The multiples of `unit` whose whole unit is in the set: each run shrunk.
    #[must_use]
    pub fn aligned(&self, unit: u64) -> RangeSet {
        self.iter().map(|run| shrink(run, unit)).collect()
    }

    /// All numbers multiplied by `unit` (page frames to addresses: each frame becomes its bytes).
    /// None when that overflows.
    #[must_use]
    pub fn scaled(&self, unit: u64) -> Option<RangeSet> {
        let scale = |r: &Range<u64>| Some(r.start.checked_mul(unit)?..r.end.checked_mul(unit)?);
        self.iter().map(scale).collect()
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    /// Takes ranges in any order, empty and overlapping ones too.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> RangeSet {
        let mut sorted: Vec<Range<u64>> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_unstable_by_key(|r| r.start);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for range in sorted {
            match runs.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => runs.push(range),
            }
        }
        RangeSet { runs }
    }
}

impl fmt::Display for RangeSet {
    /// `[0x1000, 0x2000) [0x5000, 0x6000)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.runs.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}[{:#x}, {:#x})", run.start, run.end)?;
        }
        if self.runs.is_empty() {
            write!(f, "nothing")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        ranges.iter().map(|r| r.0..r.1).collect()
    }

    #[test]
    fn normal_form() {
        let table: &[(&[(u64, u64)], &str)] = &[
            (&[], "nothing"),
            (&[(5, 5)], "nothing"),
            (&[(7, 5)], "nothing"),
            (&[(1, 2), (2, 3)], "[0x1, 0x3)"),
            (&[(4, 9), (1, 2), (5, 6)], "[0x1, 0x2) [0x4, 0x9)"),
            (&[(0, u64::MAX), (3, 4)], "[0x0, 0xffffffffffffffff)"),
        ];
        for (ranges, want) in table {
            assert_eq!(set(ranges).to_string(), *want, "{ranges:?}");
        }
    }

    #[test]
    fn rounding() {
        let table = [
            (0..0, 4, 0..0, 0..0),
            (1..9, 4, 4..8, 0..12),
            (4..8, 4, 4..8, 4..8),
            (5..7, 4, 8..8, 4..8),
            (
                u64::MAX - 1..u64::MAX,
                4,
                u64::MAX..u64::MAX,
                u64::MAX - 3..u64::MAX,
            ),
        ];
        for (range, unit, shrunk, grown) in table {
            assert_eq!(shrink(&range, unit), shrunk, "{range:?} shrunk to {unit}");
            assert_eq!(grow(&range, unit), grown, "{range:?} grown to {unit}");
        }
    }

    #[test]
    fn scaling_stops_at_the_end_of_numbers() {
        assert_eq!(set(&[(1, 3)]).scaled(4096), Some(set(&[(4096, 12288)])));
        assert_eq!(set(&[(1, u64::MAX)]).scaled(2), None);
    }

    /// Numbers the naive model looks at.
    const SPACE: u64 = 96;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..SPACE, 0..20_u64), 0..8).prop_map(|pairs| {
            let clip = |(start, len): (u64, u64)| start..(start + len).min(SPACE);
            pairs.into_iter().map(clip).collect()
        })
    }

    fn bits(ranges: &[Range<u64>]) -> Vec<bool> {
        (0..SPACE)
            .map(|n| ranges.iter().any(|r| r.contains(&n)))
            .collect()
    }

    /// The set has exactly the members `want` says, and is in normal form.
    fn check(set: &RangeSet, want: &[bool]) {
        assert_eq!(bits(set.runs()), want, "{set}");
        assert!(set.runs().iter().all(|r| r.start < r.end), "{set}");
        let apart = set.runs().windows(2).all(|w| w[0].end < w[1].start);
        assert!(apart, "{set}");
    }

    fn combine(a: &[bool], b: &[bool], f: fn(bool, bool) -> bool) -> Vec<bool> {
        a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_bits(a in ranges(), b in ranges(), probe in (0..SPACE, 0..SPACE)) {
            let (sa, sb): (RangeSet, RangeSet) =
                (a.iter().cloned().collect(), b.iter().cloned().collect());
            let (ba, bb) = (bits(&a), bits(&b));
            check(&sa, &ba);
            check(&sa.intersect(&sb), &combine(&ba, &bb, |x, y| x && y));
            check(&sa.minus(&sb), &combine(&ba, &bb, |x, y| x && !y));
            check(&sa.union(&sb), &combine(&ba, &bb, |x, y| x || y));
            let count = |bits: &[bool]| bits.iter().filter(|b| **b).count() as u64;
            prop_assert_eq!(sa.total(), count(&ba));
            let probe = probe.0.min(probe.1)..probe.0.max(probe.1);
            let part = &ba[probe.start as usize..probe.end as usize];
            prop_assert_eq!(sa.count_within(&probe), count(part));
            prop_assert_eq!(sa.covers(&probe), part.iter().all(|b| *b));
            prop_assert_eq!(sa.touches(&probe), part.iter().any(|b| *b));
            prop_assert_eq!(sa.contains(probe.start), ba[probe.start as usize]);
            let last = ba.iter().rposition(|b| *b).map_or(0, |i| i as u64 + 1);
            prop_assert_eq!(sa.end(), last);
        }

        #[test]
        fn alignment_agrees_with_bits(a in ranges(), unit in 1..9_u64) {
            let sa: RangeSet = a.iter().cloned().collect();
            let ba = bits(&a);
            let whole = |n: u64| {
                let start = n - n % unit;
                (start..start + unit).all(|m| ba.get(m as usize).copied().unwrap_or(false))
            };
            check(&sa.aligned(unit), &(0..SPACE).map(whole).collect::<Vec<_>>());
        }
    }
}
