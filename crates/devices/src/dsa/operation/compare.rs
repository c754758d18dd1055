//! Compare and Compare Pattern: the result is 0 where all is equal, else 1 with the offset of the first difference.

use super::transfer::completed;
use super::{BLOCK, Fault, Memory, Run, place};
use crate::dsa::spec::completion::{Record, Status};

/// What a region is compared with.
pub(in crate::dsa) enum With {
    /// The region at this address.
    Memory(u64),
    /// These bytes, again and again.
    Pattern([u8; 8]),
}

/// Compare, or Compare Pattern.
pub(in crate::dsa) struct Compare {
    pub(in crate::dsa) from: u64,
    pub(in crate::dsa) with: With,
    pub(in crate::dsa) size: u64,
    /// The result that is no false predicate, if that is to be checked.
    pub(in crate::dsa) expected: Option<u8>,
    pub(in crate::dsa) done: u64,
}

impl Compare {
    fn record(&self, result: u8, at: u64) -> Record {
        let status = match self.expected {
            Some(expected) if expected != result => Status::FalsePredicate,
            _ => Status::Success,
        };
        Record { status: status as u8, result, ..completed(at) }
    }
}

impl Run for Compare {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        let (mut left, mut right) = ([0; BLOCK as usize], [0; BLOCK as usize]);
        let len = (self.size - self.done).min(BLOCK) as usize;
        let len = memory.read_some(place(self.from, self.done, false)?, &mut left[..len])?;
        let len = match &self.with {
            With::Memory(at) => memory.read_some(place(*at, self.done, false)?, &mut right[..len])?,
            With::Pattern(pattern) => {
                for (at, byte) in (self.done..).zip(&mut right[..len]) {
                    *byte = pattern[(at % 8) as usize];
                }
                len
            }
        };
        if let Some(different) = (0..len).find(|&at| left[at] != right[at]) {
            return Ok(Some(self.record(1, self.done + different as u64)));
        }
        self.done += len as u64;
        Ok((self.done == self.size).then(|| self.record(0, 0)))
    }

    fn partial(&self) -> Record {
        completed(self.done)
    }
}
