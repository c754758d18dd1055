//! A context: what one open of `/dev/iommu` owns.

mod make_tables;
mod make_viommu;
mod object;
mod target;

use std::fmt;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use thiserror::Error;

use crate::base::ids::{Ids, ObjectId, RemoveError, Reserved};
use crate::base::lock::Mutex;
use crate::base::observe::Leftover;
use crate::base::sync::{AtomicBool, Ordering};
use crate::base::types::{Rid, WouldDeadlock};
use crate::base::{callback, rank};
use crate::bus::{Endpoint, Machine};
use crate::fault::{Dismissed, FaultQueue, FaultQueueOptions};
use crate::gate::check_may_wait;
use crate::hwpt::{Hwpt, NestedHwpt, SvaHwpt, Table};
use crate::ioas::Ioas;
use crate::shared::Shared;
use crate::viommu::{Viommu, VirtualDevice};

pub use make_tables::HwptError;
pub use make_viommu::{HwQueueError, HwQueueOptions, ViommuError};
pub use object::External;
pub(crate) use object::Object;
pub use target::{NestParent, Reach, Target};
pub(crate) use target::{ReachKind, TargetKind};

/// A device is not bound to the context that it is used in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("device {0} is not bound to this context: bind it first")]
pub struct NotBound(pub Rid);

/// Why an object was not destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DestroyError {
    /// There is none with this id.
    #[error("no object {0} in the context")]
    Missing(u32),
    /// Something refers to it.
    #[error("object {0} is in use")]
    Busy(u32),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// A context, the security object: its holder controls what is in it, and ids mean something only inside it.
///
/// It goes when the last reference goes, and devices bound to it hold one: then whatever is left in it is told to the
/// observer and torn down.
pub struct Context {
    machine: Arc<Machine>,
    serial: u64,
    ids: Ids<Object>,
    /// Held while attachments change.
    pub(crate) attach: Mutex<(), rank::Attach>,
    /// The devices that guests know.
    virtual_devices: Mutex<Vec<Arc<VirtualDevice>>, rank::VirtualDevices>,
    /// Whether nothing is made or attached in it any more.
    closed: AtomicBool,
    /// Whether its owner ended, and left to others what it has.
    abandoned: AtomicBool,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("serial", &self.serial)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// What is left to do when the lock on attachments is given back, as it calls callers' code. To be made before that is
/// taken.
#[derive(Default)]
pub(crate) struct Afterwards {
    pub(crate) dismissed: Dismissed,
    /// Address spaces that a page table was taken away from. The first has a place of its own, as a detach allocates
    /// nothing.
    first: Option<Arc<Ioas>>,
    more: Vec<Arc<Ioas>>,
    /// Endpoints whose own mirrors have something else to follow, or nothing.
    following: Vec<Arc<Endpoint>>,
}

impl Afterwards {
    /// Lets go of the memory of an address space that has no mirror.
    pub(crate) fn unpin(&mut self, ioas: &Arc<Ioas>) {
        match &self.first {
            None => self.first = Some(ioas.clone()),
            Some(_) => self.more.push(ioas.clone()),
        }
    }

    /// Has the endpoint's own mirror follow what that is attached to now.
    pub(crate) fn follow(&mut self, endpoint: &Arc<Endpoint>) {
        if endpoint.has_mirror() && !self.following.iter().any(|other| Arc::ptr_eq(other, endpoint)) {
            self.following.push(endpoint.clone());
        }
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        for endpoint in &self.following {
            // An endpoint that cannot follow stays with nothing; attaching asked beforehand whether it can.
            let _ = endpoint.follow();
        }
        self.first.iter().chain(&self.more).for_each(|ioas| ioas.unpin_unused());
    }
}

impl Machine {
    /// A new, empty context.
    #[must_use]
    pub fn context(self: &Arc<Self>) -> Arc<Context> {
        Context::new(self.clone())
    }
}

impl Context {
    fn new(machine: Arc<Machine>) -> Arc<Self> {
        let serial = machine.shared().serial();
        let (attach, virtual_devices) = (Mutex::default(), Mutex::default());
        let (closed, abandoned) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { machine, serial, ids: Ids::new(), attach, virtual_devices, closed, abandoned })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.machine.shared()
    }

    /// Takes out what a guest knows a device as.
    pub(crate) fn take_virtual_device(&self, endpoint: &Arc<Endpoint>) -> Option<Arc<VirtualDevice>> {
        let mut known = self.virtual_devices.lock();
        let at = known.iter().position(|known| Arc::ptr_eq(known.endpoint(), endpoint))?;
        Some(known.swap_remove(at))
    }

    /// Whether nothing is made or attached in it any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Lets nothing be made or attached in it from now on.
    pub(crate) fn set_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The machine that it is of.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
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
        let ioas = Arc::new(Ioas::new(reserved.id(), self.shared().clone()));
        reserved.finalize(Object::Ioas(ioas.clone()), 0, vec![]);
        Some(ioas)
    }

    /// The address space with this id.
    #[must_use]
    pub fn ioas(&self, id: impl Into<u32>) -> Option<Arc<Ioas>> {
        match self.get(id.into())? {
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
    pub fn endpoint(&self, id: impl Into<u32>) -> Option<Arc<Endpoint>> {
        match self.get(id.into())? {
            Object::Device(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    /// Whether there is an object with this id, of whatever kind.
    #[must_use]
    pub fn has(&self, id: impl Into<u32>) -> bool {
        self.get(id.into()).is_some()
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
    pub fn fault_queue(&self, id: impl Into<u32>) -> Option<Arc<FaultQueue>> {
        match self.get(id.into())? {
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
        let queue = Arc::new(FaultQueue::new(reserved.id(), options, self.shared().deadlines.clone()));
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

    /// Gives `object` an id, which is destroyed as others are, or returns `None` when the context has 2^31 objects.
    /// `make` is told the id before any thread can find it; on an error of its own there is none.
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

    /// Keeps an object that `is_it` in use until the result is dropped; `None` if what has the id is another one, or
    /// nothing.
    pub(crate) fn hold_object(&self, id: ObjectId, is_it: impl FnOnce(&Object) -> bool) -> Option<InUse<'_>> {
        let held = self.ids.hold_if(id, |object| if is_it(object) { Ok(()) } else { Err(()) });
        held?.ok().map(|()| InUse { context: self, id })
    }

    /// Keeps an address space of this context in use.
    pub(crate) fn hold_ioas(&self, ioas: &Arc<Ioas>) -> Option<InUse<'_>> {
        self.hold_object(ioas.id(), |object| matches!(object, Object::Ioas(there) if Arc::ptr_eq(there, ioas)))
    }

    /// Keeps a page table of this context in use.
    pub(crate) fn hold_hwpt(&self, hwpt: &Arc<Hwpt>) -> Option<InUse<'_>> {
        self.hold_object(hwpt.id(), |object| object.is_hwpt(hwpt))
    }

    /// Keeps a virtual IOMMU of this context in use.
    pub(crate) fn hold_viommu(&self, viommu: &Arc<Viommu>) -> Option<InUse<'_>> {
        self.hold_object(viommu.id(), |object| matches!(object, Object::Viommu(there) if Arc::ptr_eq(there, viommu)))
    }

    /// Fails unless a device is bound to this context.
    pub(crate) fn check_bound(&self, device: &Arc<Endpoint>) -> Result<(), NotBound> {
        let bound = self.endpoint(device.bound_as());
        if bound.is_some_and(|there| Arc::ptr_eq(&there, device)) { Ok(()) } else { Err(NotBound(device.rid())) }
    }

    /// Destroys an object that nothing refers to; what was mapped in an address space is unmapped.
    ///
    /// # Errors
    /// See [`DestroyError`]; nothing is changed then. It never fails for lack of memory.
    pub fn destroy(&self, id: impl Into<u32>) -> Result<(), DestroyError> {
        let id = id.into();
        check_may_wait()?;
        let object_id = ObjectId(NonZeroU32::new(id).ok_or(DestroyError::Missing(id))?);
        let object = self.ids.remove(object_id).map_err(|error| match error {
            RemoveError::Missing => DestroyError::Missing(id),
            RemoveError::InUse => DestroyError::Busy(id),
        })?;
        self.tear_down(object, &mut Afterwards::default());
        Ok(())
    }

    /// Ends what an object did. Nothing refers to it.
    pub(crate) fn tear_down(&self, object: Object, after: &mut Afterwards) {
        match object {
            Object::Ioas(ioas) => ioas.tear_down(),
            // The address space has a reference to it, and it one to the address space.
            Object::Hwpt(Table::Paging(hwpt)) => {
                hwpt.ioas().remove_table(&*hwpt);
                after.unpin(hwpt.ioas());
            }
            Object::Hwpt(_) | Object::Device(_) | Object::Access | Object::Viommu(_) => {}
            Object::FaultQueue(queue) => queue.close(&mut after.dismissed),
            Object::VirtualDevice(device) => {
                device.remove();
                drop(self.take_virtual_device(device.endpoint()));
            }
            Object::EventQueue(queue) => queue.remove(),
            Object::HwQueue(queue) => queue.remove(),
            Object::External(object) => callback::call(|| object.destroyed()),
        }
    }
}

/// An object in use: it cannot be destroyed before this is dropped.
pub(crate) struct InUse<'a> {
    context: &'a Context,
    id: ObjectId,
}

impl InUse<'_> {
    /// It stays in use until its new holder releases its id.
    pub(crate) fn keep(self) -> ObjectId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.context.ids.release(self.id);
    }
}

/// What is in use and stays so, for another object that holds it from now on.
fn kept(holds: Vec<InUse<'_>>) -> Vec<ObjectId> {
    holds.into_iter().map(InUse::keep).collect()
}

/// Publishes an object, unless what it holds was parked meanwhile.
fn finalize_over(reserved: Reserved<'_, Object>, object: Object, holds: Vec<InUse<'_>>) -> Option<()> {
    reserved.finalize_over(object, holds.iter().map(|held| held.id).collect())?;
    kept(holds);
    Some(())
}

/// Keeps an object from being destroyed, and its context.
pub struct Held {
    context: Arc<Context>,
    id: ObjectId,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("id", &self.id).finish_non_exhaustive()
    }
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

impl Context {
    /// Its owner has ended and can undo nothing any more: what is in it when it is dropped is no
    /// [`Leftover`] to tell of.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Devices hold the context, so none is bound any more, or attached to a page table.
        while let Some((id, object)) = self.ids.take_leaf() {
            if let Object::Ioas(ioas) = &object
                && !self.abandoned.load(Ordering::Relaxed)
                && !ioas.is_disowned()
            {
                let (areas, bytes) = ioas.size();
                let what = Leftover::Ioas { id, areas, bytes };
                callback::call_contained(|| self.shared().observer().left_behind(&what));
            }
            // A panic of a caller's code goes no further from a drop.
            let _ = catch_unwind(AssertUnwindSafe(|| self.tear_down(object, &mut Afterwards::default())));
        }
        let pasids = &self.shared().pasids;
        pasids.all_of(self.serial).into_iter().for_each(|pasid| pasids.free(pasid, self.serial));
    }
}
