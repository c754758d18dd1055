//! Admin commands.
//!
//! | file | commands |
//! | --- | --- |
//! | `queues` | create and delete queues, doorbell buffers |
//! | `identify` | Identify |
//! | `features` | Get and Set Features |
//! | `logs` | Get Log Page |
//! | `namespaces` | create, delete, attach, detach, format |
//! | `sanitize` | Sanitize |

use std::time::{Duration, Instant};

use super::controller::{Controller, Executed, Outcome, Ticket};
use super::features::id;
use super::session::EVENT_REQUESTS;
use super::spec::command::{Command, admin};
use super::spec::log::Event;
use super::spec::status::Status;
use super::subsystem::Sanitize;

mod features;
mod identify;
mod logs;
mod namespaces;
mod queues;
mod sanitize;

pub(super) use sanitize::Erasure;

/// What may be done while a sanitize operation is under way (base specification, 8.21).
const DURING_SANITIZE: [u8; 11] = [
    admin::DELETE_SUBMISSION_QUEUE,
    admin::CREATE_SUBMISSION_QUEUE,
    admin::GET_LOG_PAGE,
    admin::DELETE_COMPLETION_QUEUE,
    admin::CREATE_COMPLETION_QUEUE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
    admin::KEEP_ALIVE,
];

impl Controller {
    /// Carries out a command of the admin queue.
    ///
    /// # Errors
    /// Its status.
    pub(super) fn execute_admin(&mut self, ticket: Ticket, command: &Command) -> Executed {
        let is_free = DURING_SANITIZE.contains(&command.opcode);
        match self.subsystem.sanitize {
            Sanitize::UnderWay(_) if !is_free => return Err(Status::SANITIZE_IN_PROGRESS),
            Sanitize::Failed(_) if !is_free && command.opcode != admin::SANITIZE => {
                return Err(Status::SANITIZE_FAILED);
            }
            _ => {}
        }
        // There are no SGLs for these.
        if command.data_kind() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode {
            admin::DELETE_SUBMISSION_QUEUE => self.delete_submission_queue(command),
            admin::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(command),
            admin::GET_LOG_PAGE => self.get_log_page(command),
            admin::DELETE_COMPLETION_QUEUE => self.delete_completion_queue(command),
            admin::CREATE_COMPLETION_QUEUE => self.create_completion_queue(command),
            admin::IDENTIFY => self.identify(command),
            admin::ABORT => Ok(self.abort(command)),
            admin::SET_FEATURES => self.set_features(command),
            admin::GET_FEATURES => self.get_features(command),
            admin::ASYNC_EVENT_REQUEST => self.request_event(ticket),
            admin::NAMESPACE_MANAGEMENT => self.manage_namespace(command),
            admin::NAMESPACE_ATTACHMENT => self.attach_namespace(command),
            admin::KEEP_ALIVE => Ok(self.keep_alive()),
            admin::DOORBELL_BUFFER_CONFIG => self.configure_doorbell_buffers(command),
            admin::FORMAT_NVM => self.format(command),
            admin::SANITIZE => self.start_sanitize(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Stops what waits for something else than files. Its result says whether it did not.
    fn abort(&mut self, command: &Command) -> Outcome {
        const NOT_ABORTED: u64 = 1;
        let (queue, identifier) = ((command.word(10) & 0xFFFF) as u16, (command.word(10) >> 16) as u16);
        let ticket = self.session.as_mut().and_then(|session| session.withdraw(queue, identifier));
        let Some(ticket) = ticket else { return Outcome::Done(NOT_ABORTED) };
        self.complete(ticket, Status::ABORT_REQUESTED, 0);
        Outcome::Done(0)
    }

    fn request_event(&mut self, ticket: Ticket) -> Executed {
        let Some(session) = &mut self.session else { return Err(Status::INTERNAL_ERROR) };
        if session.events.len() == EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        }
        session.events.request(ticket);
        Ok(Outcome::Pending)
    }

    fn keep_alive(&mut self) -> Outcome {
        if let Some(session) = &mut self.session {
            session.alive_until = match session.features.get(id::KEEP_ALIVE) {
                0 => None,
                timeout => Some(Instant::now() + Duration::from_millis(timeout.into())),
            };
        }
        Outcome::Done(0)
    }

    /// Something has happened that the host may want to know.
    fn happen(&mut self, event: Event) {
        if let Some(session) = &mut self.session {
            session.happen(event);
        }
    }
}
