//! I/O address spaces, and the software IOMMU that translates with them.
//!
//! This is the engine of ioasid, free of any wire format: the `/dev` tree decodes requests into calls of this crate,
//! and a VMM or a device model calls it directly.
//!
//! ```text
//!  Context ── owns ──► Ioas ── mirrored by ──► Hwpt ◄── attached ── Endpoint (RID) ◄── DmaPort
//!     │                 │ areas                 │ page table            ▲                 │
//!     └─ Device ────────┼───────────────────────┼───────────────────────┘                 │ IOTLB, or walk
//!        (bound)        ▼                       ▼                                         ▼
//!                     Pages ── windows ──► physical address space ──────────────────► bytes
//! ```
//!
//! - [`Iommu`]: one machine's worth: its endpoints, its physical address space, its page-table memory.
//! - [`Context`]: what one open of `/dev/iommu` holds, and the security object: ids mean something only inside it.
//! - [`Ioas`]: IOVA ranges mapped to [`memory::Pages`].
//! - [`Hwpt`]: what an IOMMU walks, mirroring an address space; a [`NestedHwpt`] is a guest's own table over one, and an
//!   [`SvaHwpt`] the addresses of a process.
//! - [`Device`]: an endpoint bound to a context; it is attached to an address space and detached again, with a [`Pasid`] or
//!   without. A part of a device ([`Iommu::add_part`]) is one more, with PASIDs that it alone has.
//! - [`DmaPort`]: what a device model holds to reach memory.
//! - [`FaultQueue`]: where devices that can wait ask for what they miss, if their page table says so ([`OnMiss`]).
//! - [`VirtualPasids`]: what a guest calls its PASIDs.
//!
//! # Features
//!
//! - `vm-memory` (off by default): `vm_memory::PortMemory`, a port as the `GuestMemory` of rust-vmm's crate vm-memory,
//!   which puts an IOMMU under existing device code by a change of type.
//!
//! # The completion guarantee
//!
//! When [`Ioas::unmap`], [`Device::detach`], [`NestedHwpt::invalidate`], a replacement, the destruction or parking of an
//! object, the freeing of a PASID, or the clearing of bus mastering returns, no DMA through the old translation is in flight
//! and none can start. The module `gate` has the protocol.
//!
//! # Locks
//!
//! Outermost first: a context's `attach`, a nested table's `change`, an address space's `unmap` and `space`, a page
//! table's `users`, an endpoint's list of ports. By themselves, for a few instructions and with next to nothing inside: an
//! address space's `areas`, a group's state, a context's ids, the free lists of the physical space and of the page tables,
//! the PASIDs in use, the parts of a device, a fault queue's groups, an endpoint's attachments, and a port's queue of what to
//! forget. A group of page requests is answered with none of these held, but one that is dismissed by who detaches, with
//! `attach`.
//!
//! A port inside its gate takes the last two only, and the parts of its device: the attachments, for reading, when it meets a PASID for the first time,
//! and its queue when something was posted. So whoever waits for ports holds neither of these, and may hold the others.

pub mod memory;

mod access;
mod attach;
mod context;
mod device;
mod dirty;
mod endpoint;
mod fault;
mod gate;
mod group;
mod hwpt;
mod ids;
mod invalidation;
mod ioas;
mod iommu;
mod mediate;
mod observe;
mod pasid;
mod port;
mod ranges;
mod software;
mod sync;
mod types;
mod viommu;
mod virtual_pasids;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;

pub use access::{AccessAttachError, IoasAccess, PinnedRange};
pub use attach::AttachError;
pub use context::{Context, DestroyError, External, Held, HwptError};
pub use device::{BindError, Device};
pub use dirty::DirtyError;
pub use endpoint::{Endpoint, EndpointOptions};
pub use fault::{
    FaultQueue, FaultQueueOptions, GroupTooLarge, OnMiss, PageGroup, PageRequest, PageRequestError,
    PageRequestInterface, PageResponse, QueueCounts, Recovery, RequestedAccess, TakenGroup, UnknownCookie,
};
pub use hwpt::{
    BadGuestStage, BadPasidTable, GuestFormat, GuestPasidFormat, GuestPasidTable, GuestStage, GuestTable, Hwpt,
    HwptOptions, InvalidateError, IommuKind, NestedHwpt, NestedOptions, SvaError, SvaHwpt, TableFormat, UnalignedRoot,
    WithoutPasid,
};
pub use ids::ObjectId;
pub use ioas::{AccessError, AreaView, CutError, Ioas, MapError, Placement, PresenceError, RuleError, UnmapError};
pub use iommu::{AttachmentView, EndpointView, Iommu};
pub use iopt::Access;
pub use mediate::{MediateError, PartPasids};
pub use observe::{Fault, FaultReason, Leftover, Observer, Silent};
pub use pasid::{PasidError, PasidHold};
pub use port::{BusAddress, DmaError, DmaPort, DmaSlice, Slices};
pub use ranges::Ranges;
pub use software::{CopyError, Reach};
pub use types::{GroupId, HoldsSlices, Iova, IovaRange, ParseRidError, Pasid, PhysAddr, Rid};
pub use viommu::{Event, EventQueue, HwQueue, HwQueueError, HwQueueOptions, Viommu, ViommuError, VirtualDevice};
pub use virtual_pasids::VirtualPasids;
