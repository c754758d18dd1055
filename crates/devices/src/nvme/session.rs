//! What a controller has while it is enabled: queues, event requests, and features as they are now.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use ioasid_vfio::BarView;

use super::bar::{Bar, Doorbell, PAIRS};
use super::controller::Ticket;
use super::fail::Misfortune;
use super::features::{Features, id};
use super::memory::Memory;
use super::queue::{BURST, CompletionQueue, SubmissionQueue};
use super::spec::command::Command;
use super::spec::log::Event;
use super::spec::status::Status;

/// Most event requests at once.
pub(super) const EVENT_REQUESTS: usize = 4;
/// Most events that wait for a request; the next are lost.
const MOST_EVENTS: usize = 32;

/// The doorbells that lie in the host's memory: where they are, and where the controller says which change it wants to
/// be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shadow {
    pub(super) doorbells: u64,
    pub(super) events: u64,
}

/// Events, and the requests for them.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<Ticket>,
    waiting: VecDeque<Event>,
    /// Types of events that were told: the next one waits until its page is read.
    masked: u8,
}

impl Events {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn request(&mut self, ticket: Ticket) {
        self.requests.push_back(ticket);
    }

    /// Takes back a request.
    pub(super) fn withdraw(&mut self, identifier: u16) -> Option<Ticket> {
        let index = self.requests.iter().position(|ticket| ticket.identifier == identifier)?;
        self.requests.remove(index)
    }

    pub(super) fn has(&self, identifier: u16) -> bool {
        self.requests.iter().any(|ticket| ticket.identifier == identifier)
    }

    pub(super) fn happen(&mut self, event: Event) {
        if self.waiting.len() < MOST_EVENTS && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// The page was read: events of these types may be told again.
    pub(super) fn unmask(&mut self, page: u8) {
        for event in [Event::INVALID_DOORBELL, Event::TEMPERATURE, Event::NAMESPACE_CHANGED, Event::SANITIZE_DONE] {
            if event.page == page {
                self.masked &= !(1 << event.kind);
            }
        }
    }

    /// The next event to tell, and the request to tell it by.
    pub(super) fn next(&mut self) -> Option<(Ticket, Event)> {
        let masked = self.masked;
        let index = self.waiting.iter().position(|event| masked & 1 << event.kind == 0)?;
        let ticket = self.requests.pop_front()?;
        let event = self.waiting.remove(index)?;
        self.masked |= 1 << event.kind;
        Some((ticket, event))
    }
}

/// An enabled controller.
pub(super) struct Session {
    /// Which it is: the number of resets before it.
    pub(super) number: u64,
    pub(super) page_shift: u32,
    /// Weighted round robin rather than round robin.
    pub(super) is_weighted: bool,
    pub(super) submissions: Vec<Option<SubmissionQueue>>,
    pub(super) completions: Vec<Option<CompletionQueue>>,
    /// I/O queues that there are, in the order in which they are served.
    pub(super) served: Vec<u16>,
    /// Which of these is next.
    pub(super) turn: usize,
    /// Completion queues that have something to be written, or to be told.
    dirty: Vec<u16>,
    pub(super) shadow: Option<Shadow>,
    /// The page of doorbells, where that is memory.
    page: Option<BarView>,
    pub(super) events: Events,
    pub(super) features: Features,
    /// The first of two fused commands, by queue.
    pub(super) fused: Vec<(u16, Ticket, Command)>,
    /// Completions to be written after the next of their queue.
    late: Vec<(Ticket, Status, u64)>,
    /// Commands that are never completed, unless they are aborted.
    lost: Vec<Ticket>,
    /// When coalesced interrupts are due.
    deadlines: Vec<(u16, Instant)>,
    /// When the host must have said that it is alive.
    pub(super) alive_until: Option<Instant>,
    /// It takes no more commands: the host has shut it down.
    pub(super) is_shut_down: bool,
}

impl Session {
    pub(super) fn new(
        number: u64,
        page_shift: u32,
        is_weighted: bool,
        admin: (SubmissionQueue, CompletionQueue),
        features: Features,
        page: Option<BarView>,
    ) -> Self {
        let mut session = Self {
            number,
            page_shift,
            is_weighted,
            submissions: Vec::new(),
            completions: Vec::new(),
            served: Vec::new(),
            turn: 0,
            dirty: Vec::new(),
            shadow: None,
            page,
            events: Events::default(),
            features,
            fused: Vec::new(),
            late: Vec::new(),
            lost: Vec::new(),
            deadlines: Vec::new(),
            alive_until: None,
            is_shut_down: false,
        };
        session.submissions.resize_with(PAIRS, || None);
        session.completions.resize_with(PAIRS, || None);
        session.submissions[0] = Some(admin.0);
        session.completions[0] = Some(admin.1);
        session
    }

    pub(super) fn completion_queue(&mut self, id: u16) -> Option<&mut CompletionQueue> {
        self.completions.get_mut(usize::from(id))?.as_mut()
    }

    /// How many commands of a queue are next; `None` if it is not of those that are asked for.
    pub(super) fn credit(&self, id: u16, urgent: bool) -> Option<usize> {
        let queue = self.submissions[usize::from(id)].as_ref()?;
        if urgent != (self.is_weighted && queue.priority == 0) {
            return None;
        }
        let full = if self.is_weighted { self.features.weight(queue.priority) } else { self.features.burst() };
        Some(if queue.credit > 0 { queue.credit } else { full.min(BURST) })
    }

    /// Some commands were served of those that were next. Returns whether the queue has more that are.
    pub(super) fn spend(&mut self, id: u16, credit: usize, served: usize) -> bool {
        let Some(queue) = &mut self.submissions[usize::from(id)] else { return false };
        queue.credit = if queue.waiting() > 0 { credit - served } else { 0 };
        queue.credit > 0
    }

    /// What the doorbell of a queue holds: in the host's memory if it has moved them there.
    pub(super) fn doorbell(&self, doorbell: Doorbell, bar: &Bar, memory: &mut Memory) -> Result<u32, Status> {
        let is_admin = doorbell.index() < 2;
        let Some(shadow) = self.shadow.filter(|_| !is_admin) else {
            let offset = 4 * doorbell.index() as u64;
            return Ok(self.page.as_ref().map_or_else(|| bar.doorbell(doorbell), |page| page.load(offset)));
        };
        let mut value = [0; 4];
        memory.read(shadow.doorbells + 4 * doorbell.index() as u64, &mut value)?;
        Ok(u32::from_le_bytes(value))
    }

    /// A command has ended.
    pub(super) fn complete(&mut self, ticket: Ticket, status: Status, result: u64) {
        match ticket.misfortune {
            Some(Misfortune::Timeout) => {
                self.lost.push(ticket);
                return;
            }
            Some(Misfortune::Late) => {
                self.late.push((Ticket { misfortune: None, ..ticket }, status, result));
                return;
            }
            _ => {}
        }
        self.push(ticket, status, result);
        if ticket.misfortune == Some(Misfortune::Twice) {
            self.push(ticket, status, result);
        }
        while let Some(index) = self.late.iter().position(|(late, ..)| late.queue == ticket.queue) {
            let (ticket, status, result) = self.late.remove(index);
            self.push(ticket, status, result);
        }
    }

    fn push(&mut self, ticket: Ticket, status: Status, result: u64) {
        let head = self.submissions[usize::from(ticket.queue)].as_ref().map_or(0, SubmissionQueue::head);
        let Some(queue) = self.completion_queue(ticket.completions) else { return };
        queue.push(ticket.queue, head, ticket.identifier, status, result);
        if !self.dirty.contains(&ticket.completions) {
            self.dirty.push(ticket.completions);
        }
    }

    /// Takes back a command that waits for something else than files.
    pub(super) fn withdraw(&mut self, queue: u16, identifier: u16) -> Option<Ticket> {
        let is_it = |ticket: &Ticket| (ticket.queue, ticket.identifier) == (queue, identifier);
        if let Some(index) = self.lost.iter().position(is_it) {
            return Some(Ticket { misfortune: None, ..self.lost.swap_remove(index) });
        }
        if let Some(index) = self.fused.iter().position(|(_, ticket, _)| is_it(ticket)) {
            return Some(self.fused.swap_remove(index).1);
        }
        if queue == 0 { self.events.withdraw(identifier) } else { None }
    }

    /// Something has happened: the host is told if it wants to be.
    pub(super) fn happen(&mut self, event: Event) {
        let wanted = self.features.get(id::ASYNC_EVENTS);
        let bit = match event {
            Event::TEMPERATURE => 1 << 1,
            Event::NAMESPACE_CHANGED => 1 << 8,
            _ => 0,
        };
        if bit == 0 || wanted & bit != 0 {
            self.events.happen(event);
        }
    }

    /// Tells events by requests for them.
    pub(super) fn tell_events(&mut self) {
        while let Some((ticket, event)) = self.events.next() {
            self.complete(ticket, Status::SUCCESS, event.result());
        }
    }

    /// Looks how far the host has taken completions of a queue, and drives the line by that. Where the host moves
    /// heads in its own memory, the controller asks it to tell the next move by a register before the line goes up: the
    /// line goes down with that write, and a VMM may take the write for the end of the interrupt.
    pub(super) fn look_at_head(&mut self, id: u16, bar: &Bar, memory: &mut Memory) -> Result<(), Status> {
        // A host that moves it each time has its reasons.
        const TRIES: usize = 8;
        let by_line = !bar.sends_messages();
        for attempt in 1..=TRIES {
            let is_last = attempt == TRIES;
            let moves = by_line.then(|| bar.moves(id));
            let value = self.doorbell(Doorbell::Head(id), bar, memory)?;
            let asks = self.shadow.filter(|_| id != 0 && by_line);
            let Some(queue) = self.completion_queue(id) else { return Ok(()) };
            let is_moved = queue.doorbell != value;
            let is_wrong = is_moved && !queue.ring(value);
            queue.moves = moves.unwrap_or_default();
            let (calls, vector) = (queue.calls(), queue.vector);
            let asks = asks.filter(|_| calls && queue.event != value);
            if asks.is_some() {
                queue.event = value;
            }
            if is_wrong {
                self.happen(Event::INVALID_DOORBELL_VALUE);
            }
            if let Some(shadow) = asks {
                memory.write(shadow.events + 4 * Doorbell::Head(id).index() as u64, &value.to_le_bytes())?;
                // The host stores its head first, and then looks; so one of the two sees the other.
                fence(Ordering::SeqCst);
            }
            let is_so = asks.is_none() || is_last;
            if is_so && (!by_line && !is_moved || bar.set_waiting(id, vector, calls, moves.filter(|_| !is_last))) {
                break;
            }
        }
        Ok(())
    }

    /// Writes completions, and interrupts. Returns whether there was something to write.
    pub(super) fn write_completions(&mut self, bar: &Bar, memory: &mut Memory) -> Result<bool, Status> {
        let mut any = false;
        let mut index = 0;
        while let Some(id) = self.dirty.get(index).copied() {
            let Some(queue) = self.completions[usize::from(id)].as_mut() else {
                self.dirty.remove(index);
                continue;
            };
            let written = queue.write_pending(memory)?;
            any |= written > 0;
            if written > 0 && queue.interrupts {
                match self.features.coalescing(id, queue.vector) {
                    Some((threshold, time)) if queue.untold() < threshold => {
                        if !self.deadlines.iter().any(|(queue, _)| *queue == id) {
                            self.deadlines.push((id, Instant::now() + time));
                        }
                    }
                    _ => {
                        self.deadlines.retain(|(queue, _)| *queue != id);
                        self.interrupt(id, bar, memory)?;
                    }
                }
            }
            if self.completion_queue(id).is_some_and(|queue| queue.has_pending()) {
                index += 1;
            } else {
                self.dirty.remove(index);
            }
        }
        Ok(any)
    }

    /// Interrupts for what was written to a queue.
    fn interrupt(&mut self, id: u16, bar: &Bar, memory: &mut Memory) -> Result<(), Status> {
        let Some(queue) = self.completion_queue(id) else { return Ok(()) };
        queue.tell();
        if !bar.sends_messages() {
            self.look_at_head(id, bar, memory)
        } else {
            if queue.calls() {
                bar.send(id, queue.vector);
            }
            Ok(())
        }
    }

    /// Sends the coalesced interrupts that are due, where the host has not taken what they are for.
    pub(super) fn send_due(&mut self, bar: &Bar, memory: &mut Memory) -> Result<(), Status> {
        if self.deadlines.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let due: Vec<_> = self.deadlines.extract_if(.., |(_, due)| *due <= now).collect();
        for (id, _) in due {
            self.look_at_head(id, bar, memory)?;
            self.interrupt(id, bar, memory)?;
        }
        Ok(())
    }

    /// When there is something to do that no one tells of.
    pub(super) fn due(&self) -> Option<Duration> {
        let next = self.deadlines.iter().map(|(_, due)| *due).chain(self.alive_until).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Whether the controller has to know how far the host has taken completions: there may be no room for those of
    /// `waiting` commands, or the line depends on it. Where looking costs nothing, a doorbell may be wrong.
    pub(super) fn wants_head(&self, id: u16, waiting: usize, bar: &Bar) -> bool {
        let Some(queue) = self.completions.get(usize::from(id)).and_then(Option::as_ref) else { return false };
        self.shadow.is_none()
            || queue.room() < waiting
            || queue.has_pending()
            || !bar.sends_messages() && queue.interrupts && queue.unread() > 0
    }

    /// Whether a doorbell has changed since the controller looked at it.
    pub(super) fn is_rung(&self, bar: &Bar, memory: &mut Memory) -> bool {
        std::iter::once(&0).chain(&self.served).any(|id| {
            let Some(queue) = &self.submissions[usize::from(*id)] else { return false };
            let (completions, waiting) = (queue.completions, queue.waiting());
            // What cannot be read is found in the next round.
            if self.doorbell(Doorbell::Tail(*id), bar, memory) != Ok(queue.doorbell) {
                return true;
            }
            let Some(queue) = &self.completions[usize::from(completions)] else { return false };
            let is_down = !bar.sends_messages() && bar.moves(completions) != queue.moves;
            self.wants_head(completions, waiting, bar)
                && (is_down || self.doorbell(Doorbell::Head(completions), bar, memory) != Ok(queue.doorbell))
        })
    }

    /// Says in the event indexes which changes of doorbells in the host's memory the controller wants to be told.
    pub(super) fn announce(&mut self, bar: &Bar, memory: &mut Memory) -> Result<(), Status> {
        let Some(shadow) = self.shadow else { return Ok(()) };
        let at = |doorbell: Doorbell| shadow.events + 4 * doorbell.index() as u64;
        for id in self.served.iter().copied() {
            let Some(queue) = &mut self.submissions[usize::from(id)] else { continue };
            let (completions, waiting) = (queue.completions, queue.waiting());
            if queue.event != queue.doorbell {
                queue.event = queue.doorbell;
                memory.write(at(Doorbell::Tail(id)), &queue.event.to_le_bytes())?;
            }
            let wants_head = self.wants_head(completions, waiting, bar);
            let Some(queue) = &mut self.completions[usize::from(completions)] else { continue };
            if wants_head && queue.event != queue.doorbell {
                queue.event = queue.doorbell;
                memory.write(at(Doorbell::Head(completions)), &queue.event.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Keeps the event index of a queue behind its tail while the controller looks at that. Where the tail came around
    /// to it, the host would ring by a register, which is the slowest that it can do.
    pub(super) fn put_off_event(&mut self, id: u16, memory: &mut Memory) -> Result<(), Status> {
        let Some(shadow) = self.shadow.filter(|_| id != 0) else { return Ok(()) };
        let Some(queue) = &mut self.submissions[usize::from(id)] else { return Ok(()) };
        let Some(event) = queue.later_event() else { return Ok(()) };
        queue.event = event;
        memory.write(shadow.events + 4 * Doorbell::Tail(id).index() as u64, &event.to_le_bytes())
    }

    /// A completion queue is there no more.
    pub(super) fn forget_completions(&mut self, id: u16) {
        self.completions[usize::from(id)] = None;
        self.deadlines.retain(|(queue, _)| *queue != id);
        self.dirty.retain(|queue| *queue != id);
    }

    /// A submission queue is there no more, and neither is what it held back.
    pub(super) fn forget_queue(&mut self, id: u16) {
        self.fused.retain(|(queue, ..)| *queue != id);
        self.late.retain(|(ticket, ..)| ticket.queue != id);
        self.lost.retain(|ticket| ticket.queue != id);
        self.served.retain(|queue| *queue != id);
    }
}
