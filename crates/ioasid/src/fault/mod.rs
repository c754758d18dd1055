//! Page requests: what a device asks for that found nothing mapped, and how that is answered.
//!
//! What happens on a miss is the page table's affair: it is refused, or the handler of a queue is asked, or the page is
//! brought in from the memory behind the mapping. The device decides nothing, nor does its driver. A device that can
//! wait asks in groups, and does one thing with the answer to a whole group.
//!
//! ```text
//!   Endpoint::request_pages ─┬─ abort ─────► Invalid
//!                            ├─ resolve ───► brought in: Success; nothing mapped there: Invalid
//!                            └─ queue ─────► waiting ──take──► taken, by cookie ──answer──► the device's function
//!                                              ├─ full ─────────────────────────────────────► Failure
//!                                              ├─ no handler answers in time ───────────────► Failure
//!                                              └─ detach, replacement, destruction, reset ──► Invalid
//! ```
//! Each is answered, once, whatever happens; what finds a queue full or is not answered in time is counted.
//!
//! | file | what |
//! | --- | --- |
//! | `queue` | groups that wait for an answer |
//! | `deadline` | the thread that keeps them from waiting for ever |
//!
//! Where a request goes, and how a page is brought in, is in `port::ask`; a device's own way to ask, in
//! `port::interface`.

mod deadline;
mod queue;

use std::fmt;
use std::sync::Arc;

use bitflags::bitflags;

use crate::base::lock::Mutex;
use crate::base::types::Pasid;
use crate::base::{callback, rank};

pub(crate) use deadline::Deadlines;
pub(crate) use queue::{Dismissed, Pending};
pub use queue::{FaultQueue, FaultQueueOptions, GroupTooLarge, QueueCounts, TakenGroup, UnknownCookie};

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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// With this PASID, or without.
    pub pasid: Option<Pasid>,
    /// The IOVA.
    pub iova: u64,
    /// What it is needed for.
    pub access: RequestedAccess,
}

impl fmt::Debug for PageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iova = format_args!("{:#x}", self.iova);
        f.debug_struct("PageRequest")
            .field("pasid", &self.pasid)
            .field("iova", &iova)
            .field("access", &self.access)
            .finish()
    }
}

/// What a device is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageResponse {
    /// The pages are there: it shall try again.
    Success,
    /// It cannot have them: it shall give up.
    Invalid,
    /// No handler could be asked, or none answered: it shall give up on this, and may ask for other pages.
    Failure,
}

/// Pages that a device asks for together.
pub struct PageGroup {
    /// The device's own number for the group.
    pub number: u32,
    /// What it asks for; with one PASID, or none.
    pub requests: Vec<PageRequest>,
    /// Called once, with the answer, from any thread, and with no lock held: also from one that detaches the device.
    pub answer: Box<dyn FnOnce(PageResponse) + Send>,
}

impl fmt::Debug for PageGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageGroup")
            .field("number", &self.number)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// What happens when a device finds nothing in a page table, or not what it needs.
#[derive(Debug, Clone, Default)]
pub enum OnMiss {
    /// The access is refused.
    #[default]
    Abort,
    /// A device that can wait does, and this fault queue is asked. It has to be of the context that the page table is
    /// made in.
    Queue(Arc<FaultQueue>),
    /// A device that can wait does, and what was made to fault ([`crate::Ioas::make_fault`]) is brought in. Where
    /// nothing is mapped the access is refused.
    Resolve,
}

impl OnMiss {
    pub(crate) fn queue(&self) -> Option<&Arc<FaultQueue>> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Abort | Self::Resolve => None,
        }
    }

    pub(crate) fn is_abort(&self) -> bool {
        matches!(self, Self::Abort)
    }
}

/// What a device can do about a page that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Nothing: the access is refused.
    None,
    /// Its IOMMU lets the transaction wait, and it knows nothing of it (as SMMUv3's stalls).
    Stall,
    /// It asks for the page and tries again (PCIe's page request interface).
    PageRequests,
}

/// A callback that is to be told of something.
#[derive(Default)]
pub(crate) struct Notify(Mutex<Option<Arc<dyn Fn() + Send + Sync>>, rank::Notify>);

impl Notify {
    pub(crate) fn set(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        *self.0.lock() = Some(tell);
    }

    pub(crate) fn tell(&self) {
        let tell = self.0.lock().clone();
        if let Some(tell) = tell {
            callback::call(|| tell());
        }
    }
}
