//! Create Delta Record and Apply Delta Record.
//!
//! ```text
//!   delta record:  │ offset │ data            │ offset │ data            │ …
//!                  │ 2 bytes│ 8 bytes         │
//! ```
//!
//! An offset counts in units of 8 bytes. The data is the second source's, where it differs from the first.

use super::transfer::completed;
use super::{Fault, Memory, PAGE, Run, place};
use crate::dsa::spec::completion::{Record, Status};
use crate::dsa::spec::descriptor::DELTA_SIZE;

/// Bytes compared in a step, and those of the deltas that they can make.
const STEP: usize = PAGE as usize;
const MOST_DELTAS: usize = STEP / 8 * DELTA_SIZE;

/// Create Delta Record. Addresses and size are multiples of 8.
pub(in crate::dsa) struct CreateDelta {
    pub(in crate::dsa) sources: [u64; 2],
    pub(in crate::dsa) size: u64,
    pub(in crate::dsa) record: u64,
    pub(in crate::dsa) room: u64,
    /// A bit for each result that is no false predicate, if that is to be checked.
    pub(in crate::dsa) expected: Option<u8>,
    pub(in crate::dsa) done: u64,
    pub(in crate::dsa) written: u64,
}

impl CreateDelta {
    fn end(&self, result: u8, done: u64) -> Record {
        let status = match self.expected {
            Some(expected) if expected >> result & 1 == 0 => Status::FalsePredicate,
            _ => Status::Success,
        };
        Record { status: status as u8, result, specific: [self.written.into(), 0.into()], ..completed(done) }
    }
}

impl Run for CreateDelta {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        let (mut first, mut second) = ([0; STEP], [0; STEP]);
        let mut len = (self.size - self.done).min(STEP as u64) as usize;
        for (source, block) in self.sources.into_iter().zip([&mut first, &mut second]) {
            let at = place(source, self.done, false)?;
            len = memory.read_some(at, &mut block[..len])? & !7;
            if len == 0 {
                // Never with pages, which are multiples of 8.
                return Err(Fault { at, write: false, recoverable: false });
            }
        }

        let mut deltas = [0; MOST_DELTAS];
        let (mut used, mut compared, mut full) = (0, len, false);
        for at in (0..len).step_by(8).filter(|&at| first[at..at + 8] != second[at..at + 8]) {
            if self.written + (used + DELTA_SIZE) as u64 > self.room {
                (compared, full) = (at, true);
                break;
            }
            let offset = (self.done + at as u64) / 8;
            deltas[used..used + 2].copy_from_slice(&(offset as u16).to_le_bytes());
            deltas[used + 2..used + DELTA_SIZE].copy_from_slice(&second[at..at + 8]);
            used += DELTA_SIZE;
        }
        if used > 0 {
            let at = place(self.record, self.written, true)?;
            let whole = memory.write_some(at, &deltas[..used])? / DELTA_SIZE * DELTA_SIZE;
            self.written += whole as u64;
            if whole < used {
                // A delta that is not there whole was not found: the next step finds it, and faults on it.
                let missed = u16::from_le_bytes([deltas[whole], deltas[whole + 1]]);
                let found = u64::from(missed) * 8;
                if whole == 0 {
                    // None of it fits before the page that is not there. Byte by byte it would be, so this faults.
                    memory.write(at, &deltas[..DELTA_SIZE])?;
                }
                self.done = found;
                return Ok(None);
            }
        }
        self.done += compared as u64;
        if full {
            return Ok(Some(self.end(2, self.done)));
        }
        Ok((self.done == self.size).then(|| self.end((self.written > 0).into(), 0)))
    }

    fn partial(&self) -> Record {
        self.end((self.written > 0).into(), self.done)
    }
}

/// Apply Delta Record. Destination and size are multiples of 8.
pub(in crate::dsa) struct ApplyDelta {
    pub(in crate::dsa) record: u64,
    pub(in crate::dsa) length: u64,
    pub(in crate::dsa) to: u64,
    pub(in crate::dsa) size: u64,
    /// Bytes of the record that were applied.
    pub(in crate::dsa) done: u64,
    /// The offset that the last of them had.
    pub(in crate::dsa) last: Option<u16>,
}

impl Run for ApplyDelta {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        const DELTAS: usize = 256;
        let mut deltas = [0; DELTAS * DELTA_SIZE];
        // What does not make a delta any more is not looked at.
        let left = (self.length - self.done) as usize / DELTA_SIZE * DELTA_SIZE;
        let wanted = left.min(deltas.len());
        let at = place(self.record, self.done, false)?;
        if wanted > 0 && memory.read_some(at, &mut deltas[..wanted])? < wanted {
            // A page that is not there, somewhere inside: one delta at a time up to it.
            memory.read(at, &mut deltas[..DELTA_SIZE])?;
            return self.apply(memory, &deltas[..DELTA_SIZE]);
        }
        let ended = self.apply(memory, &deltas[..wanted])?;
        Ok(ended.or((wanted == left).then(Record::default)))
    }

    fn partial(&self) -> Record {
        completed(self.done)
    }
}

impl ApplyDelta {
    /// Applies whole deltas. Returns the record if one of them is wrong.
    fn apply(&mut self, memory: &mut Memory<'_>, deltas: &[u8]) -> Result<Option<Record>, Fault> {
        for delta in deltas.chunks_exact(DELTA_SIZE) {
            let offset = u16::from_le_bytes([delta[0], delta[1]]);
            let status = if u64::from(offset) * 8 >= self.size {
                Status::DeltaOffset
            } else if self.last.is_some_and(|last| offset <= last) {
                Status::DeltaOrder
            } else {
                memory.write(place(self.to, u64::from(offset) * 8, true)?, &delta[2..])?;
                self.last = Some(offset);
                self.done += DELTA_SIZE as u64;
                continue;
            };
            return Ok(Some(Record { status: status as u8, ..self.partial() }));
        }
        Ok(None)
    }
}
