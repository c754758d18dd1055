//! Fault queues: groups of page requests, until somebody answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Deadlines, Notify, PageGroup, PageRequest, PageResponse};
use crate::endpoint::Endpoint;
use crate::ids::ObjectId;
use crate::sync::{Mutex, MutexGuard};
use crate::types::Pasid;

/// A group that was taken out of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenGroup {
    /// What it is answered by.
    pub cookie: u32,
    /// The id of the device in its context.
    pub device: u32,
    /// The device's own number for the group.
    pub number: u32,
    /// What it asks for.
    pub requests: Vec<PageRequest>,
}

/// The next group has more requests than there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the next group has {0} requests")]
pub struct GroupTooLarge(pub usize);

/// No group with this cookie waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no group of page requests with cookie {0} waits for an answer")]
pub struct UnknownCookie(pub u32);

/// How much a queue takes, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultQueueOptions {
    /// Groups that may wait at a time, taken or not. Further ones are answered with [`PageResponse::Failure`].
    pub depth: usize,
    /// How long a group waits for its answer, before it is answered with [`PageResponse::Failure`].
    pub timeout: Duration,
}

impl Default for FaultQueueOptions {
    /// 4096 groups, ten seconds.
    fn default() -> Self {
        Self { depth: 4096, timeout: Duration::from_secs(10) }
    }
}

/// What became of groups that nobody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueCounts {
    /// They found the queue full.
    pub overflowed: u64,
    /// They waited too long.
    pub timed_out: u64,
}

/// A group, and the attachment that it came by.
pub(super) struct Pending {
    pub(super) endpoint: Arc<Endpoint>,
    /// Of the attachment: a guest's own table for all PASIDs has none.
    pub(super) pasid: Option<Pasid>,
    pub(super) device: u32,
    pub(super) group: PageGroup,
}

impl Pending {
    fn is_of(&self, endpoint: &Endpoint, pasid: Option<Pasid>) -> bool {
        std::ptr::eq(&*self.endpoint, endpoint) && self.pasid == pasid
    }
}

/// A group, and until when it waits.
struct Waiting {
    pending: Pending,
    deadline: Instant,
}

/// A group was put in, and nobody has been told of it yet.
#[must_use]
pub(super) struct Arrival {
    /// When somebody has to look at the deadlines, if nobody does so far.
    watch: Option<Instant>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    taken: BTreeMap<u32, Waiting>,
    /// What was given out last.
    last_cookie: u32,
    counts: QueueCounts,
    /// Whether somebody looks at the deadlines.
    watched: bool,
}

/// A queue of page requests.
pub struct FaultQueue {
    id: ObjectId,
    options: FaultQueueOptions,
    deadlines: Deadlines,
    state: Mutex<State>,
    arrived: Notify,
}

impl FaultQueue {
    pub(crate) fn new(id: ObjectId, options: FaultQueueOptions, deadlines: Deadlines) -> Self {
        Self { id, options, deadlines, state: Mutex::default(), arrived: Notify::default() }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `tell` called, by whoever asks for pages, when there is a group to be taken.
    pub fn on_arrival(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        self.arrived.set(tell);
    }

    /// Whether there is a group to be taken.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// What became of groups that nobody answered.
    #[must_use]
    pub fn counts(&self) -> QueueCounts {
        self.lock().counts
    }

    /// Takes the next group, if it has no more than `most` requests. It waits for [`FaultQueue::answer`] then.
    ///
    /// # Errors
    /// [`GroupTooLarge`]; the group stays.
    pub fn take(&self, most: usize) -> Result<Option<TakenGroup>, GroupTooLarge> {
        let mut state = self.lock();
        let Some(next) = state.waiting.pop_front() else { return Ok(None) };
        let group = &next.pending.group;
        if group.requests.len() > most {
            let requests = group.requests.len();
            state.waiting.push_front(next);
            return Err(GroupTooLarge(requests));
        }
        // In turn: a late answer to a group that was given up is not taken for one to the next.
        let mut cookie = state.last_cookie.wrapping_add(1);
        while cookie == 0 || state.taken.contains_key(&cookie) {
            cookie = cookie.wrapping_add(1);
        }
        state.last_cookie = cookie;
        let requests = group.requests.clone();
        let taken = TakenGroup { cookie, device: next.pending.device, number: group.number, requests };
        state.taken.insert(cookie, next);
        Ok(Some(taken))
    }

    /// Answers a group that was taken.
    ///
    /// # Errors
    /// [`UnknownCookie`], also if it was answered before, or its device does not wait any more.
    pub fn answer(&self, cookie: u32, response: PageResponse) -> Result<(), UnknownCookie> {
        let waiting = self.lock().taken.remove(&cookie).ok_or(UnknownCookie(cookie))?;
        (waiting.pending.group.answer)(response);
        Ok(())
    }

    /// Puts a group into the queue, if there is room; whoever does tells of it when no lock is held.
    pub(super) fn push(&self, pending: Pending) -> Result<Arrival, Pending> {
        let mut state = self.lock();
        if state.waiting.len() + state.taken.len() >= self.options.depth {
            state.counts.overflowed += 1;
            return Err(pending);
        }
        let deadline = Instant::now() + self.options.timeout;
        state.waiting.push_back(Waiting { pending, deadline });
        let unwatched = !std::mem::replace(&mut state.watched, true);
        Ok(Arrival { watch: unwatched.then_some(deadline) })
    }

    /// Tells of a group that was put in.
    pub(super) fn tell(self: &Arc<Self>, Arrival { watch }: Arrival) {
        if watch.is_some_and(|deadline| !self.deadlines.watch(self, deadline)) {
            // Nobody would see to it that it is answered.
            self.expire(None);
        }
        self.arrived.tell();
    }

    /// Gives up on what should have been answered by `now`, or on everything, and says when to look again.
    pub(super) fn expire(&self, now: Option<Instant>) -> Option<Instant> {
        let late = |waiting: &Waiting| now.is_none_or(|now| waiting.deadline <= now);
        let (gone, next) = {
            let mut state = self.lock();
            let State { waiting, taken, counts, watched, .. } = &mut *state;
            let mut gone: Vec<Waiting> = Vec::new();
            while waiting.front().is_some_and(late) {
                gone.extend(waiting.pop_front());
            }
            gone.extend(taken.extract_if(.., |_, waiting| late(waiting)).map(|(_, waiting)| waiting));
            counts.timed_out += gone.len() as u64;
            let next = waiting.iter().take(1).chain(taken.values()).map(|waiting| waiting.deadline).min();
            *watched = next.is_some();
            (gone, next)
        };
        gone.into_iter().for_each(|waiting| (waiting.pending.group.answer)(PageResponse::Failure));
        next
    }

    /// Gives up on everything that fits.
    fn dismiss(&self, fits: impl Fn(&Pending) -> bool) {
        let mut dismissed = Vec::new();
        {
            let State { waiting, taken, .. } = &mut *self.lock();
            for each in std::mem::take(waiting) {
                if fits(&each.pending) { dismissed.push(each) } else { waiting.push_back(each) }
            }
            dismissed.extend(taken.extract_if(.., |_, each| fits(&each.pending)).map(|(_, each)| each));
        }
        dismissed.into_iter().for_each(|each| (each.pending.group.answer)(PageResponse::Invalid));
    }

    /// An attachment is gone: nobody waits for what it asked for.
    pub(crate) fn dismiss_attachment(&self, endpoint: &Endpoint, pasid: Option<Pasid>) {
        self.dismiss(|pending| pending.is_of(endpoint, pasid));
    }

    /// A device gives up on all that it asked for.
    pub(crate) fn dismiss_endpoint(&self, endpoint: &Endpoint) {
        self.dismiss(|pending| std::ptr::eq(&*pending.endpoint, endpoint));
    }

    /// Nobody answers any more.
    pub(crate) fn close(&self) {
        self.dismiss(|_| true);
    }
}
