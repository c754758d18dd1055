//! Create and delete queues, doorbell buffers.

use super::super::bar::Doorbell;
use super::super::controller::{Controller, Executed, Outcome};
use super::super::data::queue_pages;
use super::super::queue::{CompletionQueue, Place, SubmissionQueue};
use super::super::session::Shadow;
use super::super::spec::command::{COMMAND_SIZE, COMPLETION_SIZE, Command};
use super::super::spec::registers::{MAX_ENTRIES, cc};
use super::super::spec::status::Status;

/// CDW11 of both: the queue is in one piece.
const CONTIGUOUS: u32 = 1;
/// CDW11 of a completion queue: it interrupts.
const INTERRUPTS: u32 = 1 << 1;

impl Controller {
    /// The identifier of a queue that a command names: one that there can be.
    fn queue_id(&self, command: &Command) -> Result<u16, Status> {
        let id = (command.word(10) & 0xFFFF) as u16;
        if (1..=self.queues).contains(&id) { Ok(id) } else { Err(Status::INVALID_QUEUE_IDENTIFIER) }
    }

    /// Entries of a queue to be made, and where they are.
    fn queue_place(&mut self, command: &Command, size: usize, shift: u32) -> Result<(u32, Place), Status> {
        let entries = (command.word(10) >> 16) + 1;
        // CC must have said how large an entry is.
        if !(2..=MAX_ENTRIES).contains(&entries) || size != 1 << shift {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let (address, page_shift) = (command.data[0].get(), self.page_shift());
        if !address.is_multiple_of(1 << page_shift) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        if command.word(11) & CONTIGUOUS != 0 {
            return Ok((entries, Place::Contiguous(address)));
        }
        let pages = queue_pages(address, u64::from(entries) * size as u64, page_shift, &mut self.memory)?;
        Ok((entries, Place::Pages(pages, page_shift)))
    }

    pub(super) fn create_completion_queue(&mut self, command: &Command) -> Executed {
        let id = self.queue_id(command)?;
        if self.session.as_mut().is_some_and(|session| session.completion_queue(id).is_some()) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        let shift = cc::completion_shift(self.bar.lock().registers.configuration);
        let (entries, place) = self.queue_place(command, COMPLETION_SIZE, shift)?;
        let (vector, interrupts) = ((command.word(11) >> 16) as u16, command.word(11) & INTERRUPTS != 0);
        // There is one line, and no vector of it but 0.
        if interrupts && (vector >= self.vectors() || vector > 0 && !self.bar.sends_messages()) {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        self.bar.set_exists(Doorbell::Head(id), true);
        if let Some(session) = &mut self.session {
            session.completions[usize::from(id)] = Some(CompletionQueue::new(place, entries, vector, interrupts));
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn create_submission_queue(&mut self, command: &Command) -> Executed {
        let id = self.queue_id(command)?;
        let completions = (command.word(11) >> 16) as u16;
        if !(1..=self.queues).contains(&completions) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        let Some(session) = &mut self.session else { return Err(Status::INTERNAL_ERROR) };
        if session.submissions[usize::from(id)].is_some() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if session.completion_queue(completions).is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let shift = cc::submission_shift(self.bar.lock().registers.configuration);
        let (entries, place) = self.queue_place(command, COMMAND_SIZE, shift)?;
        let priority = (command.word(11) >> 1 & 3) as u8;
        self.bar.set_exists(Doorbell::Tail(id), true);
        if let Some(session) = &mut self.session {
            if let Some(queue) = session.completion_queue(completions) {
                queue.users += 1;
            }
            session.submissions[usize::from(id)] = Some(SubmissionQueue::new(completions, place, entries, priority));
            session.served.push(id);
        }
        Ok(Outcome::Done(0))
    }

    /// What of it is under way ends first.
    pub(super) fn delete_submission_queue(&mut self, command: &Command) -> Executed {
        let id = self.queue_id(command)?;
        if self.session.as_ref().is_none_or(|session| session.submissions[usize::from(id)].is_none()) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        self.drain()?;
        self.bar.set_exists(Doorbell::Tail(id), false);
        if let Some(session) = &mut self.session {
            session.forget_queue(id);
            let queue = session.submissions[usize::from(id)].take();
            if let Some(queue) = queue.and_then(|queue| session.completion_queue(queue.completions)) {
                queue.users -= 1;
            }
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn delete_completion_queue(&mut self, command: &Command) -> Executed {
        let id = self.queue_id(command)?;
        let Some(session) = &mut self.session else { return Err(Status::INTERNAL_ERROR) };
        match session.completion_queue(id) {
            None => return Err(Status::INVALID_QUEUE_IDENTIFIER),
            Some(queue) if queue.users > 0 => return Err(Status::INVALID_QUEUE_DELETION),
            Some(_) => session.forget_completions(id),
        }
        self.bar.set_exists(Doorbell::Head(id), false);
        self.bar.forget_waiting(id);
        Ok(Outcome::Done(0))
    }

    /// From now on, doorbells of I/O queues are in the host's memory.
    pub(super) fn configure_doorbell_buffers(&mut self, command: &Command) -> Executed {
        let [doorbells, events] = command.data.map(u64::from);
        let page = 1 << self.page_shift();
        if doorbells == 0 || events == 0 || [doorbells, events].iter().any(|at| !at.is_multiple_of(page)) {
            return Err(Status::INVALID_FIELD);
        }
        let Self { memory, session, .. } = self;
        let Some(session) = session else { return Err(Status::INTERNAL_ERROR) };
        // Queues that there are go on from where their doorbells are.
        let tails = session.submissions.iter().enumerate().skip(1);
        let tails = tails.filter_map(|(id, queue)| Some((Doorbell::Tail(id as u16), queue.as_ref()?.doorbell)));
        let heads = session.completions.iter().enumerate().skip(1);
        let heads = heads.filter_map(|(id, queue)| Some((Doorbell::Head(id as u16), queue.as_ref()?.doorbell)));
        for (doorbell, value) in tails.chain(heads) {
            let offset = 4 * doorbell.index() as u64;
            memory.write(doorbells + offset, &value.to_le_bytes())?;
            memory.write(events + offset, &value.to_le_bytes())?;
        }
        session.shadow = Some(Shadow { doorbells, events });
        session.submissions.iter_mut().flatten().for_each(|queue| queue.event = queue.doorbell);
        session.completions.iter_mut().flatten().for_each(|queue| queue.event = queue.doorbell);
        Ok(Outcome::Done(0))
    }
}
