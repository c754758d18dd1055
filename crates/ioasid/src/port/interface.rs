//! A device's page request interface: it asks page by page, and says which request is the last of its group.
//!
//! Source: PCI Express Base Specification 6.0, 10.4.1 (page request message) and 10.5.2 (page request capability).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::base::lock::Mutex;
use crate::base::rank;
use crate::bus::Endpoint;
use crate::fault::{PageGroup, PageRequest, PageResponse};

/// Why a page was not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PageRequestError {
    /// As many requests as the device may have wait for an answer.
    #[error("{0} page requests are outstanding, which is all that the device may have")]
    TooMany(usize),
    /// The requests of a group have one PASID, or none.
    #[error("group {0} has requests of more than one PASID")]
    MixedPasids(u16),
}

#[derive(Default)]
struct State {
    /// Requests of groups whose last has not come.
    open: BTreeMap<u16, Vec<PageRequest>>,
    outstanding: usize,
}

/// What a device with PCIe's page request interface asks through.
#[derive(Clone)]
pub struct PageRequestInterface {
    endpoint: Arc<Endpoint>,
    /// Requests that may wait for an answer at a time.
    capacity: usize,
    state: Arc<Mutex<State, rank::Interface>>,
}

impl fmt::Debug for PageRequestInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRequestInterface")
            .field("capacity", &self.capacity)
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

impl PageRequestInterface {
    /// For a device that may have `capacity` requests outstanding.
    #[must_use]
    pub fn new(endpoint: &Arc<Endpoint>, capacity: usize) -> Self {
        Self { endpoint: endpoint.clone(), capacity, state: Arc::default() }
    }

    /// Requests that wait for an answer, or for the last of their group.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.state.lock().outstanding
    }

    /// Asks for a page, as part of `group`. With `last`, the group is complete and is sent; `answer` is called once,
    /// with the answer to all of it, from any thread, and must not wait for DMA.
    ///
    /// # Errors
    /// See [`PageRequestError`]; nothing is asked then.
    pub fn request(
        &self,
        group: u16,
        request: PageRequest,
        last: Option<Box<dyn FnOnce(PageResponse) + Send>>,
    ) -> Result<(), PageRequestError> {
        let (requests, answer) = {
            let mut state = self.state.lock();
            if state.outstanding >= self.capacity {
                return Err(PageRequestError::TooMany(self.capacity));
            }
            let open = state.open.entry(group).or_default();
            if open.first().is_some_and(|first| first.pasid != request.pasid) {
                return Err(PageRequestError::MixedPasids(group));
            }
            open.push(request);
            state.outstanding += 1;
            let Some(answer) = last else { return Ok(()) };
            (state.open.remove(&group).unwrap_or_default(), answer)
        };
        let (state, count) = (self.state.clone(), requests.len());
        let answer = Box::new(move |response| {
            state.lock().outstanding -= count;
            answer(response);
        });
        self.endpoint.request_pages(PageGroup { number: group.into(), requests, answer });
        Ok(())
    }

    /// Forgets groups whose last request has not come, as a reset does.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        let forgotten: usize = std::mem::take(&mut state.open).values().map(Vec::len).sum();
        state.outstanding -= forgotten;
    }
}
