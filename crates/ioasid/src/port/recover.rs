//! What becomes of an access that found nothing: outside of the gate, so that no thread that unmaps waits for it.
//!
//! ```text
//!   miss ──► what the table (or its parent) has done about it
//!              abort ────────────────────────────────► refused, and told
//!              queue, resolve ─┬─ the device asks ───► refused as recoverable, and not told
//!                              ├─ its IOMMU stalls ──► asked here; Success: try again, else refused, and told
//!                              └─ neither ───────────► refused, and told
//! ```

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Thread};

use iopt::Access;

use crate::base::observe::FaultReason;
use crate::fault::{PageRequest, PageResponse, Recovery, RequestedAccess};
use crate::gate::check_may_wait;
use crate::hwpt::Table;

use super::bus::Bus;
use super::translate::Refused;
use super::{BusAddress, DmaError};

/// How often a stalled access looks for its answer before it sleeps: for ten to a hundred microseconds, depending on
/// the processor, in which the handler that answers can be woken. To wake the asker in turn would take as long again.
const SPINS: u32 = 4000;

impl Bus {
    /// Returns when an access that was refused is worth another try.
    ///
    /// # Errors
    /// If it is not.
    #[cold]
    pub(crate) fn recover(&self, at: BusAddress, access: Access, refused: Refused) -> Result<(), DmaError> {
        let table = self.table(at);
        let explain = explanation(table.as_ref(), at, access, refused);
        if !is_recoverable(table.as_ref(), refused) {
            return Err(self.fault(explain()));
        }
        // Software does not wait for a queue's handler, which may be waiting for it.
        if self.endpoint.is_software() && is_queued(table.as_ref(), refused) {
            return Err(DmaError { recoverable: true, ..explain() });
        }
        // A thread that waits keeps no table.
        drop(table);
        match self.endpoint.recovery() {
            Recovery::PageRequests => Err(DmaError { recoverable: true, ..explain() }),
            // A thread that unmaps waits for the slices, and the handler that is asked may want to unmap.
            Recovery::Stall if check_may_wait().is_ok() => match self.stall(at, access, refused) {
                PageResponse::Success => Ok(()),
                PageResponse::Invalid | PageResponse::Failure => Err(self.fault(explain())),
            },
            Recovery::Stall | Recovery::None => Err(self.fault(explain())),
        }
    }

    /// As [`Bus::recover`], for a caller that cannot wait here: the device may ask, whatever it can do otherwise.
    #[cold]
    pub(crate) fn refusal(&self, at: BusAddress, access: Access, refused: Refused) -> DmaError {
        let table = self.table(at);
        let error = explanation(table.as_ref(), at, access, refused)();
        if is_recoverable(table.as_ref(), refused) && self.endpoint.recovery() != Recovery::None {
            DmaError { recoverable: true, ..error }
        } else {
            self.fault(error)
        }
    }

    /// The page table that an access goes by now.
    fn table(&self, at: BusAddress) -> Option<Table> {
        self.endpoint.route(at.pasid).map(|(_, table)| table)
    }

    fn stall(&self, at: BusAddress, access: Access, refused: Refused) -> PageResponse {
        let mut requested = RequestedAccess::empty();
        requested.set(RequestedAccess::READ, access.contains(Access::READ));
        requested.set(RequestedAccess::WRITE, access.contains(Access::WRITE));
        let request = PageRequest { pasid: at.pasid, iova: at.iova.0, access: requested };
        let answer = Arc::new(Answer { code: AtomicU8::new(WAITING), asker: thread::current() });
        let told = answer.clone();
        self.endpoint.request_page(request, refused.below, Box::new(move |response| told.give(response)));
        answer.wait()
    }
}

/// What says how an access was refused, once it is: what is mapped and made to fault is not present, where a walk says
/// that nothing is mapped. A thread that brings a page in needs the lock that this takes.
fn explanation(
    table: Option<&Table>,
    at: BusAddress,
    access: Access,
    refused: Refused,
) -> impl FnOnce() -> DmaError + use<> {
    let ioas = match (table, refused.below) {
        (None, _) | (Some(Table::Nested(_)), None) => None,
        (Some(table), _) => table.ioas().map(Arc::downgrade),
    };
    move || {
        let absent = || ioas?.upgrade().map(|ioas| ioas.is_absent(refused.below.unwrap_or(at.iova.0)));
        let reason = match refused.reason {
            FaultReason::NotMapped if absent() == Some(true) => FaultReason::NotPresent,
            reason => reason,
        };
        DmaError::new(at, access.contains(Access::WRITE), reason)
    }
}

/// Whether a handler, or the engine, can be asked about it.
fn is_recoverable(table: Option<&Table>, refused: Refused) -> bool {
    use FaultReason::{GuestTable, NotMapped, NotPermitted, NotPresent};
    if !matches!(refused.reason, NotMapped | NotPermitted | NotPresent | GuestTable) {
        return false;
    }
    match (table, refused.below) {
        (None, _) => false,
        (Some(Table::Nested(nested)), Some(_)) => !nested.parent().on_miss().is_abort(),
        // Nothing can be brought in but what is there and not present.
        (Some(Table::Sva(_)), _) => refused.reason == NotPresent,
        (Some(table), _) => !table.on_miss().is_abort(),
    }
}

/// Whether a handler reads a queue of such misses.
fn is_queued(table: Option<&Table>, refused: Refused) -> bool {
    match (table, refused.below) {
        (None, _) => false,
        (Some(Table::Nested(nested)), Some(_)) => nested.parent().on_miss().queue().is_some(),
        (Some(table), _) => table.on_miss().queue().is_some(),
    }
}

/// [`Answer::code`] before there is an answer.
const WAITING: u8 = 0;

/// The answer that one thread waits for.
struct Answer {
    code: AtomicU8,
    asker: Thread,
}

impl Answer {
    fn give(&self, response: PageResponse) {
        let code = match response {
            PageResponse::Success => 1,
            PageResponse::Invalid => 2,
            PageResponse::Failure => 3,
        };
        self.code.store(code, Ordering::Release);
        self.asker.unpark();
    }

    fn wait(&self) -> PageResponse {
        for round in 0.. {
            match self.code.load(Ordering::Acquire) {
                1 => return PageResponse::Success,
                2 => return PageResponse::Invalid,
                3 => return PageResponse::Failure,
                _ if round < SPINS => hint::spin_loop(),
                _ => thread::park(),
            }
        }
        PageResponse::Failure
    }
}
