//! A port's cache of where the upper levels of its page tables lead, so that most misses read one entry only.
//!
//! Direct-mapped by the span of one table of the lowest level. Tagged like the IOTLB, with the domain.

use crate::base::types::IovaRange;

/// Tables of the lowest level that are known at a time: 512 MiB of pages of 4 KiB.
const ENTRIES: usize = 256;

/// What leads to tables, `T`, of which each spans 2^`shift` bytes of IOVA.
pub(super) struct UpperCache<T> {
    /// Tag (domain and first IOVA) and where it leads; the tag is zero for nothing.
    entries: Box<[(u64, Option<T>)]>,
    shift: u32,
}

impl<T: Copy> UpperCache<T> {
    pub(super) fn new(shift: u32) -> Self {
        Self { entries: vec![(0, None); ENTRIES].into_boxed_slice(), shift }
    }

    #[inline]
    fn tag(&self, domain: u64, iova: u64) -> u64 {
        iova & (!0 << self.shift) | domain
    }

    #[inline]
    fn slot(&self, iova: u64) -> usize {
        let span = iova >> self.shift;
        (span ^ span >> ENTRIES.ilog2()) as usize % ENTRIES
    }

    #[inline]
    pub(super) fn find(&self, domain: u64, iova: u64) -> Option<T> {
        let (tag, table) = self.entries[self.slot(iova)];
        if tag == self.tag(domain, iova) { table } else { None }
    }

    pub(super) fn insert(&mut self, domain: u64, iova: u64, table: T) {
        let slot = self.slot(iova);
        self.entries[slot] = (self.tag(domain, iova), Some(table));
    }

    /// Forgets the tables of `domain` that span an address in `range`.
    pub(super) fn invalidate(&mut self, domain: u64, range: IovaRange) {
        let spans = (range.start >> self.shift)..=(range.last >> self.shift);
        let domain_bits = !(!0 << self.shift);
        let forget = |(tag, table): &mut (u64, Option<T>)| {
            if *tag & domain_bits == domain && spans.contains(&(*tag >> self.shift)) {
                *table = None;
            }
        };
        if range.len_minus_one() >> self.shift < ENTRIES as u64 / 4 {
            for span in spans.clone() {
                let slot = self.slot(span << self.shift);
                forget(&mut self.entries[slot]);
            }
        } else {
            self.entries.iter_mut().for_each(forget);
        }
    }

    /// Forgets everything.
    pub(super) fn flush(&mut self) {
        self.entries.fill((0, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFT: u32 = 21;

    #[test]
    fn tables_are_found_within_their_span_until_a_range_in_it_is_forgotten() {
        let mut cache = UpperCache::new(SHIFT);
        let tables = ENTRIES as u64;
        for length in [0x1000, 2 << SHIFT, 10 << SHIFT, tables << SHIFT, 1 << 50] {
            (0..tables).for_each(|n| cache.insert(1, (n << SHIFT) + 5, n));
            assert!((0..tables).all(|n| cache.find(1, (n << SHIFT) + (n << 12)) == Some(n)));
            assert_eq!(cache.find(2, 0), None, "another domain");
            let range = IovaRange::new((7 << SHIFT) + 0x1000, length).unwrap();
            cache.invalidate(2, range);
            assert!((0..tables).all(|n| cache.find(1, n << SHIFT).is_some()), "another domain");
            cache.invalidate(1, range);
            for n in 0..tables {
                let span = IovaRange::new(n << SHIFT, 1 << SHIFT).unwrap();
                assert_eq!(cache.find(1, n << SHIFT).is_none(), span.overlaps(&range), "table {n}, {range}");
            }
        }
        cache.flush();
        assert!((0..tables).all(|n| cache.find(1, n << SHIFT).is_none()));
    }
}
