//! Where page requests go, and how a page is brought in.
//!
//! A miss belongs to the table that has nothing there: a guest's own table is the guest's affair, and what is missing
//! below it is the affair of the VMM that maps the guest's memory.

use std::sync::Arc;

use iopt::Access;

use super::{BusAddress, bus};
use crate::base::callback;
use crate::base::observe::FaultReason;
use crate::base::types::{Iova, Pasid};
use crate::bus::Endpoint;
use crate::fault::{OnMiss, PageGroup, PageRequest, PageResponse, Pending, Recovery, RequestedAccess};
use crate::gate::check_may_wait;
use crate::hwpt::Table;

fn dma_access(request: &PageRequest) -> Access {
    if request.access.contains(RequestedAccess::WRITE) { Access::WRITE } else { Access::READ }
}

impl Endpoint {
    /// Asks for pages. The page table that the device is attached to decides what answers ([`OnMiss`](crate::OnMiss));
    /// without an attachment, or where misses are refused, the answer is [`PageResponse::Invalid`], before this
    /// returns. An answer that is not [`PageResponse::Success`] is told to the observer, as a refused DMA.
    ///
    /// A thread that holds slices cannot ask, as it would hold up the handler that answers: the answer is
    /// [`PageResponse::Failure`].
    pub fn request_pages(self: &Arc<Self>, mut group: PageGroup) {
        if check_may_wait().is_err() {
            return answer(group, PageResponse::Failure);
        }
        if let Some(first) = group.requests.first().copied() {
            let (endpoint, answer) = (self.clone(), group.answer);
            group.answer = Box::new(move |response| {
                if response != PageResponse::Success {
                    endpoint.report(first);
                }
                answer(response);
            });
        }
        let asked = group.requests.first().and_then(|request| request.pasid);
        let Some((pasid, table)) = self.route_request(asked) else { return answer(group, PageResponse::Invalid) };
        match self.below(pasid, &table, &group.requests) {
            Some(requests) => self.dispose(pasid, &table, true, PageGroup { requests, ..group }),
            None => self.dispose(pasid, &table, false, group),
        }
    }

    /// As [`Endpoint::request_pages`] of one page, when it is known in which table it is missing: at `below` of the
    /// parent, if not in the table itself. The caller tells the observer.
    pub(crate) fn request_page(
        self: &Arc<Self>,
        request: PageRequest,
        below: Option<u64>,
        answer: Box<dyn FnOnce(PageResponse) + Send>,
    ) {
        let Some((pasid, table)) = self.route(request.pasid) else {
            return callback::call(|| answer(PageResponse::Invalid));
        };
        let request = below.map_or(request, |iova| PageRequest { pasid: None, iova, ..request });
        self.dispose(pasid, &table, below.is_some(), PageGroup { number: 0, requests: vec![request], answer });
    }

    /// If nothing is missing in a nested table itself, what of its parent's is asked for.
    fn below(
        self: &Arc<Self>,
        pasid: Option<Pasid>,
        table: &Table,
        requests: &[PageRequest],
    ) -> Option<Vec<PageRequest>> {
        let Table::Nested(nested) = table else { return None };
        if nested.parent().on_miss().is_abort() {
            return None;
        }
        // As the device's own transactions, so that a thread that detaches it waits for this, too.
        let mut port = self.port();
        let pasid = if table.owns_pasids() { requests.first()?.pasid } else { pasid };
        let mut below = Vec::with_capacity(requests.len());
        for request in requests {
            let at = BusAddress { pasid, iova: Iova(request.iova) };
            if let Err(refused) = port.look(at, dma_access(request)) {
                below.push(PageRequest { pasid: None, iova: refused.below?, ..*request });
            }
        }
        Some(below)
    }

    /// Does what a table, or with `below` its parent, has done about misses.
    fn dispose(self: &Arc<Self>, pasid: Option<Pasid>, table: &Table, below: bool, mut group: PageGroup) {
        let on_miss = match table {
            Table::Nested(nested) if below => nested.parent().on_miss(),
            _ => table.on_miss(),
        };
        match on_miss {
            OnMiss::Abort => answer(group, PageResponse::Invalid),
            OnMiss::Resolve => {
                let all = group.requests.iter().all(|request| bring_in(table, below, request));
                answer(group, if all { PageResponse::Success } else { PageResponse::Invalid });
            }
            OnMiss::Queue(queue) => {
                // The owner of a part of a device knows it by other names.
                let (owner, own) = self.owner(pasid);
                let named = group.requests.iter_mut().filter(|request| request.pasid == pasid);
                named.for_each(|request| request.pasid = own);
                let mut pending = Some(Pending { walker: self.clone(), pasid, device: owner.bound_as(), group });
                let mut refused = None;
                // A thread that detaches waits for this look at the attachment, and then finds the group.
                let queued = self.with_attachment(pasid, |now| {
                    let asked = pending.take_if(|_| now.is(table))?;
                    queue.push(asked).map_err(|back| refused = Some(back)).ok()
                });
                if let Some(arrival) = queued.flatten() {
                    queue.tell(arrival);
                }
                refused.into_iter().for_each(|full| answer(full.group, PageResponse::Failure));
                pending.into_iter().for_each(|gone| answer(gone.group, PageResponse::Invalid));
            }
        }
    }

    fn report(self: &Arc<Self>, request: PageRequest) {
        if self.recovery() == Recovery::PageRequests {
            let at = BusAddress { pasid: request.pasid, iova: Iova(request.iova) };
            bus::tell(self, at, request.access.contains(RequestedAccess::WRITE), FaultReason::NotMapped, None);
        }
    }
}

/// Gives the answer to a group.
fn answer(group: PageGroup, response: PageResponse) {
    callback::call(|| (group.answer)(response));
}

/// Brings a page in. False if nothing is there that may be accessed like that.
fn bring_in(table: &Table, below: bool, request: &PageRequest) -> bool {
    let access = dma_access(request);
    match table {
        Table::Paging(hwpt) => hwpt.ioas().bring_in(request.iova, access),
        Table::Nested(nested) if below => nested.parent().ioas().bring_in(request.iova, access),
        Table::Sva(sva) => sva.bring_in(request.iova, access).is_ok(),
        Table::Nested(_) | Table::Parked(_) => false,
    }
}
