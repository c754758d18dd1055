//! The controller: what the worker has, and how commands begin and end.
//!
//! ```text
//!   queue ──▶ Ticket ──▶ execute ──▶ Outcome::Done ──────────────────────┐
//!                           └─────▶ Pending ──▶ Task ──▶ engine ──▶ done ─┴─▶ completion queue
//! ```

use std::sync::Arc;

use super::admin::Erasure;
use super::bar::Bar;
use super::data::{Direction, Layout};
use super::fail::{Misfortune, Plan};
use super::memory::Memory;
use super::session::Session;
use super::spec::command::Command;
use super::spec::status::Status;
use super::subsystem::{ErrorEntry, Subsystem};
use super::task::{Next, Task, Tasks};
use crate::bell::Bell;
use crate::storage::{Blocks, Buffer, Done, Engine, Image, Job, Operation};

/// log2 of the longest transfer in units of 4 KiB: 512 KiB.
pub(super) const MAX_TRANSFER_SHIFT: u32 = 7;
/// Bytes of a command's data at the most.
pub(super) const MAX_TRANSFER: u64 = 4096 << MAX_TRANSFER_SHIFT;
/// Bytes of buffers under way before no more commands begin.
const MOST_BUFFERED: usize = 32 << 20;
/// Tasks under way before no more commands begin.
const MOST_TASKS: usize = 1024;
/// Buffers that are kept for the next commands.
const SPARE_BUFFERS: usize = 64;

/// A command that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Of which session.
    pub(super) session: u64,
    pub(super) queue: u16,
    pub(super) completions: u16,
    pub(super) identifier: u16,
    pub(super) namespace: u32,
    /// What shall go wrong with it.
    pub(super) misfortune: Option<Misfortune>,
}

/// What becomes of a command that is right.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is done, with this result.
    Done(u64),
    /// It completes later.
    Pending,
}

/// What becomes of a command.
pub(super) type Executed = Result<Outcome, Status>;

/// The worker's side of the device.
pub(super) struct Controller {
    pub(super) bar: Arc<Bar>,
    pub(super) memory: Memory,
    pub(super) subsystem: Subsystem,
    /// While it is enabled.
    pub(super) session: Option<Session>,
    pub(super) engine: Box<dyn Engine>,
    pub(super) tasks: Tasks,
    pub(super) plan: Plan,
    /// Queue pairs for I/O that there can be.
    pub(super) queues: u16,
    /// What of a sanitize operation is left.
    pub(super) erasure: Option<Erasure>,
    spare: Vec<Buffer>,
    layout: Layout,
    done: Vec<Done>,
}

impl Controller {
    pub(super) fn new(
        bar: Arc<Bar>,
        memory: Memory,
        subsystem: Subsystem,
        engine: Box<dyn Engine>,
        plan: Plan,
        queues: u16,
    ) -> Self {
        Self {
            bar,
            memory,
            subsystem,
            session: None,
            engine,
            tasks: Tasks::default(),
            plan,
            queues,
            erasure: None,
            spare: Vec::new(),
            layout: Layout::default(),
            done: Vec::new(),
        }
    }

    /// MSI-X vectors: one for each queue pair, the admin queues', too.
    pub(super) fn vectors(&self) -> u16 {
        self.queues + 1
    }

    /// log2 of the host's page.
    pub(super) fn page_shift(&self) -> u32 {
        self.session.as_ref().map_or(12, |session| session.page_shift)
    }

    /// Finds out where the data of a command is. Give it back with [`Controller::keep`].
    pub(super) fn layout(&mut self, command: &Command, length: u64, direction: Direction) -> Result<Layout, Status> {
        let page_shift = self.page_shift();
        let mut layout = std::mem::take(&mut self.layout);
        let found = layout.find(command, length, page_shift, direction, &mut self.memory);
        match found {
            Ok(()) => Ok(layout),
            Err(status) => {
                self.layout = layout;
                Err(status)
            }
        }
    }

    /// Keeps the room that a layout takes, for the next.
    pub(super) fn keep(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// Gives the host the data of a command.
    pub(super) fn send(&mut self, command: &Command, data: &[u8]) -> Result<(), Status> {
        let layout = self.layout(command, data.len() as u64, Direction::ToHost)?;
        let sent = layout.write(&mut self.memory, 0, data);
        self.keep(layout);
        sent
    }

    /// Takes the data of a command from the host.
    pub(super) fn receive(&mut self, command: &Command, data: &mut [u8]) -> Result<(), Status> {
        let layout = self.layout(command, data.len() as u64, Direction::FromHost)?;
        let received = layout.read(&mut self.memory, 0, data);
        self.keep(layout);
        received
    }

    /// Bytes for data under way. What they hold does not matter.
    pub(super) fn buffer(&mut self, length: usize) -> Buffer {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(length);
        buffer
    }

    pub(super) fn keep_buffer(&mut self, buffer: Buffer) {
        // A long one would be kept by commands that need little.
        if self.spare.len() < SPARE_BUFFERS && buffer.size() > 0 && buffer.size() <= 1 << 16 {
            self.spare.push(buffer);
        }
    }

    /// Whether another command may begin.
    pub(super) fn has_room(&self) -> bool {
        self.tasks.buffered < MOST_BUFFERED && self.tasks.len() < MOST_TASKS
    }

    /// Begins a task of jobs, and returns that the command is pending.
    pub(super) fn begin(&mut self, ticket: Ticket, next: Next, jobs: Vec<Job>) -> Outcome {
        self.start_task(ticket, next, jobs);
        Outcome::Pending
    }

    fn start_task(&mut self, ticket: Ticket, next: Next, jobs: Vec<Job>) {
        if let Some(queue) = self.session.as_mut().and_then(|session| session.completion_queue(ticket.completions)) {
            queue.outstanding += 1;
        }
        let buffered = jobs.iter().map(|job| job.buffer.size()).sum();
        let task = Task { ticket, next, left: jobs.len(), status: Status::SUCCESS, buffered };
        let token = self.tasks.insert(task);
        for job in jobs {
            self.engine.submit(Job { token, ..job });
        }
    }

    /// Takes what files have done. Returns whether there was something.
    pub(super) fn reap(&mut self) -> bool {
        if self.engine.under_way() == 0 {
            return false;
        }
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done);
        let any = !done.is_empty();
        for done in done.drain(..) {
            self.finish_job(done);
        }
        self.done = done;
        any
    }

    fn finish_job(&mut self, done: Done) {
        let Some(task) = self.tasks.get_mut(done.token) else { return };
        task.left -= 1;
        if done.result.is_err() && task.status.is_success() {
            task.status = task.next.media_error();
        }
        if task.left > 0 {
            return self.keep_buffer(done.buffer);
        }
        let Some(task) = self.tasks.remove(done.token) else { return };
        let Task { ticket, next, mut status, .. } = task;
        self.memory.set_command(Some((ticket.queue, ticket.identifier)));
        // What began before a reset reaches no memory any more.
        let session = self.session.as_mut().filter(|session| session.number == ticket.session);
        let is_current = session.is_some();
        if let Some(queue) = session.and_then(|session| session.completion_queue(ticket.completions)) {
            queue.outstanding -= 1;
        }
        match next {
            Next::Flush { first, count } if status.is_success() => {
                if let Some(image) = self.image_of(ticket.namespace) {
                    let job = Job::new(&image, Operation::Flush, 0, done.buffer);
                    return self.start_task(ticket, Next::Written { first, count }, vec![job]);
                }
            }
            Next::Deliver(layout) if is_current && status.is_success() => {
                let delivered = layout.write(&mut self.memory, 0, done.buffer.bytes());
                status = delivered.err().unwrap_or(status);
                self.keep(layout);
            }
            Next::Compare(layout) if is_current && status.is_success() => {
                status = self.compare(&layout, done.buffer.bytes()).err().unwrap_or(status);
                self.keep(layout);
            }
            Next::Written { first, count } if status.is_success() => {
                if let Some(namespace) = self.subsystem.namespaces.get_mut(&ticket.namespace) {
                    namespace.unmark(first, count);
                }
            }
            _ => {}
        }
        self.keep_buffer(done.buffer);
        if is_current {
            self.complete(ticket, status, 0);
        }
    }

    fn image_of(&self, id: u32) -> Option<Arc<Image>> {
        let namespace = self.subsystem.namespaces.get(&id)?;
        match self.subsystem.pool.blocks(namespace.extent) {
            Blocks::Image(image) => Some(image.clone()),
            Blocks::Memory(_) => None,
        }
    }

    /// Compares what the host has with bytes of ours.
    pub(super) fn compare(&mut self, layout: &Layout, bytes: &[u8]) -> Result<(), Status> {
        let mut theirs = self.buffer(bytes.len().min(1 << 16));
        let mut same = Ok(());
        for (from, ours) in (0..).step_by(1 << 16).zip(bytes.chunks(1 << 16)) {
            let theirs = &mut theirs.bytes_mut()[..ours.len()];
            same = layout.read(&mut self.memory, from, theirs);
            if same.is_ok() && theirs != ours {
                same = Err(Status::COMPARE_FAILURE);
            }
            if same.is_err() {
                break;
            }
        }
        self.keep_buffer(theirs);
        same
    }

    /// Waits until files have done all they were asked for.
    ///
    /// # Errors
    /// If there was a reset meanwhile: the host does not wait for the command any more.
    pub(super) fn drain(&mut self) -> Result<(), Status> {
        while self.engine.under_way() > 0 {
            self.check_reset()?;
            if !self.reap() {
                let bar = self.bar.clone();
                bar.bell.sleep(
                    self.engine.readiness().map(Bell::readable),
                    Some(std::time::Duration::from_millis(10)),
                    || false,
                );
            }
        }
        Ok(())
    }

    /// Fails if there was a reset since the session began, or is none.
    pub(super) fn check_reset(&self) -> Result<(), Status> {
        match &self.session {
            Some(session) if !self.bar.is_reset_since(session.number) => Ok(()),
            _ => Err(Status::ABORT_REQUESTED),
        }
    }

    /// Writes completions, and interrupts. Returns whether there was something to write.
    pub(super) fn write_completions(&mut self) -> Result<bool, Status> {
        let Self { bar, memory, session, .. } = self;
        memory.set_command(None);
        session.as_mut().map_or(Ok(false), |session| session.write_completions(bar, memory))
    }

    /// Makes everything last that was written.
    pub(super) fn flush_all(&mut self) -> Result<(), Status> {
        self.drain()?;
        self.subsystem.pool.flush().map_err(|_| Status::WRITE_FAULT)
    }

    /// A command has ended.
    pub(super) fn complete(&mut self, ticket: Ticket, status: Status, result: u64) {
        let status = if status.is_success() { status } else { self.note(ticket, status) };
        let Some(session) = &mut self.session else { return };
        if session.number == ticket.session {
            session.complete(ticket, status, result);
        }
    }

    /// Notes a failure in the log of errors.
    fn note(&mut self, ticket: Ticket, status: Status) -> Status {
        self.subsystem.note_error(ErrorEntry {
            queue: ticket.queue,
            identifier: ticket.identifier,
            status,
            namespace: ticket.namespace,
        })
    }
}
