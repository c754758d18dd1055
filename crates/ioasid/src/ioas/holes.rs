//! Where a search for a free range begins, so that each does not pass all areas that the one before it passed.
//!
//! Everything below some address was found to be without a hole for a request. A search that wants no less, aligned no
//! less, need not look there either, until something there is unmapped that leaves a hole large enough.

use crate::base::types::IovaRange;

/// What a search is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// Bytes.
    pub(super) length: u64,
    /// What the range is aligned to: a power of two.
    pub(super) alignment: u64,
    /// Where in its page it begins.
    pub(super) offset: u64,
}

impl Want {
    /// The lowest range like this from `address` on.
    pub(super) fn first_at(&self, address: u64) -> Option<IovaRange> {
        let page = address.saturating_sub(self.offset).checked_next_multiple_of(self.alignment)?;
        IovaRange::new(page.checked_add(self.offset)?, self.length)
    }

    /// Whether a hole for this would be one for `other`, too.
    fn implies(&self, other: &Self) -> bool {
        self.length >= other.length && self.alignment >= other.alignment && self.offset == other.offset
    }

    fn order(&self) -> u32 {
        self.length.ilog2()
    }
}

/// What a search found out.
#[derive(Debug, Clone, Copy)]
struct Searched {
    want: Want,
    /// There is nothing for it below this address.
    from: u64,
}

/// The last search for each order of lengths.
#[derive(Debug, Default)]
pub(super) struct Holes(Vec<Searched>);

impl Holes {
    /// The lowest address where there may be something for `want`.
    pub(super) fn search_from(&self, want: &Want) -> u64 {
        let known = self.0.iter().filter(|searched| want.implies(&searched.want));
        known.map(|searched| searched.from).max().unwrap_or(0)
    }

    /// There is nothing for `want` below `from`.
    pub(super) fn searched(&mut self, want: Want, from: u64) {
        let searched = Searched { want, from };
        match self.0.iter_mut().find(|other| other.want.order() == want.order()) {
            Some(other) => *other = searched,
            None => self.0.push(searched),
        }
    }

    /// Whether anything was found out.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `hole`, which is as large as it can be, became free.
    pub(super) fn freed(&mut self, hole: IovaRange) {
        for Searched { want, from } in &mut self.0 {
            if hole.len_minus_one() >= want.length - 1 {
                *from = (*from).min(hole.start);
            }
        }
    }

    /// Other addresses than before may be had.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Want = Want { length: 4096, alignment: 4096, offset: 0 };

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange { start, last }
    }

    #[test]
    fn a_candidate_keeps_its_place_in_the_page() {
        let want = Want { length: 10, alignment: 4096, offset: 0x123 };
        assert_eq!(want.first_at(0), Some(range(0x123, 0x12c)));
        assert_eq!(want.first_at(0x123), Some(range(0x123, 0x12c)));
        assert_eq!(want.first_at(0x124), Some(range(0x1123, 0x112c)));
        assert_eq!(want.first_at(u64::MAX - 5), None);
    }

    #[test]
    fn what_was_found_holds_for_those_who_want_no_less() {
        let mut holes = Holes::default();
        holes.searched(PAGE, 0x8000);
        assert_eq!(holes.search_from(&PAGE), 0x8000);
        assert_eq!(holes.search_from(&Want { length: 1 << 20, alignment: 1 << 20, offset: 0 }), 0x8000);
        assert_eq!(holes.search_from(&Want { length: 4095, ..PAGE }), 0);
        assert_eq!(holes.search_from(&Want { alignment: 512, ..PAGE }), 0);
        assert_eq!(holes.search_from(&Want { offset: 8, ..PAGE }), 0);
    }

    #[test]
    fn only_a_hole_that_is_large_enough_is_looked_at_again() {
        let mut holes = Holes::default();
        holes.searched(PAGE, 0x8000);
        holes.searched(Want { length: 0x4000, ..PAGE }, 0x9000);
        holes.freed(range(0x2000, 0x3fff));
        assert_eq!(holes.search_from(&PAGE), 0x2000);
        assert_eq!(holes.search_from(&Want { length: 0x4000, ..PAGE }), 0x9000);
        holes.freed(range(0x1000, 0x4fff));
        assert_eq!(holes.search_from(&Want { length: 0x4000, ..PAGE }), 0x1000);
        holes.forget();
        assert_eq!(holes.search_from(&PAGE), 0);
    }
}
