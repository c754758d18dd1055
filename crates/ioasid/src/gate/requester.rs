//! What other threads see of a port: its gate, and what it moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::Access;

use super::Gate;

/// What other threads see of a port.
#[derive(Debug)]
pub(crate) struct Requester {
    pub(crate) gate: Arc<Gate>,
    /// Bytes that the port moved; only the port writes them. Statistics: nothing is ordered by them.
    read: AtomicU64,
    written: AtomicU64,
}

impl Requester {
    pub(super) fn new() -> Self {
        Self { gate: Arc::new(Gate::new()), read: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    /// Bytes read and written so far.
    pub(super) fn traffic(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Counts an access as what it was for.
    #[inline(always)]
    pub(crate) fn count(&self, access: Access, bytes: u64) {
        if access.contains(Access::WRITE) {
            self.count_written(bytes);
        } else {
            self.count_read(bytes);
        }
    }

    #[inline]
    pub(crate) fn count_read(&self, bytes: u64) {
        self.read.store(self.read.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn count_written(&self, bytes: u64) {
        self.written.store(self.written.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }
}
