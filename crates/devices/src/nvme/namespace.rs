//! A namespace: blocks, and what a host has made of them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::pool::Extent;
use super::reservation::Reservation;
use super::spec::status::Status;

/// Bytes of a block's metadata, where there is some.
pub(super) const METADATA: u64 = 8;
/// Metadata begins with a page.
const PAGE: u64 = 4096;

/// What blocks are: a format of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// log2 of the bytes of a block.
    pub(super) shift: u32,
    pub(super) has_metadata: bool,
}

impl Format {
    const fn new(shift: u32, has_metadata: bool) -> Self {
        Self { shift, has_metadata }
    }

    /// Bytes that so many blocks take; `None` if that is no number.
    pub(super) fn bytes(self, count: u64) -> Option<u64> {
        let data = count.checked_mul(1 << self.shift)?;
        if !self.has_metadata {
            return Some(data);
        }
        data.checked_next_multiple_of(PAGE)?.checked_add(count.checked_mul(METADATA)?)
    }

    /// How many blocks there are in so many bytes.
    pub(super) fn blocks_in(self, length: u64) -> u64 {
        let each = (1 << self.shift) + if self.has_metadata { METADATA } else { 0 };
        let mut count = length / each;
        // The page that metadata begins with may be missing.
        while count > 0 && self.bytes(count).is_none_or(|bytes| bytes > length) {
            count -= 1;
        }
        count
    }
}

/// By number. Those with metadata are there if protection information was asked for.
pub(super) const FORMATS: [Format; 4] =
    [Format::new(9, false), Format::new(12, false), Format::new(9, true), Format::new(12, true)];
/// How many there are without metadata.
pub(super) const PLAIN_FORMATS: usize = 2;

/// What metadata is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// In the host's data, each block's follows it; otherwise all of it is somewhere else.
    pub(super) extended: bool,
    /// It is protection information of this type, 1 to 3; 0 if it is the host's alone.
    pub(super) protection: u8,
}

/// A feature of it that forbids writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WriteProtection {
    #[default]
    None,
    UntilChanged,
    UntilPowerCycle,
    ForGood,
}

impl WriteProtection {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::None, Self::UntilChanged, Self::UntilPowerCycle, Self::ForGood].get(number as usize).copied()
    }
}

/// A namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) extent: Extent,
    pub(super) format: Format,
    /// What its metadata is, if the format has some.
    pub(super) metadata: Metadata,
    /// Blocks.
    pub(super) count: u64,
    pub(super) attached: bool,
    pub(super) protection: WriteProtection,
    pub(super) reservation: Reservation,
    /// Error Recovery: a feature that it keeps.
    pub(super) error_recovery: u32,
    /// Blocks that Write Uncorrectable was for.
    uncorrectable: RangeSet,
    /// Which it is of all that there were: names that are made of it are not given again.
    pub(super) number: u64,
}

impl Namespace {
    /// As many blocks as there is room for, attached.
    pub(super) fn new(extent: Extent, format: Format, metadata: Metadata, number: u64) -> Self {
        Self {
            extent,
            format,
            metadata,
            count: format.blocks_in(extent.length),
            attached: true,
            protection: WriteProtection::None,
            reservation: Reservation::default(),
            error_recovery: 0,
            uncorrectable: RangeSet::default(),
            number,
        }
    }

    pub(super) fn block(&self) -> u64 {
        1 << self.format.shift
    }

    /// The format's number, and in bit 4, whether metadata is in the host's data.
    pub(super) fn format_number(&self) -> u8 {
        let number = FORMATS.iter().position(|format| *format == self.format).unwrap_or_default();
        number as u8 | u8::from(self.metadata.extended) << 4
    }

    /// Checks that blocks are there.
    pub(super) fn check_range(&self, first: u64, count: u64) -> Result<(), Status> {
        let is_there = first.checked_add(count).is_some_and(|end| end <= self.count);
        if is_there { Ok(()) } else { Err(Status::LBA_OUT_OF_RANGE) }
    }

    /// Checks that blocks can be read.
    pub(super) fn check_readable(&self, first: u64, count: u64) -> Result<(), Status> {
        let is_marked = self.uncorrectable.overlaps(&(first..first + count));
        if is_marked { Err(Status::UNRECOVERED_READ_ERROR) } else { Ok(()) }
    }

    /// Blocks cannot be read from now on.
    ///
    /// # Errors
    /// If these would be more than can be kept in mind.
    pub(super) fn mark(&mut self, first: u64, count: u64) -> Result<(), Status> {
        if self.uncorrectable.total + count > MOST_UNCORRECTABLE {
            return Err(Status::CAPACITY_EXCEEDED);
        }
        self.uncorrectable.insert(first..first + count);
        Ok(())
    }

    /// Blocks were written, and can be read.
    pub(super) fn unmark(&mut self, first: u64, count: u64) {
        if !self.uncorrectable.is_empty() {
            self.uncorrectable.remove(&(first..first + count));
        }
    }

    /// Every block can be read from now on.
    pub(super) fn unmark_all(&mut self) {
        self.uncorrectable = RangeSet::default();
    }

    /// Where a block is in what it is kept in, in bytes.
    pub(super) fn byte(&self, block: u64) -> u64 {
        self.extent.offset + (block << self.format.shift)
    }

    /// Where the metadata of a block is, as [`Namespace::byte`].
    pub(super) fn metadata_byte(&self, block: u64) -> u64 {
        let data = (self.count << self.format.shift).next_multiple_of(PAGE);
        self.extent.offset + data + block * METADATA
    }

    /// It has other blocks from now on, as many as there is room for.
    pub(super) fn reformat(&mut self, format: Format, metadata: Metadata) {
        (self.format, self.metadata) = (format, metadata);
        self.count = format.blocks_in(self.extent.length);
    }
}

/// Blocks that can be uncorrectable at once: each could be a range of its own.
const MOST_UNCORRECTABLE: u64 = 1 << 17;

/// A set of numbers, as ranges that do not touch: first and end.
#[derive(Debug, Default)]
struct RangeSet {
    ranges: BTreeMap<u64, u64>,
    /// How many numbers.
    total: u64,
}

impl RangeSet {
    fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn put(&mut self, range: Range<u64>) {
        self.total += range.end - range.start;
        self.ranges.insert(range.start, range.end);
    }

    fn take(&mut self, range: &Range<u64>) {
        self.total -= range.end - range.start;
        self.ranges.remove(&range.start);
    }

    /// The ranges that overlap `range`, or with `touching`, that touch it.
    fn near(&self, range: &Range<u64>, touching: bool) -> Vec<Range<u64>> {
        let reach = u64::from(touching);
        let below = self.ranges.range(..range.end + reach).rev();
        let found = below.take_while(|(_, end)| **end + reach > range.start);
        found.map(|(start, end)| *start..*end).collect()
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        !self.ranges.is_empty() && !range.is_empty() && !self.near(range, false).is_empty()
    }

    fn insert(&mut self, range: Range<u64>) {
        let mut all = range.clone();
        for near in self.near(&range, true) {
            self.take(&near);
            all = all.start.min(near.start)..all.end.max(near.end);
        }
        if !all.is_empty() {
            self.put(all);
        }
    }

    fn remove(&mut self, range: &Range<u64>) {
        let near = if range.is_empty() { Vec::new() } else { self.near(range, false) };
        for near in near {
            self.take(&near);
            for rest in [near.start..range.start.min(near.end), range.end.max(near.start)..near.end] {
                if !rest.is_empty() {
                    self.put(rest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 1..40)) {
            let (mut set, mut naive) = (RangeSet::default(), [false; 96]);
            for (inserts, start, length) in steps {
                let range = start..start + length;
                if inserts { set.insert(range.clone()) } else { set.remove(&range) }
                naive[start as usize..(start + length) as usize].fill(inserts);
                for at in 0..95 {
                    prop_assert_eq!(set.overlaps(&(at..at + 1)), naive[at as usize]);
                }
                prop_assert_eq!(set.total, naive.iter().filter(|is_in| **is_in).count() as u64);
                let mut ranges = set.ranges.iter().peekable();
                while let Some((start, end)) = ranges.next() {
                    prop_assert!(start < end && ranges.peek().is_none_or(|(next, _)| end < *next));
                }
            }
        }
    }
}
