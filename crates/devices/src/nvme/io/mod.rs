//! Commands of the NVM command set: what they check, and what they do.
//!
//! ```text
//!   namespace ──▶ fields ──▶ transfer ──▶ blocks ──▶ protected? reserved? readable? ──▶ pointers ──▶ data
//! ```
//! Each step has its status, and nothing is touched before the last.

use super::controller::{Controller, Executed, MAX_TRANSFER, Outcome, Ticket};
use super::namespace::METADATA;
use super::spec::command::{ALL_NAMESPACES, Command, control, nvm};
use super::spec::status::Status;
use super::subsystem::Sanitize;
use super::task::Next;
use crate::storage::{Blocks, Buffer, Job, Operation};

mod copy;
mod protected;
mod ranges;
mod reservation;
mod transfer;

pub(super) use copy::{MOST_OF_ALL, MOST_OF_ONE, MOST_RANGES};

/// Blocks that a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    namespace: u32,
    /// The first block.
    first: u64,
    /// Blocks: one or more.
    count: u64,
    /// Where the first one is in what the namespace is kept in, in bytes.
    offset: u64,
    /// Bytes.
    length: u64,
}

impl Controller {
    /// Carries out a command of an I/O queue.
    ///
    /// # Errors
    /// Its status.
    pub(super) fn execute_io(&mut self, ticket: Ticket, command: &Command) -> Executed {
        self.check_sanitize()?;
        match command.opcode {
            nvm::FLUSH => self.flush(ticket, command),
            nvm::WRITE => self.write(ticket, command),
            nvm::READ => self.read(ticket, command),
            nvm::WRITE_UNCORRECTABLE => self.write_uncorrectable(command),
            nvm::COMPARE => self.compare_blocks(ticket, command),
            nvm::WRITE_ZEROES => self.write_zeroes(ticket, command),
            nvm::DATASET_MANAGEMENT => self.manage_dataset(ticket, command),
            nvm::VERIFY => self.verify(ticket, command),
            nvm::RESERVATION_REGISTER => self.register_reservation(command),
            nvm::RESERVATION_REPORT => self.report_reservation(command),
            nvm::RESERVATION_ACQUIRE => self.acquire_reservation(command),
            nvm::RESERVATION_RELEASE => self.release_reservation(command),
            nvm::COPY => self.copy(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Nothing is done while all is erased, or after that has failed.
    fn check_sanitize(&self) -> Result<(), Status> {
        match self.subsystem.sanitize {
            Sanitize::UnderWay(_) => Err(Status::SANITIZE_IN_PROGRESS),
            Sanitize::Failed(_) => Err(Status::SANITIZE_FAILED),
            Sanitize::Never | Sanitize::Done(_) => Ok(()),
        }
    }

    /// The blocks that CDW10 to CDW12 name.
    fn range(&mut self, command: &Command) -> Result<Range, Status> {
        let count = u64::from(command.word(12) & 0xFFFF) + 1;
        self.range_of(command.namespace.get(), command.long(), count)
    }

    /// [`Controller::range`], of a command that moves data.
    fn transfer(&mut self, command: &Command) -> Result<Range, Status> {
        let count = u64::from(command.word(12) & 0xFFFF) + 1;
        let namespace = self.subsystem.attached(command.namespace.get())?;
        let between = if namespace.metadata.extended { METADATA } else { 0 };
        if count * (namespace.block() + between) > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        self.range(command)
    }

    fn range_of(&mut self, id: u32, first: u64, count: u64) -> Result<Range, Status> {
        let namespace = self.subsystem.attached(id)?;
        namespace.check_range(first, count)?;
        let length = count << namespace.format.shift;
        Ok(Range { namespace: id, first, count, offset: namespace.byte(first), length })
    }

    /// Checks that the host may read blocks, and that they can be read.
    fn check_read(&mut self, range: Range) -> Result<(), Status> {
        let host = self.host();
        let namespace = self.subsystem.attached(range.namespace)?;
        namespace.reservation.check(&host, false)?;
        namespace.check_readable(range.first, range.count)
    }

    /// Checks that the host may write to a namespace, and that it can be written.
    fn check_write(&mut self, id: u32) -> Result<(), Status> {
        let host = self.host();
        self.subsystem.check_writable(id, &host)
    }

    /// The host's identifier.
    pub(super) fn host(&self) -> [u8; 16] {
        self.session.as_ref().map_or([0; 16], |session| session.features.host)
    }

    /// What namespace `id` is kept in.
    fn blocks(&self, id: u32) -> Result<&Blocks, Status> {
        let namespace = self.subsystem.namespaces.get(&id).ok_or(Status::INVALID_NAMESPACE)?;
        Ok(self.subsystem.pool.blocks(namespace.extent))
    }

    fn blocks_mut(&mut self, id: u32) -> Result<&mut Blocks, Status> {
        let namespace = self.subsystem.namespaces.get(&id).ok_or(Status::INVALID_NAMESPACE)?;
        Ok(self.subsystem.pool.blocks_mut(namespace.extent))
    }

    /// Whether a write has to last before it is done.
    fn is_durable(&self, command: &Command) -> bool {
        let caches = self.session.as_ref().is_some_and(|session| session.features.caches_writes());
        !caches || command.word(12) & control::FORCE_UNIT_ACCESS != 0
    }

    /// Blocks hold data that can be read from now on.
    fn unmark(&mut self, range: Range) {
        if let Some(namespace) = self.subsystem.namespaces.get_mut(&range.namespace) {
            namespace.unmark(range.first, range.count);
        }
    }

    fn flush(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let ids = match command.namespace.get() {
            ALL_NAMESPACES => self.subsystem.active().collect(),
            id => {
                self.subsystem.attached(id)?;
                vec![id]
            }
        };
        let mut jobs = Vec::new();
        for id in ids {
            if let Blocks::Image(image) = self.blocks(id)?
                && !jobs.iter().any(|job: &Job| std::sync::Arc::ptr_eq(&job.image, image))
            {
                jobs.push(Job::new(image, Operation::Flush, 0, Buffer::default()));
            }
        }
        Ok(self.begin_all(ticket, Next::Nothing, jobs))
    }

    /// [`Controller::begin`], where there may be nothing to do.
    fn begin_all(&mut self, ticket: Ticket, next: Next, jobs: Vec<Job>) -> Outcome {
        if jobs.is_empty() { Outcome::Done(0) } else { self.begin(ticket, next, jobs) }
    }
}
