//! Read, write, compare, and compare-and-write: what moves data between the host and a namespace.

use super::super::controller::{Controller, Executed, Outcome, Ticket};
use super::super::data::Direction;
use super::super::spec::command::{Command, nvm};
use super::super::spec::status::Status;
use super::super::task::Next;
use super::Range;
use crate::storage::{Blocks, Job, Operation};

impl Controller {
    pub(super) fn read(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let range = self.transfer(command)?;
        self.check_read(range)?;
        self.subsystem.health.note_read(range.length);
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.read_protected(command, range, metadata);
        }
        let layout = self.layout(command, range.length, Direction::ToHost)?;
        let extent = self.subsystem.attached(range.namespace)?.extent;
        let image = match self.subsystem.pool.blocks(extent) {
            Blocks::Memory(blocks) => {
                let sent = layout.write(&mut self.memory, 0, blocks.slice(range.offset, range.length as usize));
                self.keep(layout);
                return sent.map(|()| Outcome::Done(0));
            }
            Blocks::Image(image) => image.clone(),
        };
        let buffer = self.buffer(range.length as usize);
        let job = Job::new(&image, Operation::Read, range.offset, buffer);
        Ok(self.begin(ticket, Next::Deliver(layout), vec![job]))
    }

    pub(super) fn write(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let range = self.transfer(command)?;
        self.check_write(range.namespace)?;
        let durable = self.is_durable(command);
        self.subsystem.health.note_written(range.length);
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.write_protected(command, range, metadata);
        }
        let layout = self.layout(command, range.length, Direction::FromHost)?;
        let extent = self.subsystem.attached(range.namespace)?.extent;
        let image = match self.subsystem.pool.blocks_mut(extent) {
            Blocks::Memory(blocks) => {
                let blocks = blocks.slice_mut(range.offset, range.length as usize);
                let received = layout.read(&mut self.memory, 0, blocks);
                self.keep(layout);
                received?;
                self.unmark(range);
                return Ok(Outcome::Done(0));
            }
            Blocks::Image(image) => image.clone(),
        };
        let mut buffer = self.buffer(range.length as usize);
        let received = layout.read(&mut self.memory, 0, buffer.bytes_mut());
        self.keep(layout);
        received?;
        let job = Job::new(&image, Operation::Write { durable }, range.offset, buffer);
        Ok(self.begin(ticket, Next::Written { first: range.first, count: range.count }, vec![job]))
    }

    pub(super) fn compare_blocks(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let range = self.transfer(command)?;
        self.check_read(range)?;
        self.subsystem.health.note_read(range.length);
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.compare_protected(command, range, metadata);
        }
        let layout = self.layout(command, range.length, Direction::FromHost)?;
        let mut buffer = self.buffer(range.length as usize);
        let image = match self.blocks(range.namespace)? {
            Blocks::Memory(blocks) => {
                buffer.bytes_mut().copy_from_slice(blocks.slice(range.offset, range.length as usize));
                let same = self.compare(&layout, buffer.bytes());
                self.keep(layout);
                self.keep_buffer(buffer);
                return same.map(|()| Outcome::Done(0));
            }
            Blocks::Image(image) => image.clone(),
        };
        let job = Job::new(&image, Operation::Read, range.offset, buffer);
        Ok(self.begin(ticket, Next::Compare(layout), vec![job]))
    }

    /// Compares, and writes if that was the same, with nothing in between. Returns what became of each.
    pub(in crate::nvme) fn execute_fused(&mut self, compare: &Command, write: &Command) -> [Status; 2] {
        let prepared = self.prepare_fused(compare, write);
        let range = match prepared {
            Ok(range) => range,
            Err(statuses) => return statuses,
        };
        // Nothing that began before is between the two.
        if let Err(status) = self.drain() {
            return [status; 2];
        }
        if let Err(status) = self.compare_now(range, compare) {
            return [status, Status::ABORTED_FUSED_FAILED];
        }
        match self.write_now(range, write) {
            Ok(()) => [Status::SUCCESS; 2],
            Err(status) => [Status::SUCCESS, status],
        }
    }

    fn prepare_fused(&mut self, compare: &Command, write: &Command) -> Result<Range, [Status; 2]> {
        self.check_sanitize().map_err(|status| [status; 2])?;
        let failed = Status::ABORTED_FUSED_FAILED;
        if write.opcode != nvm::WRITE {
            return Err([failed, Status::INVALID_FIELD]);
        }
        let same = |of: fn(&Command) -> (u32, u64, u32)| of(compare) == of(write);
        if !same(|command| (command.namespace.get(), command.long(), command.word(12) & 0xFFFF)) {
            return Err([Status::INVALID_FIELD; 2]);
        }
        let range = self.transfer(compare).map_err(|status| [status, failed])?;
        self.check_read(range).map_err(|status| [status, failed])?;
        self.check_write(range.namespace).map_err(|status| [failed, status])?;
        Ok(range)
    }

    fn compare_now(&mut self, range: Range, command: &Command) -> Result<(), Status> {
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.compare_protected(command, range, metadata).map(drop);
        }
        let layout = self.layout(command, range.length, Direction::FromHost)?;
        let mut buffer = self.buffer(range.length as usize);
        let read = self.blocks(range.namespace)?.read(range.offset, buffer.bytes_mut());
        let same = match read {
            Ok(()) => self.compare(&layout, buffer.bytes()),
            Err(_) => Err(Status::UNRECOVERED_READ_ERROR),
        };
        self.keep(layout);
        self.keep_buffer(buffer);
        same
    }

    fn write_now(&mut self, range: Range, command: &Command) -> Result<(), Status> {
        if let Some(metadata) = self.metadata_of(range.namespace) {
            return self.write_protected(command, range, metadata).map(drop);
        }
        let durable = self.is_durable(command);
        let mut buffer = self.buffer(range.length as usize);
        self.receive(command, buffer.bytes_mut())?;
        let written = self.blocks_mut(range.namespace)?.write(range.offset, buffer.bytes(), durable);
        self.keep_buffer(buffer);
        self.unmark(range);
        written.map_err(|_| Status::WRITE_FAULT)
    }
}
