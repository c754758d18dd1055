//! What a port is on the bus: who asks, and whom.

use std::sync::Arc;

use crate::base::callback;
use crate::base::observe::{Fault, FaultReason};
use crate::bus::Endpoint;
use crate::gate::requester::Requester;
use crate::shared::Shared;

use super::DmaError;

/// A port's place on the bus.
#[derive(Clone)]
pub(crate) struct Bus {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) shared: Arc<Shared>,
    pub(crate) requester: Arc<Requester>,
}

impl Bus {
    /// Tells the observer; where slices are held, inside the gate.
    #[cold]
    pub(crate) fn fault(&self, error: DmaError) -> DmaError {
        let DmaError { at, write, reason, .. } = error;
        if reason == FaultReason::Parked {
            self.endpoint.count_parked_fault();
            return error;
        }
        if self.endpoint.is_software() {
            return error;
        }
        let ioas = self.endpoint.with_attachment(at.pasid, |table| table.ioas().map(|ioas| ioas.serial())).flatten();
        let (owner, pasid) = self.endpoint.owner(at.pasid);
        let fault = Fault { rid: owner.rid(), pasid, iova: at.iova, write, reason, ioas };
        callback::call(|| self.shared.observer().fault(&fault));
        error
    }
}
