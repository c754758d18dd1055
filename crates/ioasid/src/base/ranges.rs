//! Sets of IOVA ranges, for what is allowed and what is reserved.

use crate::base::types::IovaRange;

/// Ranges in ascending order that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<IovaRange>);

impl Ranges {
    /// The set that holds what any of `ranges` holds.
    #[must_use]
    pub fn union(ranges: impl IntoIterator<Item = IovaRange>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<IovaRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if before.last == u64::MAX || range.start <= before.last + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// The set that holds what this one does not.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut holes = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0);
        for range in &self.0 {
            if let Some(start) = next.filter(|&start| start < range.start) {
                holes.push(IovaRange { start, last: range.start - 1 });
            }
            next = range.last.checked_add(1);
        }
        holes.extend(next.map(|start| IovaRange { start, last: u64::MAX }));
        Self(holes)
    }

    /// The set that holds what both do.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let outside = [self.complement(), other.complement()];
        Self::union(outside.iter().flat_map(Self::iter)).complement()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the ranges holds all of `range`.
    #[must_use]
    pub fn contains(&self, range: &IovaRange) -> bool {
        self.0.iter().any(|candidate| candidate.contains(range))
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange { start, last }
    }

    #[test]
    fn the_edges_of_the_space_are_kept() {
        let low = Ranges::union([range(0, 9)]);
        assert_eq!(low.complement().0, [range(10, u64::MAX)]);
        let high = Ranges::union([range(10, u64::MAX), range(u64::MAX, u64::MAX)]);
        assert_eq!(high.complement().0, [range(0, 9)]);
        assert_eq!(Ranges::default().complement().0, [IovaRange::ALL]);
        assert_eq!(Ranges::union([IovaRange::ALL]).complement().0, []);
    }

    proptest! {
        #[test]
        fn intersection_agrees_with_membership(
            one in prop::collection::vec((0..60u64, 0..9u64), 0..6),
            other in prop::collection::vec((0..60u64, 0..9u64), 0..6),
        ) {
            let set = |ranges: Vec<(u64, u64)>| {
                Ranges::union(ranges.into_iter().map(|(start, more)| range(start, start + more)))
            };
            let (one, other) = (set(one), set(other));
            let both = one.intersection(&other);
            for at in 0..80 {
                let point = range(at, at);
                prop_assert_eq!(both.contains(&point), one.contains(&point) && other.contains(&point));
            }
            prop_assert_eq!(both.is_empty(), both.iter().next().is_none());
        }

        #[test]
        fn union_and_complement_agree_with_membership(ranges in prop::collection::vec((0..60u64, 0..9u64), 0..9)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, more)| range(start, start + more)).collect();
            let set = Ranges::union(ranges.clone());
            for at in 0..80 {
                let point = range(at, at);
                let inside = ranges.iter().any(|r| r.contains(&point));
                prop_assert_eq!(set.contains(&point), inside);
                prop_assert_eq!(set.complement().contains(&point), !inside);
            }
            prop_assert_eq!(set.complement().complement(), set);
        }
    }
}
