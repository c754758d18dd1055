//! Move, Fill, Dualcast, and the operations that touch nothing.
//!
//! A move whose destination begins inside its source goes backwards, page by page, so that nothing is overwritten
//! before it is read:
//!
//! ```text
//!   source       ├────────────────┤
//!   destination        ├────────────────┤
//!                            ◀── last page first
//! ```

use super::{BLOCK, Fault, Memory, PAGE, PIECE, Run, place, rest_of_page};
use crate::dsa::spec::completion::Record;

/// No-op, and Cache Flush: there are no caches that memory does not agree with.
pub(in crate::dsa) struct Nothing;

impl Run for Nothing {
    fn step(&mut self, _memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        Ok(Some(Record::default()))
    }

    fn partial(&self) -> Record {
        Record::default()
    }
}

/// Memory Move.
pub(in crate::dsa) struct Move {
    pub(in crate::dsa) from: u64,
    pub(in crate::dsa) to: u64,
    pub(in crate::dsa) size: u64,
    pub(in crate::dsa) done: u64,
}

impl Move {
    fn is_backward(&self) -> bool {
        self.to > self.from && self.to - self.from < self.size
    }

    /// Whether going forward reads from where it has just written.
    fn overlaps(&self) -> bool {
        self.from.abs_diff(self.to) < self.size
    }

    fn forward(&mut self, memory: &mut Memory<'_>) -> Result<(), Fault> {
        let (from, to) = (place(self.from, self.done, false)?, place(self.to, self.done, true)?);
        let left = self.size - self.done;
        self.done += if self.overlaps() {
            let mut block = [0; BLOCK as usize];
            let block = &mut block[..left.min(BLOCK) as usize];
            let len = memory.read_some(from, block)?;
            memory.write_some(to, &block[..len])? as u64
        } else {
            memory.copy_some(from, to, left.min(PIECE))?
        };
        Ok(())
    }

    fn backward(&mut self, memory: &mut Memory<'_>) -> Result<(), Fault> {
        let left = self.size - self.done;
        let (from, to) = (place(self.from, left - 1, false)?, place(self.to, left - 1, true)?);
        // Bytes of the page that the last byte lies in, so that a refusal leaves nothing half done.
        let len = left.min(from % PAGE + 1).min(to % PAGE + 1);
        let mut block = [0; PAGE as usize];
        let block = &mut block[..len as usize];
        memory.read(from - (len - 1), block)?;
        memory.write(to - (len - 1), block)?;
        self.done += len;
        Ok(())
    }
}

impl Run for Move {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        if self.is_backward() {
            self.backward(memory)?;
        } else {
            self.forward(memory)?;
        }
        Ok((self.done == self.size).then(Record::default))
    }

    fn partial(&self) -> Record {
        Record { result: self.is_backward().into(), ..completed(self.done) }
    }
}

/// Fill.
pub(in crate::dsa) struct Fill {
    pub(in crate::dsa) pattern: u64,
    pub(in crate::dsa) to: u64,
    pub(in crate::dsa) size: u64,
    pub(in crate::dsa) done: u64,
}

impl Run for Fill {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        let mut block = [0; BLOCK as usize];
        let block = &mut block[..(self.size - self.done).min(BLOCK) as usize];
        let pattern = self.pattern.to_le_bytes();
        for (at, byte) in (self.done..).zip(&mut *block) {
            *byte = pattern[(at % 8) as usize];
        }
        self.done += memory.write_some(place(self.to, self.done, true)?, block)? as u64;
        Ok((self.done == self.size).then(Record::default))
    }

    fn partial(&self) -> Record {
        completed(self.done)
    }
}

/// Memory Copy with Dualcast. Both destinations have the same place in their pages.
pub(in crate::dsa) struct Dualcast {
    pub(in crate::dsa) from: u64,
    pub(in crate::dsa) to: [u64; 2],
    pub(in crate::dsa) size: u64,
    pub(in crate::dsa) done: u64,
}

impl Run for Dualcast {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        let from = place(self.from, self.done, false)?;
        let [first, second] = [place(self.to[0], self.done, true)?, place(self.to[1], self.done, true)?];
        let mut block = [0; PAGE as usize];
        let block = &mut block[..(self.size - self.done).min(rest_of_page(first)) as usize];
        let len = memory.read_some(from, block)?;
        memory.write(first, &block[..len])?;
        memory.write(second, &block[..len])?;
        self.done += len as u64;
        Ok((self.done == self.size).then(Record::default))
    }

    fn partial(&self) -> Record {
        completed(self.done)
    }
}

/// A record that says how much was done.
pub(super) fn completed(done: u64) -> Record {
    Record { completed: (done as u32).into(), ..Record::default() }
}
