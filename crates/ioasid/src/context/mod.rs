//! A context: what one open of `/dev/iommu` owns.

mod object;
mod parking;
mod tables;

use std::num::NonZeroU32;
use std::sync::Arc;

use thiserror::Error;

use crate::device::{BindError, Device};
use crate::endpoint::Endpoint;
use crate::fault::{FaultQueue, FaultQueueOptions};
use crate::gate::check_holds_nothing;
use crate::hwpt::{Hwpt, NestedHwpt, SvaHwpt, Table};
use crate::ids::{Ids, ObjectId, RemoveError};
use crate::ioas::Ioas;
use crate::iommu::Iommu;
use crate::observe::Leftover;
use crate::sync::{AtomicBool, Mutex};
use crate::types::{HoldsSlices, IovaRange};

pub use object::External;
pub(crate) use object::Object;
pub use tables::HwptError;

/// Why an object was not destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DestroyError {
    /// There is none with this id.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// Something refers to it.
    #[error("object {0} is in use")]
    Busy(u32),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// A context, the security object: whoever holds it controls what is in it, and ids mean something only inside it.
///
/// It goes when the last reference goes, and devices bound to it hold one: then whatever is left in it is told to the
/// observer and torn down.
pub struct Context {
    iommu: Arc<Iommu>,
    serial: u64,
    ids: Ids<Object>,
    /// Held while attachments change.
    pub(crate) attach: Mutex<()>,
    /// Whether nothing is made or attached in it any more.
    closed: AtomicBool,
}

impl Context {
    pub(crate) fn new(iommu: Arc<Iommu>) -> Arc<Self> {
        let serial = iommu.serial();
        Arc::new(Self { iommu, serial, ids: Ids::new(), attach: Mutex::default(), closed: AtomicBool::new(false) })
    }

    /// The machine that it is of.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn ids(&self) -> &Ids<Object> {
        &self.ids
    }

    /// Makes an empty address space, or returns `None` when the context has 2^31 objects.
    pub fn ioas_alloc(&self) -> Option<Arc<Ioas>> {
        let reserved = self.ids.reserve()?;
        let ioas = Arc::new(Ioas::new(reserved.id(), self.iommu.clone()));
        reserved.finalize(Object::Ioas(ioas.clone()), 0, vec![]);
        Some(ioas)
    }

    /// The address space with this id.
    #[must_use]
    pub fn ioas(&self, id: u32) -> Option<Arc<Ioas>> {
        match self.get(id)? {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        }
    }

    /// All address spaces.
    #[must_use]
    pub fn all_ioas(&self) -> Vec<Arc<Ioas>> {
        let ioas = |object: &Object| match object {
            Object::Ioas(ioas) => Some(ioas.clone()),
            _ => None,
        };
        self.ids.all(ioas)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The page table with this id.
    #[must_use]
    pub fn hwpt(&self, id: impl Into<u32>) -> Option<Arc<Hwpt>> {
        match self.get(id.into())? {
            Object::Hwpt(Table::Paging(hwpt)) => Some(hwpt),
            _ => None,
        }
    }

    /// The nested page table with this id.
    #[must_use]
    pub fn nested_hwpt(&self, id: impl Into<u32>) -> Option<Arc<NestedHwpt>> {
        match self.get(id.into())? {
            Object::Hwpt(Table::Nested(nested)) => Some(nested),
            _ => None,
        }
    }

    /// The device that is bound with this id.
    #[must_use]
    pub fn endpoint(&self, id: u32) -> Option<Arc<Endpoint>> {
        match self.get(id)? {
            Object::Device(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    /// Whether there is an object with this id, of whatever kind.
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.get(id).is_some()
    }

    /// The SVA page table with this id.
    #[must_use]
    pub fn sva_hwpt(&self, id: impl Into<u32>) -> Option<Arc<SvaHwpt>> {
        match self.get(id.into())? {
            Object::Hwpt(Table::Sva(sva)) => Some(sva),
            _ => None,
        }
    }

    /// The fault queue with this id.
    #[must_use]
    pub fn fault_queue(&self, id: u32) -> Option<Arc<FaultQueue>> {
        match self.get(id)? {
            Object::FaultQueue(queue) => Some(queue),
            _ => None,
        }
    }

    /// Makes a queue for page requests, or returns `None` when the context has 2^31 objects.
    pub fn fault_queue_alloc(&self) -> Option<Arc<FaultQueue>> {
        self.fault_queue_alloc_with(FaultQueueOptions::default())
    }

    /// As [`Context::fault_queue_alloc`], with another depth, or another time that is waited for answers.
    pub fn fault_queue_alloc_with(&self, options: FaultQueueOptions) -> Option<Arc<FaultQueue>> {
        let reserved = self.ids.reserve()?;
        let queue = Arc::new(FaultQueue::new(reserved.id(), options, self.iommu.deadlines.clone()));
        reserved.finalize(Object::FaultQueue(queue.clone()), 0, vec![]);
        Some(queue)
    }

    /// Keeps an object from being destroyed as long as the result is not dropped.
    pub fn hold(self: &Arc<Self>, id: ObjectId) -> Option<Held> {
        self.ids.hold(id).map(|_| Held { context: self.clone(), id })
    }

    pub(crate) fn get(&self, id: u32) -> Option<Object> {
        self.ids.get(ObjectId(NonZeroU32::new(id)?))
    }

    /// Gives `object` an id, which is destroyed as others are, or returns `None` when the context has 2^31 objects. `make` is
    /// told the id before anybody can find it; on an error of its own there is none.
    ///
    /// # Errors
    /// That of `make`.
    pub fn add_external<E>(
        &self,
        make: impl FnOnce(ObjectId) -> Result<Arc<dyn External>, E>,
    ) -> Option<Result<ObjectId, E>> {
        let reserved = self.ids.reserve()?;
        Some(make(reserved.id()).map(|object| reserved.finalize(Object::External(object), 0, vec![])))
    }

    /// Binds a device to this context: from now on, what it reaches is decided through it.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Device, BindError> {
        Device::bind(self.clone(), endpoint.clone())
    }

    /// Makes something of an object that `fits`, which is held from then on.
    pub(crate) fn on_held<H, T, E, F>(
        &self,
        id: u32,
        missing: impl Fn(u32) -> F,
        fits: impl FnOnce(&Object) -> Result<H, F>,
        make: impl FnOnce(H) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<F> + From<HoldsSlices>,
    {
        check_holds_nothing()?;
        let held = ObjectId(NonZeroU32::new(id).ok_or_else(|| missing(id))?);
        let object = self.ids.hold_if(held, fits).ok_or_else(|| missing(id))??;
        make(object).inspect_err(|_| self.ids.release(held))
    }

    /// Destroys an object that nothing refers to; what was mapped in an address space is unmapped.
    ///
    /// # Errors
    /// See [`DestroyError`]; nothing is changed then. It never fails for lack of memory.
    pub fn destroy(&self, id: u32) -> Result<(), DestroyError> {
        check_holds_nothing()?;
        let object_id = ObjectId(NonZeroU32::new(id).ok_or(DestroyError::Missing(id))?);
        let object = self.ids.remove(object_id).map_err(|error| match error {
            RemoveError::Missing => DestroyError::Missing(id),
            RemoveError::InUse => DestroyError::Busy(id),
        })?;
        tear_down(object);
        Ok(())
    }
}

/// Keeps an object from being destroyed, and its context.
pub struct Held {
    context: Arc<Context>,
    id: ObjectId,
}

impl Held {
    /// The context.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.context.ids.release(self.id);
    }
}

/// Ends what an object did. Nothing refers to it.
fn tear_down(object: Object) {
    match object {
        Object::Ioas(ioas) => {
            // All of it cuts no area, and who is mapping something holds on to the address space.
            let _ = ioas.unmap(IovaRange::ALL);
        }
        // The address space has a reference to it, and it one to the address space.
        Object::Hwpt(Table::Paging(hwpt)) => hwpt.ioas().remove_table(&hwpt),
        Object::Hwpt(_) | Object::Device(_) | Object::Access | Object::Viommu(_) => {}
        Object::FaultQueue(queue) => queue.close(),
        Object::VirtualDevice(device) => device.remove(),
        Object::EventQueue(queue) => queue.remove(),
        Object::HwQueue(queue) => queue.remove(),
        Object::External(object) => object.destroyed(),
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Devices hold the context, so none is bound any more, and nobody is attached to a page table.
        while let Some((id, object)) = self.ids.take_leaf() {
            if let Object::Ioas(ioas) = &object {
                let (areas, bytes) = ioas.size();
                self.iommu.observer().left_behind(&Leftover::Ioas { id, areas, bytes });
            }
            tear_down(object);
        }
        let pasids = &self.iommu.pasids;
        pasids.all_of(self.serial).into_iter().for_each(|pasid| pasids.free(pasid, self.serial));
    }
}
