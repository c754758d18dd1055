//! Software that reads and writes as a device would: through a page table, whatever its kind.
//!
//! Software that mediates a device, or emulates one, has its transactions translated like the device's own, without
//! knowing what is mapped how: by page table, or by device and PASID. Faults are the page table's affair here, too.
//! (Software that knows the address space itself, and wants to pin what it maps, takes an
//! [`IoasAccess`](crate::IoasAccess).)

use std::sync::Arc;

use thiserror::Error;

use super::drop_automatic;
use crate::base::ids::ObjectId;
use crate::base::observe::FaultReason;
use crate::base::types::{Iova, Pasid, Rid, WouldDeadlock};
use crate::bus::Endpoint;
use crate::context::{Afterwards, Context, InUse, NotBound, Reach, ReachKind};
use crate::gate::check_may_wait;
use crate::gate::walker::Walker;
use crate::hwpt::{NotConnected, Table};
use crate::port::{BusAddress, DmaError, DmaPort};

/// Why nothing, or not all, was copied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The page table was destroyed, or is another context's.
    #[error("page table {0} is not in this context: it was destroyed, or another context has it")]
    Missing(ObjectId),
    /// The device is not bound to the context.
    #[error(transparent)]
    NotBound(#[from] NotBound),
    /// The device is attached to nothing, with this PASID or without one.
    #[error("device {0} is attached to nothing with this PASID, or without")]
    NotAttached(Rid),
    /// The context was closed.
    #[error("the context was closed")]
    Closed,
    /// The first address that could not be read or written. What lies before it was copied. If that is recoverable, the
    /// handler of the page table's fault queue has to bring it in: it is not asked, and no thread waits.
    #[error(transparent)]
    Refused(#[from] DmaError),
    /// It would have to wait for this thread.
    #[error(transparent)]
    WouldDeadlock(#[from] WouldDeadlock),
}

/// A requester that is on no bus, attached to one table.
pub(crate) struct SoftwareAccess {
    endpoint: Arc<Endpoint>,
    table: Table,
    pasid: Option<Pasid>,
    port: DmaPort,
}

impl SoftwareAccess {
    /// Reaches what `table` maps, for `like`: with `pasid`, where a guest owns the PASIDs of the table. The caller sees
    /// to it that the table stays.
    pub(crate) fn new(like: &Endpoint, table: &Table, pasid: Option<Pasid>) -> Result<Self, FaultReason> {
        let endpoint = Arc::new(Endpoint::software(like.shared(), like.bound_as()));
        let pasid = pasid.filter(|_| table.owns_pasids());
        // It reserves nothing, so nothing can be in its way; but the gate of a table that is shared may be full.
        table.connect(endpoint.clone(), &[]).map_err(|_: NotConnected| FaultReason::NotAttached)?;
        endpoint.attach(None, table.clone());
        let port = endpoint.port();
        Ok(Self { endpoint, table: table.clone(), pasid, port })
    }

    fn at(&self, iova: u64) -> BusAddress {
        BusAddress { pasid: self.pasid, iova: Iova(iova) }
    }

    fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        let at = self.at(iova);
        self.port.read(at, data)
    }

    fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        let at = self.at(iova);
        self.port.write(at, data)
    }
}

impl SoftwareAccess {
    /// Ends it. Returns whether no requester uses the table that mirrors an address space any more.
    fn end(&self) -> bool {
        // It may have been parked meanwhile, which disconnected it.
        self.endpoint.detach(None).is_some_and(|table| {
            let walker: Arc<dyn Walker> = self.endpoint.clone();
            table.is(&self.table) && self.table.disconnect(&walker, &[])
        })
    }
}

impl Drop for SoftwareAccess {
    fn drop(&mut self) {
        self.end();
    }
}

impl Context {
    /// Reads `data.len()` bytes at `iova` of what `from` reaches.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn copy_from(&self, from: impl Into<Reach>, iova: Iova, data: &mut [u8]) -> Result<(), CopyError> {
        self.through(&from.into(), |access| access.read(iova.0, data))
    }

    /// Writes `data` at `iova` of what `to` reaches.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn copy_to(&self, to: impl Into<Reach>, iova: Iova, data: &[u8]) -> Result<(), CopyError> {
        self.through(&to.into(), |access| access.write(iova.0, data))
    }

    fn through(
        &self,
        reach: &Reach,
        copy: impl FnOnce(&mut SoftwareAccess) -> Result<(), DmaError>,
    ) -> Result<(), CopyError> {
        check_may_wait()?;
        let (access, held) = {
            let _attach = self.attach.lock();
            if self.is_closed() {
                return Err(CopyError::Closed);
            }
            let (like, pasid, table) = match &reach.0 {
                ReachKind::Table(table) => (Arc::new(Endpoint::software(self.shared(), 0)), None, table.clone()),
                ReachKind::Device(device, pasid) => {
                    self.check_bound(device)?;
                    let not_attached = || CopyError::NotAttached(device.rid());
                    let (bus, on_bus) = device.on_bus(*pasid).ok_or_else(not_attached)?;
                    let (_, table) = bus.route(on_bus).ok_or_else(not_attached)?;
                    (device.clone(), *pasid, table)
                }
            };
            let held = self.hold_object(table.id(), |object| object.is_table(&table)).ok_or(match &reach.0 {
                ReachKind::Table(table) => CopyError::Missing(table.id()),
                // What it was attached to is parked.
                ReachKind::Device(device, _) => CopyError::NotAttached(device.rid()),
            })?;
            (SoftwareAccess::new(&like, &table, pasid), held)
        };
        // If memory that calls back panics, it ends all the same.
        let mut through = Through { context: self, access: access.ok(), _held: held };
        let result = match &mut through.access {
            Some(access) => copy(access),
            None => Err(DmaError::new(Iova(0).into(), false, FaultReason::NotAttached)),
        };
        Ok(result?)
    }
}

/// An access through a page table that is held, until this is dropped.
struct Through<'a> {
    context: &'a Context,
    access: Option<SoftwareAccess>,
    /// Released last, as the table is let go of first.
    _held: InUse<'a>,
}

impl Drop for Through<'_> {
    fn drop(&mut self) {
        let mut after = Afterwards::default();
        let _attach = self.context.attach.lock();
        // A thread that detached meanwhile has left an automatic table to this.
        if let Some(access) = &self.access {
            drop_automatic(self.context, &access.table, access.end(), &mut after);
        }
    }
}
