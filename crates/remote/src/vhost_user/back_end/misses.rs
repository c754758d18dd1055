//! What a device does about a page that is not there: it asks, and the front end is asked.
//!
//! ```text
//!   device ── bring_in ──► Endpoint::request_pages ──► FaultQueue ──► BACKEND_IOTLB_MSG ──► front end
//!          ◄───────────────────────────────────── answer ◄── IOTLB_MSG with an update, or the reply ──┘
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ioasid::{
    Access, DmaError, Endpoint, FaultQueue, IovaRange, PageGroup, PageRequest, PageResponse, RequestedAccess,
};
use zerocopy::IntoBytes;

use crate::Ended;
use crate::socket::Channel;
use crate::vhost_user::wire::{BackendRequestId, Header, IotlbKind, IotlbMessage};

/// By which a back end asks.
pub(super) type Events = Arc<Channel<Header>>;

/// Where a device asks for pages.
#[derive(Debug, Default)]
pub struct Misses {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By which the front end is asked, and how long it has.
    asks: Option<(Events, Duration)>,
    /// What the front end was asked for and has not replied to, in order: the answer's cookie, and where.
    asked: VecDeque<(u32, u64)>,
    /// The front end has more than it has said so far.
    is_translated: bool,
    /// The device is to come to an end, and waits for nothing.
    is_stopping: bool,
}

/// Bytes of a page.
const PAGE: u64 = 4096;

impl Misses {
    /// None so far.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the page that an access of `endpoint` has missed, and waits for it. Returns whether another try is
    /// worth it. Called by the device, outside of its port.
    #[must_use]
    pub fn bring_in(self: &Arc<Self>, endpoint: &Arc<Endpoint>, error: &DmaError) -> bool {
        if !error.recoverable || self.lock().is_stopping {
            return false;
        }
        let access = if error.write { RequestedAccess::WRITE } else { RequestedAccess::READ };
        let request = PageRequest { pasid: error.at.pasid, iova: error.at.iova.0, access };
        let answer: Arc<Mutex<Option<PageResponse>>> = Arc::default();
        let (slot, misses) = (answer.clone(), self.clone());
        let answered = move |response| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
            // Who waits has looked before, or waits by now.
            drop(misses.lock());
            misses.changed.notify_all();
        };
        endpoint.request_pages(PageGroup { number: 0, requests: vec![request], answer: Box::new(answered) });
        let mut state = self.lock();
        loop {
            if let Some(response) = *answer.lock().unwrap_or_else(PoisonError::into_inner) {
                return response == PageResponse::Success && !state.is_stopping;
            }
            if state.is_stopping {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whatever waits for a page waits no more, and nothing does until [`Misses::resume`].
    pub(super) fn give_up(&self) {
        self.lock().is_stopping = true;
        self.changed.notify_all();
    }

    pub(super) fn resume(&self) {
        self.lock().is_stopping = false;
    }

    /// Whether the front end is asked at all: without translations it has said what there is.
    pub(super) fn translate(&self, is_translated: bool) {
        self.lock().is_translated = is_translated;
    }

    /// From now on a front end is asked by this; without, none is.
    pub(super) fn ask_by(&self, asks: Option<(Events, Duration)>) {
        let mut state = self.lock();
        state.asks = asks;
        state.asked.clear();
    }

    /// By which a front end is asked.
    pub(super) fn events(&self) -> Option<Events> {
        self.lock().asks.as_ref().map(|(events, _)| events.clone())
    }

    /// Takes what is in the queue, and asks the front end for it.
    pub(super) fn pass_on(&self, queue: &FaultQueue) {
        while let Ok(Some(group)) = queue.take(usize::MAX) {
            let request = group.requests.first();
            let asked = request.is_some_and(|request| self.ask(group.cookie, request));
            if !asked {
                let _ = queue.answer(group.cookie, PageResponse::Invalid);
            }
        }
    }

    fn ask(&self, cookie: u32, request: &PageRequest) -> bool {
        let mut state = self.lock();
        let may_ask = state.is_translated && !state.is_stopping;
        let Some((events, patience)) = state.asks.clone().filter(|_| may_ask) else { return false };
        let access = match request.access.contains(RequestedAccess::WRITE) {
            true => Access::WRITE,
            false => Access::READ,
        };
        let iova = request.iova & !(PAGE - 1);
        let miss = IotlbMessage::new(IotlbKind::Miss, iova, PAGE, 0, access);
        let header = Header::request(BackendRequestId::IotlbMsg as u32, miss.as_bytes().len(), true);
        state.asked.push_back((cookie, request.iova));
        // Under the lock: replies come in the order in which this is sent.
        let sent = events.send(&header, &[miss.as_bytes()], &[], Instant::now() + patience);
        if sent.is_err() {
            state.asked.pop_back();
        }
        sent.is_ok()
    }

    /// The front end has replied to what it was asked first of all.
    ///
    /// # Errors
    /// If it was asked for nothing.
    pub(super) fn replied(&self, queue: &FaultQueue, is_there: bool) -> Result<(), Ended> {
        let Some((cookie, _)) = self.lock().asked.pop_front() else { return Err(Ended::Unasked) };
        let response = if is_there { PageResponse::Success } else { PageResponse::Invalid };
        // It may have been answered with an update, or given up.
        let _ = queue.answer(cookie, response);
        Ok(())
    }

    /// The front end has said what is in this range.
    pub(super) fn updated(&self, queue: &FaultQueue, range: IovaRange) {
        let now: Vec<u32> = {
            let state = self.lock();
            let there = state.asked.iter().filter(|(_, iova)| (range.start()..=range.last()).contains(iova));
            there.map(|(cookie, _)| *cookie).collect()
        };
        for cookie in now {
            let _ = queue.answer(cookie, PageResponse::Success);
        }
    }
}
