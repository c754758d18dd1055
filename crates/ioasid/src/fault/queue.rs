//! Fault queues: groups of page requests, until a handler answers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Deadlines, Notify, PageGroup, PageRequest, PageResponse};
use crate::base::callback::{self, Each};
use crate::base::ids::ObjectId;
use crate::base::lock::{Mutex, MutexGuard};
use crate::base::rank;
use crate::base::sync::{AtomicUsize, Ordering};
use crate::base::types::Pasid;
use crate::gate::walker::Walker;

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
#[non_exhaustive]
pub struct FaultQueueOptions {
    /// Groups that may wait at a time, taken or not. Further ones are answered with [`PageResponse::Failure`].
    pub depth: usize,
    /// How long a group waits for its answer, before it is answered with [`PageResponse::Failure`];
    /// [`Duration::MAX`] for as long as it takes.
    pub timeout: Duration,
}

impl Default for FaultQueueOptions {
    /// 4096 groups, ten seconds.
    fn default() -> Self {
        Self { depth: 4096, timeout: Duration::from_secs(10) }
    }
}

impl FaultQueueOptions {
    /// Groups that may wait at a time.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        Self { depth, ..self }
    }

    /// How long a group waits for its answer; [`Duration::MAX`] for as long as it takes.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// What became of groups that no handler answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueCounts {
    /// They found the queue full.
    pub overflowed: u64,
    /// They waited too long.
    pub timed_out: u64,
}

/// A group, and the attachment that it came by.
pub(crate) struct Pending {
    pub(crate) walker: Arc<dyn Walker>,
    /// Of the attachment: a guest's own table for all PASIDs has none.
    pub(crate) pasid: Option<Pasid>,
    pub(crate) device: u32,
    pub(crate) group: PageGroup,
}

impl Pending {
    fn is_of(&self, walker: &dyn Walker) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.walker), walker)
    }
}

/// A group, and until when it waits.
struct Waiting {
    pending: Pending,
    /// `None` if it waits for as long as it takes.
    deadline: Option<Instant>,
}

/// A group was put in, and the handler has not been told of it yet.
#[must_use]
pub(crate) struct Arrival {
    /// When the thread for deadlines has to look at the queue, if it does not so far.
    watch: Option<Instant>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    taken: BTreeMap<u32, Waiting>,
    /// What was given out last.
    last_cookie: u32,
    counts: QueueCounts,
    /// Whether the thread for deadlines looks at the queue.
    watched: bool,
}

/// The state of a queue, under its lock.
struct Locked<'a> {
    /// Until this is dropped.
    state: Option<MutexGuard<'a, State, rank::Queue>>,
    /// Groups that no handler had taken.
    before: usize,
    arrivals: &'a AtomicUsize,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.state {
            Some(state) => state,
            None => unreachable!("it is held until this is dropped"),
        }
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.state {
            Some(state) => state,
            None => unreachable!("it is held until this is dropped"),
        }
    }
}

impl Drop for Locked<'_> {
    /// Says how many have arrived, or are gone. After the lock: a handler that looks, and finds one, wants it.
    fn drop(&mut self) {
        let more = self.waiting.len().wrapping_sub(self.before);
        drop(self.state.take());
        if more != 0 {
            self.arrivals.fetch_add(more, Ordering::Release);
        }
    }
}

/// A queue of page requests.
pub struct FaultQueue {
    id: ObjectId,
    options: FaultQueueOptions,
    deadlines: Deadlines,
    state: Mutex<State, rank::Queue>,
    /// Groups that no handler has taken, less those that were taken before they were counted; to be read without the
    /// lock, as a handler that looks again and again holds up no device.
    arrivals: AtomicUsize,
    arrived: Notify,
}

impl fmt::Debug for FaultQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultQueue")
            .field("id", &self.id)
            .field("options", &self.options)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl FaultQueue {
    pub(crate) fn new(id: ObjectId, options: FaultQueueOptions, deadlines: Deadlines) -> Self {
        Self {
            id,
            options,
            deadlines,
            state: Mutex::default(),
            arrivals: AtomicUsize::new(0),
            arrived: Notify::default(),
        }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    fn lock(&self) -> Locked<'_> {
        let state = self.state.lock();
        Locked { before: state.waiting.len(), state: Some(state), arrivals: &self.arrivals }
    }

    /// Has `tell` called, by the thread that asks for pages, when there is a group to be taken.
    pub fn on_arrival(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        self.arrived.set(tell);
    }

    /// Whether there is a group to be taken: a hint, as another thread may take it. Waits for no lock.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        self.arrivals.load(Ordering::Acquire).cast_signed() > 0
    }

    /// What became of groups that no handler answered.
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
        callback::call(|| (waiting.pending.group.answer)(response));
        Ok(())
    }

    /// Puts a group into the queue, if there is room; the caller tells of it when no lock is held.
    pub(crate) fn push(&self, pending: Pending) -> Result<Arrival, Pending> {
        let mut state = self.lock();
        if state.waiting.len() + state.taken.len() >= self.options.depth {
            state.counts.overflowed += 1;
            return Err(pending);
        }
        let deadline = Instant::now().checked_add(self.options.timeout);
        state.waiting.push_back(Waiting { pending, deadline });
        let watch = deadline.filter(|_| !std::mem::replace(&mut state.watched, true));
        Ok(Arrival { watch })
    }

    /// Tells of a group that was put in.
    pub(crate) fn tell(self: &Arc<Self>, Arrival { watch }: Arrival) {
        if watch.is_some_and(|deadline| !self.deadlines.watch(self, deadline)) {
            // No thread would see to it that it is answered.
            self.expire(None);
        }
        self.arrived.tell();
    }

    /// Gives up on what should have been answered by `now`, or on everything, and says when to look again.
    pub(super) fn expire(&self, now: Option<Instant>) -> Option<Instant> {
        let late = |waiting: &Waiting| now.is_none_or(|now| waiting.deadline.is_some_and(|deadline| deadline <= now));
        let (gone, next) = {
            let mut state = self.lock();
            let State { waiting, taken, counts, watched, .. } = &mut *state;
            let mut gone: Vec<Waiting> = Vec::new();
            while waiting.front().is_some_and(late) {
                gone.extend(waiting.pop_front());
            }
            gone.extend(taken.extract_if(.., |_, waiting| late(waiting)).map(|(_, waiting)| waiting));
            counts.timed_out += gone.len() as u64;
            let next = waiting.iter().take(1).chain(taken.values()).filter_map(|waiting| waiting.deadline).min();
            *watched = next.is_some();
            (gone, next)
        };
        // One that panics is a bug of its model's, of which the panic hook tells: the others are answered all the same.
        for waiting in gone {
            callback::call_contained(|| (waiting.pending.group.answer)(PageResponse::Failure));
        }
        next
    }

    /// Gives up on everything that fits, and has it answered by `dismissed`.
    fn dismiss(&self, dismissed: &mut Dismissed, fits: impl Fn(&Pending) -> bool) {
        let State { waiting, taken, .. } = &mut *self.lock();
        for each in std::mem::take(waiting) {
            if fits(&each.pending) { dismissed.0.push(each) } else { waiting.push_back(each) }
        }
        dismissed.0.extend(taken.extract_if(.., |_, each| fits(&each.pending)).map(|(_, each)| each));
    }

    /// An attachment is gone: no device waits for what it asked for.
    pub(crate) fn dismiss_attachment(&self, walker: &dyn Walker, pasid: Option<Pasid>, dismissed: &mut Dismissed) {
        self.dismiss(dismissed, |pending| pending.is_of(walker) && pending.pasid == pasid);
    }

    /// A device gives up on all that it asked for.
    pub(crate) fn dismiss_walker(&self, walker: &dyn Walker, dismissed: &mut Dismissed) {
        self.dismiss(dismissed, |pending| pending.is_of(walker));
    }

    /// No handler answers any more.
    pub(crate) fn close(&self, dismissed: &mut Dismissed) {
        self.dismiss(dismissed, |_| true);
    }
}

/// Groups that were given up, each of which is answered with [`PageResponse::Invalid`] when this is dropped: to be done
/// when no lock is held.
#[derive(Default)]
pub(crate) struct Dismissed(Vec<Waiting>);

impl Drop for Dismissed {
    fn drop(&mut self) {
        let mut each = Each::default();
        for waiting in self.0.drain(..) {
            each.call(|| (waiting.pending.group.answer)(PageResponse::Invalid));
        }
    }
}
