//! Nested page tables: stage 1, owned by a guest, in memory that the parent maps.
//!
//! The guest writes its tables whenever it likes, and says what it changed by an invalidation; the port walks them as
//! hardware does (see `port::nested`). The addresses in them, and that of the root, are the guest's physical addresses,
//! which are IOVAs of the parent: so a guest reaches what its parent maps, and nothing else.

use std::any::Any;
use std::sync::{Arc, PoisonError};

use iopt::format::{Armv8Stage1, Sv39, Sv48, Sv57, X86_64, X86_64FiveLevels};
use iopt::{Access, Format, GuestMemory, GuestTranslation, TableAddr, walk_guest};
use thiserror::Error;

use super::{Hwpt, Users};
use crate::endpoint::Endpoint;
use crate::fault::FaultQueue;
use crate::gate::check_holds_nothing;
use crate::ids::ObjectId;
use crate::invalidation::{Invalidation, TableId};
use crate::sync::{Mutex, MutexGuard};
use crate::types::{HoldsSlices, IovaRange};
use crate::viommu::Viommu;

/// The format of a guest's page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestFormat {
    /// x86-64 with four levels, 47 bits of IOVA: VT-d's and AMD's first stage.
    X86_64,
    /// x86-64 with five levels, 56 bits.
    X86_64FiveLevels,
    /// Armv8 stage 1 with pages of 4 KiB, 48 bits: SMMUv3's first stage.
    Armv8Pages4K,
    /// Armv8 stage 1 with pages of 16 KiB, 48 bits.
    Armv8Pages16K,
    /// Armv8 stage 1 with pages of 64 KiB, 48 bits.
    Armv8Pages64K,
    /// RISC-V with three levels, 38 bits.
    Sv39,
    /// RISC-V with four levels, 47 bits.
    Sv48,
    /// RISC-V with five levels, 56 bits.
    Sv57,
    /// That of the mock IOMMU in Linux's own tests, which has none: nothing is translated.
    Mock,
}

impl GuestFormat {
    /// Every format that translates, for who wants to try them all.
    pub const ALL: [Self; 8] = [
        Self::X86_64,
        Self::X86_64FiveLevels,
        Self::Armv8Pages4K,
        Self::Armv8Pages16K,
        Self::Armv8Pages64K,
        Self::Sv39,
        Self::Sv48,
        Self::Sv57,
    ];

    /// Bytes that the root has, and that its address is a multiple of.
    fn root_size(self) -> u64 {
        fn size<F: Format>() -> u64 {
            // Arm's roots with few entries are aligned to 64 bytes at least.
            (8 << F::index_bits(F::LEVELS - 1)).max(64)
        }
        match self {
            Self::Armv8Pages16K => size::<Armv8Stage1<14>>(),
            Self::Armv8Pages64K => size::<Armv8Stage1<16>>(),
            // The processor reads no lower bits, even where the lower half has half of the entries.
            _ => 4096,
        }
    }
}

/// A guest's page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTable {
    /// What its entries look like.
    pub format: GuestFormat,
    /// The guest's physical address of its root, a multiple of the root's size.
    pub root: u64,
}

/// The root of a guest's table is not where its format can have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a root of this format begins at a multiple of {1:#x}, and {0:#x} is none")]
pub struct UnalignedRoot(pub u64, pub u64);

/// What a nested page table is to be.
pub struct NestedOptions {
    /// The guest's table.
    pub table: GuestTable,
    /// It can be attached to PASIDs, and to a device that has PASIDs attached.
    pub pasids: bool,
    /// The fault queue that page requests go to.
    pub fault_queue: Option<u32>,
    /// What its maker wants to find with it.
    pub extension: Option<Box<dyn Any + Send + Sync>>,
}

impl From<GuestTable> for NestedOptions {
    fn from(table: GuestTable) -> Self {
        Self { table, pasids: true, fault_queue: None, extension: None }
    }
}

impl GuestTable {
    pub(crate) fn check(self) -> Result<(), UnalignedRoot> {
        let size = self.format.root_size();
        if self.root.is_multiple_of(size) { Ok(()) } else { Err(UnalignedRoot(self.root, size)) }
    }

    /// See [`walk_guest`].
    pub(crate) fn walk<M: GuestMemory>(
        self,
        memory: &mut M,
        iova: u64,
        access: Access,
    ) -> Result<Option<GuestTranslation>, M::Error> {
        let root = TableAddr(self.root);
        match self.format {
            GuestFormat::X86_64 => walk_guest::<X86_64, M>(memory, root, iova, access),
            GuestFormat::X86_64FiveLevels => walk_guest::<X86_64FiveLevels, M>(memory, root, iova, access),
            GuestFormat::Armv8Pages4K => walk_guest::<Armv8Stage1<12>, M>(memory, root, iova, access),
            GuestFormat::Armv8Pages16K => walk_guest::<Armv8Stage1<14>, M>(memory, root, iova, access),
            GuestFormat::Armv8Pages64K => walk_guest::<Armv8Stage1<16>, M>(memory, root, iova, access),
            GuestFormat::Sv39 => walk_guest::<Sv39, M>(memory, root, iova, access),
            GuestFormat::Sv48 => walk_guest::<Sv48, M>(memory, root, iova, access),
            GuestFormat::Sv57 => walk_guest::<Sv57, M>(memory, root, iova, access),
            GuestFormat::Mock => Ok(None),
        }
    }
}

/// Why nothing was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidateError {
    /// The range ends before it begins.
    #[error("IOVA {0} ends before it begins")]
    Reversed(IovaRange),
    /// It would have to wait for DMA that this thread itself holds up.
    #[error(transparent)]
    HoldsSlices(#[from] HoldsSlices),
}

/// A nested HWPT: a guest's page table on top of what its parent maps. It is made by
/// [`Context::hwpt_alloc_nested`](crate::Context::hwpt_alloc_nested).
///
/// What a device reserves is kept out of the parent. In the guest's own table nothing is reserved: a page that a guest puts
/// where interrupts would go is memory like any other.
pub struct NestedHwpt {
    id: ObjectId,
    parent: Arc<Hwpt>,
    viommu: Option<Arc<Viommu>>,
    pub(super) fault_queue: Option<Arc<FaultQueue>>,
    options: NestedOptions,
    users: Users,
    /// Held to invalidate and to change who uses it.
    change: Mutex<()>,
}

impl NestedHwpt {
    pub(crate) fn new(
        id: ObjectId,
        parent: Arc<Hwpt>,
        viommu: Option<Arc<Viommu>>,
        fault_queue: Option<Arc<FaultQueue>>,
        options: NestedOptions,
    ) -> Self {
        Self { id, parent, viommu, fault_queue, options, users: Users::default(), change: Mutex::default() }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What maps the guest's physical addresses.
    #[must_use]
    pub fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    /// The virtual IOMMU that it was made on, if on one.
    #[must_use]
    pub fn viommu(&self) -> Option<&Arc<Viommu>> {
        self.viommu.as_ref()
    }

    /// The guest's table.
    #[must_use]
    pub fn table(&self) -> GuestTable {
        self.options.table
    }

    /// What its maker keeps with it, if that is a `T`.
    #[must_use]
    pub fn extension<T: 'static>(&self) -> Option<&T> {
        self.options.extension.as_ref()?.downcast_ref()
    }

    pub(crate) fn allows_pasids(&self) -> bool {
        self.options.pasids
    }

    pub(crate) fn connect(&self, endpoint: &Arc<Endpoint>) {
        let _change = self.change();
        self.users.add(endpoint);
    }

    pub(crate) fn disconnect(&self, endpoint: &Arc<Endpoint>) {
        let _change = self.change();
        self.users.remove(endpoint);
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what ports have cached of `range`, for a guest that changed its table there: when it returns, no DMA through an
    /// older translation is in flight and none can start. [`IovaRange::ALL`] takes no longer than a single page.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn invalidate(&self, range: IovaRange) -> Result<(), InvalidateError> {
        if range.start > range.last {
            return Err(InvalidateError::Reversed(range));
        }
        check_holds_nothing()?;
        let _change = self.change();
        self.users.quiesce(Invalidation::Range(TableId::of(self), range));
        Ok(())
    }
}
