//! Commands that wait for files.

use super::controller::Ticket;
use super::data::Layout;
use super::spec::status::Status;

/// What is done when the files are done.
#[derive(Debug)]
pub(super) enum Next {
    /// The host gets what was read.
    Deliver(Layout),
    /// It is compared with what the host has.
    Compare(Layout),
    /// Blocks hold data now.
    Written { first: u64, count: u64 },
    /// They do, and shall after a loss of power.
    Flush { first: u64, count: u64 },
    /// They were read, and that is all.
    Verified,
    /// Nothing.
    Nothing,
}

impl Next {
    /// What the host is told if a file fails.
    pub(super) fn media_error(&self) -> Status {
        match self {
            Self::Deliver(_) | Self::Compare(_) | Self::Verified => Status::UNRECOVERED_READ_ERROR,
            Self::Written { .. } | Self::Flush { .. } | Self::Nothing => Status::WRITE_FAULT,
        }
    }
}

/// A command that waits for files.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) ticket: Ticket,
    pub(super) next: Next,
    /// Jobs that are not done.
    pub(super) left: usize,
    /// The first error.
    pub(super) status: Status,
    /// Bytes of its buffers.
    pub(super) buffered: usize,
}

/// All of them, each with a number.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    places: Vec<Option<Task>>,
    free: Vec<usize>,
    /// Bytes of their buffers.
    pub(super) buffered: usize,
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, task: Task) -> usize {
        self.buffered += task.buffered;
        let token = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[token] = Some(task);
        token
    }

    pub(super) fn get_mut(&mut self, token: usize) -> Option<&mut Task> {
        self.places.get_mut(token)?.as_mut()
    }

    pub(super) fn remove(&mut self, token: usize) -> Option<Task> {
        let task = self.places.get_mut(token)?.take()?;
        self.free.push(token);
        self.buffered -= task.buffered;
        Some(task)
    }

    /// Whether a command of a queue has this identifier.
    pub(super) fn has(&self, session: u64, queue: u16, identifier: u16) -> bool {
        let mut tasks = self.places.iter().flatten().map(|task| &task.ticket);
        self.len() > 0
            && tasks.any(|ticket| (ticket.session, ticket.queue, ticket.identifier) == (session, queue, identifier))
    }
}
