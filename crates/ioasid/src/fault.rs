//! Page requests: what a device asks for that found nothing mapped, and whoever answers.
//!
//! A device that can wait asks in groups, and does one thing with the answer to a whole group. Groups go to the fault queue
//! of the page table that the device is attached to; what is taken out of the queue is answered by its cookie.
//!
//! ```text
//!   Endpoint::request_pages ──► waiting to be taken ──take──► taken, by cookie ──answer──► the device's function
//!                                      └─ detach, replacement, destruction: answered with Invalid ──┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};

use bitflags::bitflags;
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::ids::ObjectId;
use crate::sync::{Mutex, MutexGuard};
use crate::types::Pasid;

bitflags! {
    /// What a device needs of a page.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RequestedAccess: u32 {
        /// To read it.
        const READ = 1 << 0;
        /// To write it.
        const WRITE = 1 << 1;
        /// To execute it.
        const EXECUTE = 1 << 2;
        /// As a supervisor.
        const PRIVILEGED = 1 << 3;
    }
}

/// A page that a device asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// With this PASID, or without.
    pub pasid: Option<Pasid>,
    /// The IOVA.
    pub iova: u64,
    /// What it is needed for.
    pub access: RequestedAccess,
}

/// What a device is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageResponse {
    /// The pages are there: it shall try again.
    Success,
    /// It cannot have them: it shall give up.
    Invalid,
    /// Nobody could be asked, or nobody answered: it shall give up on this, and may ask for other pages.
    Failure,
}

/// Pages that a device asks for together.
pub struct PageGroup {
    /// The device's own number for the group.
    pub number: u32,
    /// What it asks for; with one PASID, or none.
    pub requests: Vec<PageRequest>,
    /// Called once, with the answer, from any thread. It must not wait for DMA.
    pub answer: Box<dyn FnOnce(PageResponse) + Send>,
}

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

/// A group, and the attachment that it came by.
struct Pending {
    endpoint: Arc<Endpoint>,
    /// Of the attachment: a guest's own table for all PASIDs has none.
    pasid: Option<Pasid>,
    device: u32,
    group: PageGroup,
}

impl Pending {
    fn is_of(&self, endpoint: &Arc<Endpoint>, pasid: Option<Pasid>) -> bool {
        Arc::ptr_eq(&self.endpoint, endpoint) && self.pasid == pasid
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Pending>,
    taken: BTreeMap<u32, Pending>,
}

/// A queue of page requests.
pub struct FaultQueue {
    id: ObjectId,
    state: Mutex<State>,
    arrived: Notify,
}

/// Whoever is to be told of something.
#[derive(Default)]
pub(crate) struct Notify(Mutex<Option<Arc<dyn Fn() + Send + Sync>>>);

impl Notify {
    pub(crate) fn set(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
    }

    pub(crate) fn tell(&self) {
        let tell = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(tell) = tell {
            tell();
        }
    }
}

impl FaultQueue {
    pub(crate) fn new(id: ObjectId) -> Self {
        Self { id, state: Mutex::default(), arrived: Notify::default() }
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

    /// Takes the next group, if it has no more than `most` requests. It waits for [`FaultQueue::answer`] then.
    ///
    /// # Errors
    /// [`GroupTooLarge`]; the group stays.
    pub fn take(&self, most: usize) -> Result<Option<TakenGroup>, GroupTooLarge> {
        let mut state = self.lock();
        let Some(next) = state.waiting.pop_front() else { return Ok(None) };
        if next.group.requests.len() > most {
            let requests = next.group.requests.len();
            state.waiting.push_front(next);
            return Err(GroupTooLarge(requests));
        }
        let cookie = (1..).zip(state.taken.keys()).find(|(want, have)| want != *have);
        let cookie = cookie.map_or(state.taken.len() as u32 + 1, |(want, _)| want);
        let taken = TakenGroup {
            cookie,
            device: next.device,
            number: next.group.number,
            requests: next.group.requests.clone(),
        };
        state.taken.insert(cookie, next);
        Ok(Some(taken))
    }

    /// Answers a group that was taken.
    ///
    /// # Errors
    /// [`UnknownCookie`], also if it was answered before, or its device does not wait any more.
    pub fn answer(&self, cookie: u32, response: PageResponse) -> Result<(), UnknownCookie> {
        let pending = self.lock().taken.remove(&cookie).ok_or(UnknownCookie(cookie))?;
        (pending.group.answer)(response);
        Ok(())
    }

    /// Gives up on everything that fits.
    fn dismiss(&self, fits: impl Fn(&Pending) -> bool) {
        let mut dismissed = Vec::new();
        {
            let State { waiting, taken } = &mut *self.lock();
            for pending in std::mem::take(waiting) {
                if fits(&pending) { dismissed.push(pending) } else { waiting.push_back(pending) }
            }
            dismissed.extend(taken.extract_if(.., |_, pending| fits(pending)).map(|(_, pending)| pending));
        }
        dismissed.into_iter().for_each(|pending| (pending.group.answer)(PageResponse::Invalid));
    }

    /// An attachment is gone: nobody waits for what it asked for.
    pub(crate) fn dismiss_attachment(&self, endpoint: &Arc<Endpoint>, pasid: Option<Pasid>) {
        self.dismiss(|pending| pending.is_of(endpoint, pasid));
    }

    /// Nobody answers any more.
    pub(crate) fn close(&self) {
        self.dismiss(|_| true);
    }
}

impl Endpoint {
    /// Asks for pages: whoever reads the fault queue of the page table that the device is attached to answers. Without a
    /// queue, or an attachment, the answer is [`PageResponse::Invalid`], before this returns.
    pub fn request_pages(self: &Arc<Self>, group: PageGroup) {
        let asked = group.requests.first().and_then(|request| request.pasid);
        // A guest that owns the whole table of PASIDs is attached without one.
        let pasid = asked.filter(|_| self.with_attachment(asked, |_| ()).is_some());
        let mut group = Some(group);
        let queued = self.with_attachment(pasid, |table| {
            let queue = table.fault_queue()?.clone();
            let pending = Pending { endpoint: self.clone(), pasid, device: self.bound_as(), group: group.take()? };
            // Who detaches waits for this look at the attachment, and then finds the group.
            queue.lock().waiting.push_back(pending);
            Some(queue)
        });
        match (queued.flatten(), group) {
            (Some(queue), _) => queue.arrived.tell(),
            (None, Some(group)) => (group.answer)(PageResponse::Invalid),
            (None, None) => {}
        }
    }
}
