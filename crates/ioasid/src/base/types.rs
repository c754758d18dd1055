//! Addresses and identities, each a type of its own.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An I/O virtual address: what a device puts on the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({self})")
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A thread would have to wait for itself. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WouldDeadlock {
    /// It holds slices of a port, or its code runs inside an access of one, which it would have to wait for.
    #[error("this thread holds up a port that it would have to wait for: drop its slices first")]
    HoldsSlices,
    /// It is in a callback of the engine's, whose end it would have to wait for.
    #[error("this thread is in a callback that it would have to wait for: return from there first")]
    InCallback,
}

/// IOVAs from `start` to `last`, both inclusive, so that a range may end at the top of the space; never empty, never
/// reversed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IovaRange {
    /// Not above `last`: what makes one in this crate sees to that.
    pub(crate) start: u64,
    pub(crate) last: u64,
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl IovaRange {
    /// Every address.
    pub const ALL: Self = Self { start: 0, last: u64::MAX };

    /// `length` bytes from `start`; `None` if that is empty or wraps.
    #[must_use]
    pub const fn new(start: u64, length: u64) -> Option<Self> {
        match length.checked_sub(1) {
            Some(more) => match start.checked_add(more) {
                Some(last) => Some(Self { start, last }),
                None => None,
            },
            None => None,
        }
    }

    /// From `start` to `last`, both inclusive; `None` if `last` is below `start`.
    #[must_use]
    pub const fn inclusive(start: u64, last: u64) -> Option<Self> {
        if start <= last { Some(Self { start, last }) } else { None }
    }

    /// First address.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Last address.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// Whether all of `other` lies in this one.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Number of bytes, less one: the length of the whole space does not fit in 64 bits.
    #[must_use]
    pub fn len_minus_one(&self) -> u64 {
        self.last - self.start
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last)
    }
}

/// A process address space id in a transaction; 20 bits (PCIe 6.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// `None` above 20 bits.
    #[must_use]
    pub fn new(value: u32) -> Option<Self> {
        (value < 1 << 20).then_some(Self(value))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an IOMMU group: the functions that cannot be kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A requester id: segment, bus, device and function; written `0000:00:01.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid {
    segment: u16,
    bus: u8,
    devfn: u8,
}

impl Rid {
    /// That of requesters which are on no bus.
    pub(crate) const SOFTWARE: Self = Self { segment: u16::MAX, bus: u8::MAX, devfn: u8::MAX };

    /// `None` if `device` is above 31 or `function` above 7.
    #[must_use]
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { segment, bus, devfn: device << 3 | function })
    }

    /// The number of the segment, which Linux calls domain.
    #[must_use]
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// The number of the bus.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// Device and function in one number: the device in bits 7 to 3.
    #[must_use]
    pub fn devfn(self) -> u8 {
        self.devfn
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, bus, devfn } = *self;
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{:x}", devfn >> 3, devfn & 7)
    }
}

/// What is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a PCI address: write it as 0000:00:01.0 (segment:bus:device.function, in hexadecimal)")]
pub struct ParseRidError(String);

impl FromStr for Rid {
    type Err = ParseRidError;

    /// Reads `0000:00:01.0`, or `00:01.0` for segment 0.
    fn from_str(text: &str) -> Result<Self, ParseRidError> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let (device, bus, segment) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0"));
            if parts.next().is_some() {
                return None;
            }
            let hex = |part: &str, digits: usize| {
                let plain = !part.is_empty() && part.len() <= digits && part.bytes().all(|b| b.is_ascii_hexdigit());
                plain.then(|| u16::from_str_radix(part, 16).ok()).flatten()
            };
            Rid::new(
                hex(segment, 4)?,
                u8::try_from(hex(bus, 2)?).ok()?,
                u8::try_from(hex(device, 2)?).ok()?,
                u8::try_from(hex(function, 1)?).ok()?,
            )
        };
        parse().ok_or_else(|| ParseRidError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rid_reads_back_as_written() {
        for text in ["0000:00:01.0", "ffff:ff:1f.7", "0001:3a:10.2"] {
            assert_eq!(text.parse::<Rid>().unwrap().to_string(), text);
        }
        assert_eq!("3a:10.2".parse::<Rid>().unwrap().to_string(), "0000:3a:10.2");
    }

    #[test]
    fn what_is_no_rid_is_refused() {
        for text in
            ["", "00:01", "0:0:0:0.0", "00:20.0", "00:01.8", "00:+1.0", "00000:00:00.0", "g0:00.0", ":.", "é:01.0"]
        {
            assert!(text.parse::<Rid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_may_end_at_the_top_but_not_beyond() {
        assert_eq!(IovaRange::new(u64::MAX, 1), Some(IovaRange { start: u64::MAX, last: u64::MAX }));
        assert_eq!(IovaRange::new(u64::MAX, 2), None);
        assert_eq!((IovaRange::new(5, 0), IovaRange::inclusive(5, 4)), (None, None));
        assert_eq!(IovaRange::inclusive(5, 5), IovaRange::new(5, 1));
    }
}
