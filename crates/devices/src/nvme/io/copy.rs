//! Copy: blocks of a namespace to other places in it, without the host.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::controller::{Controller, Executed, Outcome};
use super::super::spec::command::Command;
use super::super::spec::status::Status;
use super::protected::Wanted;

/// Source ranges at the most.
pub(in crate::nvme) const MOST_RANGES: usize = 128;
/// Blocks of one of them at the most.
pub(in crate::nvme) const MOST_OF_ONE: u16 = 1024;
/// Blocks of all of them at the most.
pub(in crate::nvme) const MOST_OF_ALL: u32 = 2048;

/// A source range, format 0.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Source {
    reserved: [u8; 8],
    first: U64,
    /// Less one.
    count: U16,
    rest: [u8; 6],
    /// Tags that protection information is checked with.
    tag: U32,
    application: U32,
}

impl Controller {
    /// All sources are read before the first byte is written, so they and the destination may overlap.
    pub(super) fn copy(&mut self, command: &Command) -> Executed {
        let id = command.namespace.get();
        self.subsystem.attached(id)?;
        let (number, format) = ((command.word(12) & 0xFF) as usize + 1, command.word(12) >> 8 & 0xF);
        if format != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if number > MOST_RANGES {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        let mut given = [Source::new_zeroed(); MOST_RANGES];
        let given = &mut given[..number];
        self.receive(command, given.as_mut_bytes())?;
        let counts = given.iter().map(|source| u64::from(source.count.get()) + 1);
        let total: u64 = counts.clone().sum();
        if counts.max() > Some(MOST_OF_ONE.into()) || total > MOST_OF_ALL.into() {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        let destination = self.range_of(id, command.long(), total)?;
        let mut sources = Vec::new();
        for source in &*given {
            let range = self.range_of(id, source.first.get(), u64::from(source.count.get()) + 1)?;
            self.check_read(range)?;
            sources.push(range);
        }
        self.check_write(id)?;
        if let Some(metadata) = self.metadata_of(id) {
            // PRINFOR is where PRINFO of a read would be, 14 bits below.
            let info = command.word(12) << 14;
            let checks = given.iter().map(|source| Wanted::new(info, source.tag.get(), source.application.get()));
            let sources: Vec<_> = sources.into_iter().zip(checks).collect();
            return self.copy_protected(command, &sources, destination, metadata);
        }
        let durable = self.is_durable(command);
        let mut buffer = self.buffer(destination.length as usize);
        let mut rest = buffer.bytes_mut();
        let blocks = self.blocks(id)?;
        for range in &sources {
            let (here, left) = rest.split_at_mut(range.length as usize);
            blocks.read(range.offset, here).map_err(|_| Status::UNRECOVERED_READ_ERROR)?;
            rest = left;
        }
        let written = self.blocks_mut(id)?.write(destination.offset, buffer.bytes(), durable);
        self.keep_buffer(buffer);
        written.map_err(|_| Status::WRITE_FAULT)?;
        self.unmark(destination);
        self.subsystem.health.note_written(destination.length);
        Ok(Outcome::Done(0))
    }
}
