//! Shared virtual addressing: a page table that is a process's own address space.
//!
//! Whatever the process can read and write, devices can, at the same addresses, and for as long: what it maps, unmaps
//! and protects holds at once, as the process is asked each time. A page that the process has never touched is not
//! present; it is brought in when a device that can wait asks for it. The end of the process, or its exec, ends the
//! address space, and DMA is refused from then on.
//!
//! ```text
//!   IOVA = address ──► mapped there, and allowed?   no ──► refused
//!                      present?                     no ──► a page request, which brings it in
//!                      copy from, or to, the process
//! ```
//! Nothing of it is cached, so no port has to be told of a change.

use std::fmt;
use std::sync::Arc;

use iopt::Access;
use thiserror::Error;

use crate::base::ids::ObjectId;
use crate::base::observe::FaultReason;
use crate::memory::{PAGE_SIZE, Process, RemoteMemory};
use crate::mirror::Users;

/// Why a process's address space was not made a page table.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SvaError {
    /// The process has ended, or became another program.
    #[error("the process has ended")]
    Gone,
    /// Which of its pages are present cannot be seen ([`Process::open`] and not [`Process::open_for_sva`]).
    #[error("the process was not opened for SVA")]
    NotForSva,
    /// The context was closed.
    #[error("the context was closed")]
    Closed,
    /// The context has 2^31 objects.
    #[error("the context has no free ids")]
    NoIds,
}

/// An SVA page table, made by [`Context::hwpt_alloc_sva`](crate::Context::hwpt_alloc_sva).
pub struct SvaHwpt {
    id: ObjectId,
    process: Arc<Process>,
    pub(super) users: Users,
}

impl fmt::Debug for SvaHwpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvaHwpt").field("id", &self.id).field("process", &self.process.pid()).finish_non_exhaustive()
    }
}

impl SvaHwpt {
    pub(crate) fn new(id: ObjectId, process: Arc<Process>) -> Result<Self, SvaError> {
        if !process.shows_presence() {
            return Err(SvaError::NotForSva);
        }
        if process.is_current() { Ok(Self { id, process, users: Users::default() }) } else { Err(SvaError::Gone) }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether `access` to `address` is allowed, and the page is present; how many bytes of it there are from there on.
    pub(crate) fn translate(&self, address: u64, access: Access) -> Result<u64, FaultReason> {
        self.check(address, access)?;
        if !self.process.is_present(address).map_err(|_| FaultReason::MemoryGone)? {
            return Err(FaultReason::NotPresent);
        }
        Ok(PAGE_SIZE - address % PAGE_SIZE)
    }

    fn check(&self, address: u64, access: Access) -> Result<(), FaultReason> {
        let vma = self.process.vmas().at(address).map_err(|_| FaultReason::MemoryGone)?;
        let Some(vma) = vma else {
            let reason = if self.process.is_current() { FaultReason::NotMapped } else { FaultReason::MemoryGone };
            return Err(reason);
        };
        let denied =
            (access.contains(Access::READ) && !vma.readable) || (access.contains(Access::WRITE) && !vma.writable);
        if denied { Err(FaultReason::NotPermitted) } else { Ok(()) }
    }

    /// Brings the page at `address` in, for `access`, as the process's own touch would.
    pub(crate) fn bring_in(&self, address: u64, access: Access) -> Result<(), FaultReason> {
        self.check(address, access)?;
        // A write that follows gives the process a page of its own where it shares this one.
        self.memory().read(address, &mut [0]).map_err(|_| FaultReason::MemoryGone)
    }

    /// Its memory, by address.
    pub(crate) fn memory(&self) -> &dyn RemoteMemory {
        self.process.memory()
    }
}
