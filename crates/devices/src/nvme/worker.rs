//! The thread: it obeys the registers, serves the queues in turn while there is work, and sleeps when there is none.
//!
//! ```text
//!   ┌─▶ obey ──▶ serve each queue ──▶ files ──▶ completions, interrupts ─┐
//!   │     └ enable, reset, shut down        something was done           │
//!   ├────────────────────────────────────────────────────────────────────┤
//!   └── look for 50 µs more, say so in the event indexes, sleep ◀────────┘ nothing
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use super::bar::{Bar, Doorbell, PAIRS, State};
use super::controller::{Controller, Outcome, Ticket};
use super::fail::Misfortune;
use super::queue::{BURST, CompletionQueue, Place, SubmissionQueue};
use super::session::Session;
use super::spec::command::{Command, Fuse, nvm};
use super::spec::log::Event;
use super::spec::registers::{MAX_MPS, MIN_PAGE_SHIFT, cc, csts};
use super::spec::status::Status;
use crate::bell::Bell;

/// How long the worker looks on after the last work.
const SPIN: Duration = Duration::from_micros(50);
/// How long it sleeps at the most while doorbells are memory.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// What the worker knows of the registers.
#[derive(Debug, Default)]
struct Seen {
    orders: Option<u64>,
    resets: u64,
    /// The controller has failed, and waits for a reset.
    failed: bool,
    gone: bool,
    /// It is to be enabled when files have done what they were asked for before.
    waits: bool,
}

/// The thread.
pub(super) struct Worker {
    controller: Controller,
    seen: Seen,
    /// The last pause while doorbells are memory.
    pause: Duration,
}

/// Says that the worker has ended, however it did.
struct Ending(Arc<Bar>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Worker {
    pub(super) fn new(controller: Controller) -> Self {
        Self { controller, seen: Seen::default(), pause: SPIN }
    }

    pub(super) fn run(mut self) {
        let _ending = Ending(self.controller.bar.clone());
        let mut idle_since = None;
        loop {
            let orders = self.controller.bar.orders();
            if self.seen.orders != Some(orders) {
                self.seen.orders = Some(orders);
                if !self.obey() {
                    return;
                }
            }
            if self.round() {
                idle_since = None;
                self.pause = SPIN;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep();
            }
        }
    }

    /// Does what the registers ask for. Returns whether to go on.
    fn obey(&mut self) -> bool {
        let bar = self.controller.bar.clone();
        let state = *bar.lock();
        if state.quits {
            return false;
        }
        self.controller.memory.place_buffer(bar.buffer_base(&state));
        if state.resets != self.seen.resets {
            self.end_session();
            self.controller.engine.give_up();
            self.seen = Seen { orders: self.seen.orders, resets: state.resets, ..Seen::default() };
            bar.answer(state.resets, csts::RDY | csts::CFS | csts::SHUTDOWN, 0);
            bar.settle(state.resets);
        }
        self.seen.gone |= state.is_gone;
        if self.seen.gone || self.seen.failed {
            self.end_session();
            return true;
        }
        let is_enabled = state.registers.configuration & cc::EN != 0;
        if is_enabled && self.controller.session.is_none() {
            // What was written before the reset is not to come after what is written from now on.
            self.seen.waits = self.controller.engine.under_way() > 0;
            if self.seen.waits {
                return true;
            }
            match self.enable(&state) {
                Some(session) => {
                    self.controller.session = Some(session);
                    bar.answer(state.resets, 0, csts::RDY);
                }
                None => self.fail(),
            }
        }
        if state.registers.status & csts::SHUTDOWN == csts::SHUTDOWN_BEGUN {
            self.shut_down(state.resets);
        }
        true
    }

    /// What the host has asked for with CC.EN; `None` if that is not possible.
    fn enable(&mut self, state: &State) -> Option<Session> {
        let configuration = state.registers.configuration;
        let sizes = [state.registers.admin_sizes & 0xFFF, state.registers.admin_sizes >> 16 & 0xFFF];
        let is_possible = cc::command_set(configuration) == 0
            && cc::page_shift(configuration) <= MAX_MPS
            && cc::arbitration(configuration) <= 1
            && sizes.iter().all(|size| *size > 0);
        if !is_possible {
            return None;
        }
        let place = Place::Contiguous(state.registers.admin_submissions);
        let submissions = SubmissionQueue::new(0, place, sizes[0] + 1, 0);
        let place = Place::Contiguous(state.registers.admin_completions);
        let completions = CompletionQueue::new(place, sizes[1] + 1, 0, true);
        let bar = &self.controller.bar;
        bar.set_exists(Doorbell::Tail(0), true);
        bar.set_exists(Doorbell::Head(0), true);
        bar.take_stray();
        let page_shift = MIN_PAGE_SHIFT + cc::page_shift(configuration);
        let is_weighted = cc::arbitration(configuration) == 1;
        let features = self.controller.subsystem.saved.clone();
        let page = bar.doorbell_memory().map(|memory| memory.view());
        Some(Session::new(state.resets, page_shift, is_weighted, (submissions, completions), features, page))
    }

    fn end_session(&mut self) {
        if self.controller.session.take().is_some() {
            for queue in 0..PAIRS as u16 {
                self.controller.bar.set_exists(Doorbell::Tail(queue), false);
                self.controller.bar.set_exists(Doorbell::Head(queue), false);
            }
            self.controller.bar.forget_posted();
        }
    }

    /// The controller works no more until it is reset.
    fn fail(&mut self) {
        self.seen.failed = true;
        self.end_session();
        self.controller.bar.answer(self.seen.resets, 0, csts::CFS);
    }

    /// Everything that was written is made to last.
    fn shut_down(&mut self, resets: u64) {
        let drained = self.controller.drain();
        if drained.is_err() || self.controller.write_completions().is_err() || self.controller.flush_all().is_err() {
            // Of a reset meanwhile, this knows already.
            if self.controller.check_reset().is_ok() {
                self.fail();
            }
            return;
        }
        if let Some(session) = &mut self.controller.session {
            // The host need not say any more that it is alive.
            (session.is_shut_down, session.alive_until) = (true, None);
        }
        self.controller.bar.answer(resets, csts::SHUTDOWN, csts::SHUTDOWN_DONE);
    }

    /// Takes what there is. Returns whether there was something.
    fn round(&mut self) -> bool {
        if self.look_at_time() {
            return true;
        }
        if !self.is_serving() {
            let busy = self.controller.reap();
            if self.seen.waits && self.controller.engine.under_way() == 0 {
                self.seen.orders = None;
                return true;
            }
            return busy;
        }
        let Ok(mut busy) = self.serve_all() else {
            self.fail();
            return true;
        };
        busy |= self.controller.reap();
        if self.seen.gone {
            return true;
        }
        busy |= self.controller.sanitize_step();
        if let Some(session) = &mut self.controller.session {
            session.tell_events();
        }
        match self.controller.write_completions() {
            Ok(any) => busy | any,
            Err(_) => {
                self.fail();
                true
            }
        }
    }

    /// Whether the controller takes commands, and so looks at doorbells.
    fn is_serving(&self) -> bool {
        self.controller.session.as_ref().is_some_and(|session| !session.is_shut_down)
    }

    /// Serves the admin queue, and then the others as the host wants it: urgent ones first, and in turn. A queue that
    /// has more commands than there is room for completions keeps its turn.
    fn serve_all(&mut self) -> Result<bool, Status> {
        let Some(session) = &mut self.controller.session else { return Ok(false) };
        if self.controller.bar.take_stray() {
            session.happen(Event::INVALID_DOORBELL);
        }
        let mut busy = self.serve(0, 1)? > 0;
        if self.is_interrupted() {
            return Ok(true);
        }
        let mut full = Vec::new();
        let is_weighted = self.controller.session.as_ref().is_some_and(|session| session.is_weighted);
        if is_weighted && self.serve_in_turn(true, &mut full)? {
            // While something urgent is served, nothing else is.
            return Ok(true);
        }
        busy |= self.serve_in_turn(false, &mut full)?;
        Ok(busy)
    }

    /// Serves the urgent queues in turn, or the others. Where a queue waits for room in its completion queue, which is
    /// `full` then, those after it wait, too.
    fn serve_in_turn(&mut self, urgent: bool, full: &mut Vec<u16>) -> Result<bool, Status> {
        let mut busy = false;
        let Some(session) = &self.controller.session else { return Ok(false) };
        let (count, start) = (session.served.len(), session.turn);
        let mut next = None;
        for step in 0..count {
            let turn = (start + step) % count;
            let Some(session) = &mut self.controller.session else { break };
            let Some(id) = session.served.get(turn).copied() else { break };
            let Some(credit) = session.credit(id, urgent) else { continue };
            let completions = session.submissions[usize::from(id)].as_ref().map_or(0, |queue| queue.completions);
            if full.contains(&completions) {
                continue;
            }
            let served = self.serve(id, credit)?;
            busy |= served > 0;
            let session = self.controller.session.as_mut();
            if session.is_some_and(|session| session.spend(id, credit, served)) {
                next.get_or_insert(turn);
                full.push(completions);
            }
            if self.is_interrupted() {
                return Ok(true);
            }
        }
        if let Some(session) = self.controller.session.as_mut().filter(|_| busy) {
            session.turn = next.unwrap_or(start + 1) % count;
        }
        Ok(busy)
    }

    /// The registers ask for something else.
    fn is_interrupted(&self) -> bool {
        self.seen.failed || self.seen.gone || self.seen.orders != Some(self.controller.bar.orders())
    }

    /// Carries out up to `limit` commands of a queue. Returns how many.
    ///
    /// # Errors
    /// If the queue cannot be reached any more.
    fn serve(&mut self, id: u16, limit: usize) -> Result<usize, Status> {
        let Controller { bar, memory, session, .. } = &mut self.controller;
        let Some(session) = session else { return Ok(0) };
        let value = session.doorbell(Doorbell::Tail(id), bar, memory)?;
        let Some(queue) = &mut session.submissions[usize::from(id)] else { return Ok(0) };
        let completions = queue.completions;
        if value != queue.doorbell && !queue.ring(value) {
            session.events.happen(Event::INVALID_DOORBELL_VALUE);
        }
        let waiting = queue.waiting();
        session.put_off_event(id, memory)?;
        if session.wants_head(completions, waiting, bar) {
            session.look_at_head(completions, bar, memory)?;
        }
        // Whatever files are busy with, there is room for what could end it.
        if waiting == 0 || id != 0 && !self.controller.has_room() {
            return Ok(0);
        }
        let Controller { memory, session, .. } = &mut self.controller;
        let Some(session) = session else { return Ok(0) };
        let room = session.completion_queue(completions).map_or(0, |queue| queue.room());
        let Some(queue) = session.submissions[usize::from(id)].as_mut().filter(|_| room > 0) else { return Ok(0) };
        let mut commands = [Command::new_zeroed(); BURST];
        memory.set_command(None);
        let commands = queue.fetch(memory, &mut commands[..limit.min(room)])?;
        for (done, command) in (1..).zip(commands) {
            let session = self.controller.session.as_mut();
            let Some(queue) = session.and_then(|session| session.submissions[usize::from(id)].as_mut()) else { break };
            queue.advance();
            self.take(id, completions, command);
            if self.is_interrupted() || id != 0 && !self.controller.has_room() {
                return Ok(done);
            }
        }
        Ok(commands.len())
    }

    /// A command has come.
    fn take(&mut self, id: u16, completions: u16, command: &Command) {
        let misfortune = self.controller.plan.next(id == 0, command.opcode);
        self.controller.memory.set_command(Some((id, command.identifier.get())));
        let Some(session) = &mut self.controller.session else { return };
        let ticket = Ticket {
            session: session.number,
            queue: id,
            completions,
            identifier: command.identifier.get(),
            namespace: command.namespace.get(),
            misfortune,
        };
        match misfortune {
            Some(Misfortune::Status(status)) => return self.controller.complete(ticket, status, 0),
            Some(Misfortune::Timeout) => return session.complete(ticket, Status::SUCCESS, 0),
            Some(Misfortune::Remove) => return self.vanish(),
            _ => {}
        }
        let waits = session.fused.iter().position(|(queue, ..)| *queue == id);
        let first = waits.map(|index| session.fused.remove(index));
        let is_taken = self.controller.tasks.has(ticket.session, id, ticket.identifier)
            || id == 0 && session.events.has(ticket.identifier)
            || first.is_some_and(|(_, other, _)| other.identifier == ticket.identifier);
        if is_taken {
            if let Some((_, other, _)) = first {
                self.controller.complete(other, Status::ABORTED_FUSED_MISSING, 0);
            }
            return self.controller.complete(ticket, Status::COMMAND_ID_CONFLICT, 0);
        }
        match (first, command.fuse()) {
            (Some((_, other, first)), Fuse::Second) => {
                let [one, two] = self.controller.execute_fused(&first, command);
                self.controller.complete(other, one, 0);
                self.controller.complete(ticket, two, 0);
                return;
            }
            (Some((_, other, _)), _) => self.controller.complete(other, Status::ABORTED_FUSED_MISSING, 0),
            (None, Fuse::Second) => {
                return self.controller.complete(ticket, Status::ABORTED_FUSED_MISSING, 0);
            }
            (None, _) => {}
        }
        match command.fuse() {
            Fuse::First if id != 0 && command.opcode == nvm::COMPARE => {
                if let Some(session) = &mut self.controller.session {
                    session.fused.push((id, ticket, *command));
                }
            }
            Fuse::Normal => {
                let executed = if id == 0 {
                    self.controller.execute_admin(ticket, command)
                } else {
                    self.controller.execute_io(ticket, command)
                };
                match executed {
                    Ok(Outcome::Done(result)) => self.controller.complete(ticket, Status::SUCCESS, result),
                    Ok(Outcome::Pending) => {}
                    Err(status) => self.controller.complete(ticket, status, 0),
                }
            }
            _ => self.controller.complete(ticket, Status::INVALID_FIELD, 0),
        }
    }

    /// The device is taken out of its slot.
    fn vanish(&mut self) {
        self.seen.gone = true;
        self.end_session();
        self.controller.bar.order(|state| state.is_gone = true);
    }

    /// Sleeps until there is something to do.
    fn sleep(&mut self) {
        let Controller { bar, session, engine, .. } = &mut self.controller;
        let mut longest = session.as_ref().and_then(Session::due);
        let mut at_most = |time| longest = Some(longest.map_or(time, |longest: Duration| longest.min(time)));
        if session.is_some() && bar.doorbell_memory().is_some() {
            at_most(self.pause);
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
        if engine.under_way() > 0 {
            // What the kernel would not take may be taken later, and there may be nothing that tells.
            at_most(LONGEST_PAUSE);
        }
        if self.announce().is_err() {
            return self.fail();
        }
        let (seen, is_serving) = (self.seen.orders, self.is_serving());
        let Controller { bar, session, memory, engine, .. } = &mut self.controller;
        let files = if engine.under_way() > 0 { engine.readiness() } else { None };
        bar.bell.sleep(files.map(Bell::readable), longest, || {
            // Doorbells that the worker does not serve would keep it awake.
            let mut is_rung =
                || session.as_ref().is_some_and(|session| bar.has_stray() || session.is_rung(bar, memory));
            seen != Some(bar.orders()) || is_serving && is_rung()
        });
    }

    /// Sends interrupts that are due, and looks whether the host is alive. Returns whether it is not, or cannot be
    /// told.
    fn look_at_time(&mut self) -> bool {
        let Controller { bar, memory, session, .. } = &mut self.controller;
        let Some(session) = session else { return false };
        let is_dead =
            session.send_due(bar, memory).is_err() || session.alive_until.is_some_and(|until| until <= Instant::now());
        if is_dead {
            self.fail();
        }
        is_dead
    }

    /// Says in the event indexes which changes of doorbells in the host's memory the controller wants to be told.
    fn announce(&mut self) -> Result<(), Status> {
        let Controller { memory, session, bar, .. } = &mut self.controller;
        session.as_mut().map_or(Ok(()), |session| session.announce(bar, memory))
    }
}
