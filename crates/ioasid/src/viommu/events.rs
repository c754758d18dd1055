//! What a guest is to be told by its virtual IOMMU.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use super::Viommu;
use crate::base::ids::ObjectId;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::fault::Notify;

/// What comes out of an event queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts all events of the queue, also those that were lost, up to 2^31 - 1 and then again from 0.
    pub sequence: u32,
    /// What happened, in the form of the queue's kind; `None` says that this event, and perhaps some before, was lost.
    pub data: Option<Vec<u8>>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// The number of the last event, if it was lost and none came after.
    lost: Option<u32>,
    next: u32,
}

/// A queue of events of one kind. What finds it full is lost, and counted.
pub struct EventQueue {
    id: ObjectId,
    kind: u32,
    depth: usize,
    viommu: Weak<Viommu>,
    state: Mutex<State, rank::Events>,
    arrived: Notify,
}

impl fmt::Debug for EventQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventQueue").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl EventQueue {
    pub(crate) fn new(id: ObjectId, kind: u32, depth: usize, viommu: &Arc<Viommu>) -> Self {
        let viommu = Arc::downgrade(viommu);
        Self { id, kind, depth, viommu, state: Mutex::default(), arrived: Notify::default() }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, State, rank::Events> {
        self.state.lock()
    }

    /// Has `tell` called, by the thread that reports an event, when there is one.
    pub fn on_arrival(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        self.arrived.set(tell);
    }

    /// Notes an event.
    pub fn report(&self, data: &[u8]) {
        {
            let mut state = self.lock();
            let sequence = state.next;
            state.next = (sequence + 1) & (u32::MAX >> 1);
            if state.events.len() == self.depth {
                state.lost = Some(sequence);
            } else {
                // Its number says what was lost before.
                state.lost = None;
                state.events.push_back(Event { sequence, data: Some(data.to_vec()) });
            }
        }
        self.arrived.tell();
    }

    /// Whether there is something to be taken.
    #[must_use]
    pub fn has_events(&self) -> bool {
        let state = self.lock();
        !state.events.is_empty() || state.lost.is_some()
    }

    /// Takes the next event if it `fits`.
    pub fn take_if(&self, fits: impl FnOnce(&Event) -> bool) -> Option<Event> {
        let mut state = self.lock();
        match state.events.front() {
            Some(event) => fits(event).then(|| state.events.pop_front())?,
            None => {
                let event = Event { sequence: state.lost?, data: None };
                fits(&event).then(|| {
                    state.lost = None;
                    event
                })
            }
        }
    }

    /// No thread reports events to it any more.
    pub(crate) fn remove(&self) {
        if let Some(viommu) = self.viommu.upgrade() {
            viommu.lock().events.remove(&self.kind);
        }
    }
}
