//! Virtual PASIDs: the numbers that a guest or a program uses, and the physical ones that are on the bus.
//!
//! Software that hands work on to shared hardware keeps such a table: the driver of a mediated device for what its user
//! writes into descriptors, and a virtual processor for ENQCMD. It is empty at first, and what is not in it is refused.
//! Each entry holds its physical PASID, so that this is not used for something else as long as a guest or a program
//! could name it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::PasidHold;
use crate::base::lock::RwLock;
use crate::base::rank;
use crate::base::types::Pasid;

/// The table of a part's virtual PASIDs, as others may see it: it changes only as the part is attached and detached.
#[derive(Clone)]
pub struct PartPasidTable(Arc<VirtualPasids>);

impl PartPasidTable {
    pub(crate) fn new(table: Arc<VirtualPasids>) -> Self {
        Self(table)
    }

    /// See [`VirtualPasids::physical`].
    #[must_use]
    pub fn physical(&self, number: Option<Pasid>) -> Option<Pasid> {
        self.0.physical(number)
    }

    /// See [`VirtualPasids::hold`].
    #[must_use]
    pub fn hold(&self, number: Option<Pasid>) -> Option<PasidHold> {
        self.0.hold(number)
    }

    /// See [`VirtualPasids::numbers`].
    #[must_use]
    pub fn numbers(&self) -> Vec<Option<Pasid>> {
        self.0.numbers()
    }
}

impl fmt::Debug for PartPasidTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PartPasidTable").field(&self.0).finish()
    }
}

impl fmt::Debug for VirtualPasids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let physical = |number: Option<Pasid>| (number, self.physical(number));
        f.debug_map().entries(self.numbers().into_iter().map(physical)).finish()
    }
}

/// A table of virtual PASIDs. `None` stands for work without a PASID, where there is such.
#[derive(Default)]
pub struct VirtualPasids(RwLock<BTreeMap<Option<Pasid>, PasidHold>, rank::Virtual>);

impl VirtualPasids {
    /// An empty table, by which everything is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `number` mean what is held, in place of what it meant, which is returned.
    pub fn set(&self, number: Option<Pasid>, physical: PasidHold) -> Option<PasidHold> {
        self.0.write().insert(number, physical)
    }

    /// Lets `number` mean nothing, and returns what it meant. Allocates nothing.
    pub fn remove(&self, number: Option<Pasid>) -> Option<PasidHold> {
        self.0.write().remove(&number)
    }

    /// The PASID that `number` means on the bus; `None` if it is refused.
    #[must_use]
    pub fn physical(&self, number: Option<Pasid>) -> Option<Pasid> {
        self.0.read().get(&number).map(PasidHold::pasid)
    }

    /// As [`VirtualPasids::physical`], held: for a caller that hands on work that is done later. Until it is done, no
    /// other context must get the PASID, whatever `number` has come to mean.
    #[must_use]
    pub fn hold(&self, number: Option<Pasid>) -> Option<PasidHold> {
        self.0.read().get(&number).cloned()
    }

    /// The numbers that mean something.
    #[must_use]
    pub fn numbers(&self) -> Vec<Option<Pasid>> {
        self.0.read().keys().copied().collect()
    }
}
