//! Write zeroes, write uncorrectable, dataset management, verify: what is for blocks, and moves none of them.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::controller::{Controller, Executed, Outcome, Ticket};
use super::super::spec::command::{Command, control};
use super::super::spec::status::Status;
use super::super::task::Next;
use super::Range;
use super::protected::Wanted;
use crate::storage::{Blocks, Buffer, Job, Operation};

/// CDW11 of Dataset Management: deallocate.
const DEALLOCATE: u32 = 1 << 2;
/// Ranges of Dataset Management at the most.
const MOST: usize = 256;

/// A range of Dataset Management.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Given {
    attributes: U32,
    count: U32,
    first: U64,
}

impl Controller {
    pub(super) fn write_zeroes(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let range = self.range(command)?;
        self.check_write(range.namespace)?;
        let deallocate = command.word(12) & control::DEALLOCATE != 0;
        let next = if self.is_durable(command) {
            Next::Flush { first: range.first, count: range.count }
        } else {
            Next::Written { first: range.first, count: range.count }
        };
        if let Some(metadata) = self.metadata_of(range.namespace) {
            self.zero_protected(range, Some((metadata.protection, Wanted::of(command))))?;
            if self.is_durable(command) {
                self.flush_all()?;
            }
            return Ok(Outcome::Done(0));
        }
        let job = self.zero(range, deallocate)?;
        Ok(self.begin_all(ticket, next, job.into_iter().collect()))
    }

    /// Makes blocks zero: at once, or by a job.
    fn zero(&mut self, range: Range, deallocate: bool) -> Result<Option<Job>, Status> {
        if self.metadata_of(range.namespace).is_some() {
            return self.zero_protected(range, None).map(|()| None);
        }
        match self.blocks_mut(range.namespace)? {
            Blocks::Memory(blocks) => blocks.zero(range.offset, range.length),
            Blocks::Image(image) => {
                let operation = Operation::Zero { length: range.length, deallocate };
                return Ok(Some(Job::new(image, operation, range.offset, Buffer::default())));
            }
        }
        self.unmark(range);
        Ok(None)
    }

    pub(super) fn write_uncorrectable(&mut self, command: &Command) -> Executed {
        let range = self.range(command)?;
        self.check_write(range.namespace)?;
        self.subsystem.attached(range.namespace)?.mark(range.first, range.count)?;
        Ok(Outcome::Done(0))
    }

    pub(super) fn manage_dataset(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let id = command.namespace.get();
        self.subsystem.attached(id)?;
        let mut given = [Given::new_zeroed(); MOST];
        let given = &mut given[..(command.word(10) & 0xFF) as usize + 1];
        self.receive(command, given.as_mut_bytes())?;
        let mut ranges = Vec::new();
        for given in given.iter().filter(|given| given.count.get() > 0) {
            ranges.push(self.range_of(id, given.first.get(), given.count.get().into())?);
        }
        // The rest are hints.
        if command.word(11) & DEALLOCATE == 0 {
            return Ok(Outcome::Done(0));
        }
        self.check_write(id)?;
        let mut jobs = Vec::new();
        for range in ranges {
            jobs.extend(self.zero(range, true)?);
            self.unmark(range);
        }
        Ok(self.begin_all(ticket, Next::Nothing, jobs))
    }

    pub(super) fn verify(&mut self, ticket: Ticket, command: &Command) -> Executed {
        // As long as a transfer may be: it is read.
        let range = self.transfer(command)?;
        self.check_read(range)?;
        self.subsystem.health.note_read(range.length);
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.verify_protected(command, range, metadata);
        }
        let image = match self.blocks(range.namespace)? {
            Blocks::Memory(_) => return Ok(Outcome::Done(0)),
            Blocks::Image(image) => image.clone(),
        };
        let buffer = self.buffer(range.length as usize);
        Ok(self.begin(ticket, Next::Verified, vec![Job::new(&image, Operation::Read, range.offset, buffer)]))
    }
}
