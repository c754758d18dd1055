//! Parking: what is destroyed while a device may still use it.
//!
//! DMA stops at once, and the object goes; its number is not used again before every holder has let go, so that no
//! holder that still knows it can be misdirected. No holder is told: it finds out when it detaches, or by DMA that is
//! refused and counted. Parking can never fail for lack of memory.
//!
//! ```text
//!   attachment ──► page table          park            attachment ──► parked: the id, and nothing to translate by
//!   attachment ──► page table      ───────────►        attachment ──► parked
//!                  id, object                                         id kept by the two attachments
//! ```

use std::any::Any;
use std::sync::Arc;

use super::drop_automatic;
use crate::base::ids::RemoveError;
use crate::base::types::{Pasid, WouldDeadlock};
use crate::bus::{Endpoint, dismiss};
use crate::context::{Afterwards, Context, DestroyError, Object};
use crate::gate::check_may_wait;
use crate::gate::walker::Walker;
use crate::hwpt::Table;
use crate::pasid::{PasidError, PasidHold};

impl Context {
    /// As [`Context::destroy`], but a page table that devices are attached to goes, too: when this returns, no DMA
    /// through it is in flight and none can start. Its id is not used again before the last device is detached.
    ///
    /// # Errors
    /// See [`DestroyError`]; a page table is busy only if another is nested on it, or a virtual IOMMU is.
    pub fn park(&self, id: impl Into<u32>) -> Result<(), DestroyError> {
        let id = id.into();
        check_may_wait()?;
        let Some(Object::Hwpt(table)) = self.get(id) else { return self.destroy(id) };
        let mut after = Afterwards::default();
        let _attach = self.attach.lock();
        self.park_table(&table, &mut after).map_err(|error| match error {
            RemoveError::Missing => DestroyError::Missing(id),
            RemoveError::InUse => DestroyError::Busy(id),
        })
    }

    /// [`Context::park`], for a caller that holds the lock on attachments.
    fn park_table(&self, table: &Table, after: &mut Afterwards) -> Result<(), RemoveError> {
        let (object, holds) = self.ids().park(table.id(), |object| object.is_table(table))?;
        stop_all(table, after);
        self.tear_down(object, after);
        // Up to here devices got to its parent by it.
        holds.into_iter().for_each(|held| self.ids().release(held));
        Ok(())
    }

    /// Takes a PASID for this context: the lowest that is free from `first` to `last`. It stays until it is freed, or
    /// the context is gone.
    ///
    /// # Errors
    /// [`PasidError::Full`], [`PasidError::Range`].
    pub fn pasid_alloc(&self, first: u32, last: u32) -> Result<Pasid, PasidError> {
        if self.is_closed() || ioasid_inject::fails() {
            return Err(PasidError::Full(first, last));
        }
        self.shared().pasids.alloc(self.serial(), first, last)
    }

    /// Frees a PASID. DMA with it stops at once, on every device that is attached with it; it is used again only when
    /// no attachment or [`PasidHold`] keeps it any more.
    ///
    /// # Errors
    /// [`PasidError::NotAllocated`], [`PasidError::WouldDeadlock`]; nothing is changed then.
    pub fn pasid_free(&self, pasid: Pasid) -> Result<(), PasidError> {
        check_may_wait()?;
        let mut after = Afterwards::default();
        let _attach = self.attach.lock();
        if !self.shared().pasids.is_of(pasid, self.serial()) {
            return Err(PasidError::NotAllocated(pasid));
        }
        self.stop_pasid(pasid, &mut after);
        self.shared().pasids.free(pasid, self.serial());
        Ok(())
    }

    fn stop_pasid(&self, pasid: Pasid, after: &mut Afterwards) {
        for endpoint in self.endpoints() {
            let Some((endpoint, pasid)) = endpoint.on_bus(Some(pasid)) else { continue };
            if let Some(table) = endpoint.with_attachment(pasid, Table::clone) {
                self.stop_and_let_go(&endpoint, pasid, &table, after);
            }
        }
    }

    /// Ends what an attachment can reach. It keeps the id of its page table; an automatic one goes if it was the last.
    fn stop_and_let_go(&self, endpoint: &Arc<Endpoint>, pasid: Option<Pasid>, table: &Table, after: &mut Afterwards) {
        let unused = stop(endpoint, pasid, table, after);
        drop_automatic(self, table, unused, after);
    }

    /// Keeps a PASID of this context from being used for something else until the result is dropped, also when it is
    /// freed.
    ///
    /// # Errors
    /// [`PasidError::NotAllocated`].
    pub fn hold_pasid(&self, pasid: Pasid) -> Result<PasidHold, PasidError> {
        self.shared().pasids.hold_allocated(pasid, self.serial())
    }

    /// The devices that are bound to it.
    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.ids().all(|object| match object {
            Object::Device(endpoint) => Some(endpoint.clone()),
            _ => None,
        })
    }

    /// Ends everything that its devices reach, although they are bound to it still: page tables and PASIDs are parked,
    /// and nothing can be attached from then on. What else is in it goes with the last device.
    ///
    /// # Errors
    /// [`WouldDeadlock`](crate::WouldDeadlock) if this thread holds slices; nothing is changed then.
    pub fn close(&self) -> Result<(), WouldDeadlock> {
        check_may_wait()?;
        let mut after = Afterwards::default();
        let _attach = self.attach.lock();
        self.set_closed();
        for pasid in self.shared().pasids.all_of(self.serial()) {
            self.stop_pasid(pasid, &mut after);
            self.shared().pasids.free(pasid, self.serial());
        }
        // Nested ones first, as they keep what they are nested on; then what a virtual IOMMU kept is left alone, which
        // no device can be attached to any more.
        let tables =
            || self.ids().all(|object| if let Object::Hwpt(table) = object { Some(table.clone()) } else { None });
        for nested in [true, false] {
            for table in tables().iter().filter(|table| matches!(table, Table::Nested(_)) == nested) {
                if self.park_table(table, &mut after).is_err() {
                    stop_all(table, &mut after);
                }
            }
        }
        Ok(())
    }
}

/// With which PASID an endpoint is attached to a table, if with any.
fn attached_with(endpoint: &Endpoint, table: &Table) -> Option<Option<Pasid>> {
    endpoint.find_attachment(|(pasid, other)| table.is(other).then_some(*pasid))
}

/// Puts every attachment to a table out of use.
fn stop_all(table: &Table, after: &mut Afterwards) {
    let Some(users) = table.users() else { return };
    let mut last = 0;
    while let Some((number, walker)) = users.after(last) {
        last = number;
        let Ok(endpoint) = (walker as Arc<dyn Any + Send + Sync>).downcast::<Endpoint>() else { continue };
        while let Some(pasid) = attached_with(&endpoint, table) {
            stop(&endpoint, pasid, table, after);
        }
    }
}

/// Puts an attachment to a table out of use: it translates nothing any more, and keeps the table's id. Returns whether
/// no requester uses the table that mirrors an address space any more.
fn stop(endpoint: &Arc<Endpoint>, pasid: Option<Pasid>, table: &Table, after: &mut Afterwards) -> bool {
    endpoint.attach(pasid, Table::Parked(table.id()));
    dismiss(endpoint, pasid, table, &mut after.dismissed);
    after.follow(endpoint);
    let walker: Arc<dyn Walker> = endpoint.clone();
    table.disconnect(&walker, endpoint.reserved())
}
