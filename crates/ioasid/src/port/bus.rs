//! What a port is on the bus: the endpoint that asks, and the machine that it asks.

use std::sync::Arc;

use iopt::Access;

use crate::base::callback;
use crate::base::observe::{Fault, FaultReason, Work};
use crate::bus::Endpoint;
use crate::gate::requester::Requester;
use crate::shared::Shared;

use super::{BusAddress, DmaError};

/// A port's place on the bus.
#[derive(Clone)]
pub(crate) struct Bus {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) shared: Arc<Shared>,
    pub(crate) requester: Arc<Requester>,
    /// What the accesses are for.
    pub(super) work: Option<Work>,
}

impl Bus {
    /// What of an access may be cached: where writes are logged, no write goes by the cache.
    pub(super) fn cachable(&self, access: Access) -> Access {
        if self.endpoint.write_log().is_on() { access - Access::WRITE } else { access }
    }

    /// Tells the observer; where slices are held, inside the gate.
    #[cold]
    pub(crate) fn fault(&self, error: DmaError) -> DmaError {
        match error.reason {
            FaultReason::Parked => self.endpoint.count_parked_fault(),
            // Its maker is told by the error.
            _ if self.endpoint.is_software() => {}
            reason => tell(&self.endpoint, error.at, error.write, reason, self.work),
        }
        error
    }
}

/// Tells the observer of a transaction that was refused, in the names of its owner: a part, if the PASID is one of its.
pub(super) fn tell(endpoint: &Arc<Endpoint>, at: BusAddress, write: bool, reason: FaultReason, work: Option<Work>) {
    let ioas = endpoint.with_attachment(at.pasid, |table| table.ioas().map(|ioas| ioas.serial())).flatten();
    let (owner, pasid) = endpoint.owner(at.pasid);
    let fault = Fault { rid: owner.rid(), pasid, iova: at.iova, write, reason, ioas, work };
    callback::call(|| endpoint.shared().observer().fault(&fault));
}
