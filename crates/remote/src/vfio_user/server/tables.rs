//! A client's page tables, which the device here walks as they are.
//!
//! ```text
//!   IOVA ── the client's tables, read here ──► address ── Ioas: what DMA_MAP has mapped ──► bytes
//! ```
//! To the engine that is a nested page table: the client's is the first stage, and what it maps by messages, its tables
//! among it, the second. So a translation of its own costs it no message, and its tables are read as a guest's
//! are: whatever they say, the device reaches what the client has passed, and nothing else. The client invalidates by a
//! gate in shared memory, which the device's ports pass (see [`GateMember`]).

use std::sync::Arc;

use ioasid::{Context, GateMember, GuestFormat, GuestTable, HwptOptions, NestedOptions, ObjectId, TableFormat};
use ioasid_errno::ToErrno;
use rustix::io::Errno;

use super::client::{Answer, Client};
use crate::socket::Passed;
use crate::vfio_user::wire::{ADDRESS_BITS, SharedTables};

/// What the engine has of a client's tables.
pub(super) struct Tables {
    context: Arc<Context>,
    /// To be destroyed in this order.
    objects: Vec<ObjectId>,
}

impl Tables {
    fn new(context: &Arc<Context>) -> Self {
        Self { context: context.clone(), objects: Vec::new() }
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for id in &self.objects {
            // Nothing is attached any more.
            let _ = self.context.destroy(*id);
        }
    }
}

impl Client {
    /// Has the device walk the client's tables from now on. What the client maps is found at the addresses in them.
    pub(super) fn share_tables(&self, tables: &SharedTables, mut files: Passed) -> Answer {
        if (tables.argsz.get() as usize) < size_of::<SharedTables>() || self.tables.get().is_some() {
            return Err(Errno::INVAL);
        }
        // What is mapped already would be somewhere else.
        if self.ioas.area_count() > 0 {
            return Err(Errno::BUSY);
        }
        let Some(device) = &self.device else { return Err(Errno::NODEV) };
        let [passages, orders] = [1, 0].map(|place| files.take_memory(place).ok_or(Errno::INVAL));
        let member = GateMember::join(orders?, passages?).map_err(|_| Errno::INVAL)?;
        let mut made = Tables::new(&self.context);
        let hwpt = HwptOptions::default().nest_parent(true).pasids(true);
        let hwpt = self.context.hwpt_alloc(device.endpoint(), &self.ioas, hwpt).map_err(|error| error.errno())?;
        made.objects.push(hwpt.id());
        if !can_address(hwpt.format()) {
            return Err(Errno::OPNOTSUPP);
        }
        let root = GuestTable { format: GuestFormat::VtdSecondStage, root: tables.root.get() };
        let nested = self.context.hwpt_alloc_nested(&hwpt, NestedOptions::from(root).shared(member));
        let nested = nested.map_err(|error| error.errno())?;
        made.objects.insert(0, nested.id());
        device.attach(None, &nested).map_err(|error| error.errno())?;
        // Commands are carried out one after the other.
        let _ = self.tables.set(made);
        Ok(Vec::new())
    }
}

/// Whether a table of this format has all the addresses that a client may use.
fn can_address(format: TableFormat) -> bool {
    let aperture = format.aperture();
    aperture.start() == 0 && aperture.last() >= (1 << ADDRESS_BITS) - 1
}
