//! What an access has to find: the address is looked up in one list, and what comes out in another.

use std::collections::BTreeMap;

use ioasid::FaultReason;

/// Where in the guest's memory file an access ends, or why it is refused.
pub type Expected = Result<u64, FaultReason>;

/// Something that a guest mapped.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    /// Bytes.
    pub length: u64,
    /// Guest-physical address.
    pub to: u64,
    /// Whether devices may write.
    pub write: bool,
}

/// What a guest mapped for one of its processes, by IOVA.
#[derive(Default)]
pub struct First(BTreeMap<u64, Mapping>);

/// What the VMM gave the guest as memory: bytes and place in the file, by guest-physical address.
#[derive(Default)]
pub struct Second(BTreeMap<u64, (u64, u64)>);

impl First {
    /// Whether nothing is mapped from `iova` on, for `length` bytes.
    pub fn is_free(&self, iova: u64, length: u64) -> bool {
        self.0.range(..iova + length).next_back().is_none_or(|(start, mapping)| start + mapping.length <= iova)
    }

    pub fn map(&mut self, iova: u64, mapping: Mapping) {
        self.0.insert(iova, mapping);
    }

    pub fn unmap(&mut self, iova: u64) {
        self.0.remove(&iova);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One of what is mapped.
    pub fn nth(&self, n: u64) -> Option<(u64, Mapping)> {
        let n = n as usize % self.0.len().max(1);
        self.0.iter().nth(n).map(|(iova, mapping)| (*iova, *mapping))
    }

    fn find(&self, iova: u64, write: bool) -> Expected {
        let found = self.0.range(..=iova).next_back().filter(|(start, mapping)| iova - **start < mapping.length);
        match found {
            None => Err(FaultReason::NotMapped),
            Some((_, Mapping { write: false, .. })) if write => Err(FaultReason::NotPermitted),
            Some((start, mapping)) => Ok(mapping.to + (iova - start)),
        }
    }
}

impl Second {
    pub fn map(&mut self, gpa: u64, length: u64, offset: u64) {
        self.0.insert(gpa, (length, offset));
    }

    /// Takes away what begins at `gpa`, and says whether anything did.
    pub fn unmap(&mut self, gpa: u64) -> bool {
        self.0.remove(&gpa).is_some()
    }

    fn find(&self, gpa: u64) -> Expected {
        let found = self.0.range(..=gpa).next_back().filter(|(start, (length, _))| gpa - **start < *length);
        found.map(|(start, (_, offset))| offset + (gpa - start)).ok_or(FaultReason::NotMapped)
    }
}

/// What an access to `iova` has to find.
pub fn translate(first: &First, second: &Second, iova: u64, write: bool) -> Expected {
    first.find(iova, write).and_then(|gpa| second.find(gpa))
}
