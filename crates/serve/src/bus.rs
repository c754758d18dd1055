//! Buses behind bridges: what is reset together (hot reset).
//!
//! ```text
//!   0001:00:1f.0  bridge ── bus 01 ──┬── 0001:01:00.0
//!                                    └── 0001:01:00.1
//! ```

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use ioasid::{Context, GroupId, ObjectId, Rid};
use rustix::io::Errno;

use crate::driver::Driver;

/// A bus behind a bridge.
pub struct Bus {
    bridge: Rid,
    number: u8,
    members: Mutex<Vec<Member>>,
    /// Shared: a request resets open devices, or looks at them. Exclusive: a file closes one.
    uses: RwLock<()>,
}

/// A device on a bus.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) rid: Rid,
    pub(crate) group: GroupId,
    driver: Arc<Driver>,
    open: Option<Weak<dyn OpenDevice>>,
}

/// A device that is open, as far as others on its bus have to do with it.
pub(crate) trait OpenDevice: Send + Sync {
    /// Its id, if it is bound to this context.
    fn id_in(&self, context: &Arc<Context>) -> Option<ObjectId>;

    /// Resets it. When it returns, no DMA from before is in flight.
    ///
    /// # Errors
    /// `EIO` if what others have written to it does not arrive.
    fn reset(&self) -> Result<(), Errno>;
}

impl Member {
    /// Whether VFIO has it.
    pub(crate) fn is_bound(&self) -> bool {
        self.driver.is_bound()
    }

    /// It, if it is open.
    pub(crate) fn opened(&self) -> Option<Arc<dyn OpenDevice>> {
        self.open.as_ref()?.upgrade()
    }
}

impl Bus {
    /// A bus of this number, with nothing on it, behind a bridge at this place.
    #[must_use]
    pub fn new(bridge: Rid, number: u8) -> Arc<Self> {
        Arc::new(Self { bridge, number, members: Mutex::default(), uses: RwLock::default() })
    }

    /// Where its bridge is.
    #[must_use]
    pub fn bridge(&self) -> Rid {
        self.bridge
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a device on it.
    pub(crate) fn add(&self, rid: Rid, group: GroupId, driver: Arc<Driver>) {
        self.lock().push(Member { rid, group, driver, open: None });
    }

    /// The devices on it, as they are now.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.lock().clone()
    }

    /// Keeps its open devices from being closed while the guard lives.
    pub(crate) fn use_open(&self) -> RwLockReadGuard<'_, ()> {
        self.uses.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no request uses its open devices, and keeps requests from them while the guard lives.
    pub(crate) fn close_open(&self) -> RwLockWriteGuard<'_, ()> {
        self.uses.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device on it was opened.
    pub(crate) fn opened(&self, rid: Rid, open: Weak<dyn OpenDevice>) {
        self.lock().iter_mut().filter(|member| member.rid == rid).for_each(|member| member.open = Some(open.clone()));
    }
}
