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
//! - [`Machine`]: one machine's worth: its endpoints, its physical address space, its page-table memory.
//! - [`Context`]: what one open of `/dev/iommu` holds, and the security object: ids mean something only inside it.
//! - [`Ioas`]: IOVA ranges mapped to [`memory::Pages`].
//! - [`Hwpt`]: what an IOMMU walks, mirroring an address space; a [`NestedHwpt`] is a guest's own table over one, and an
//!   [`SvaHwpt`] the addresses of a process.
//! - [`Device`]: an endpoint bound to a context; it is attached to an address space and detached again, with a [`Pasid`] or
//!   without. A part of a device ([`Machine::add_part`]) is one more, with PASIDs that it alone has.
//! - [`DmaPort`]: what a device model holds to reach memory.
//! - [`FaultQueue`]: where devices that can wait ask for what they miss, if their page table says so ([`OnMiss`]).
//! - [`VirtualPasids`]: what a guest calls its PASIDs.
//!
//! # Features
//!
//! - `vm-memory` (off by default): `guest_memory::PortMemory`, a port as the `GuestMemory` of rust-vmm's crate vm-memory,
//!   which puts an IOMMU under existing device code by a change of type.
//!
//! # The completion guarantee
//!
//! When [`Ioas::unmap`], [`Device::detach`], [`NestedHwpt::invalidate`], a replacement, the destruction or parking of an
//! object, the freeing of a PASID, or the clearing of bus mastering returns, no DMA through the old translation is in flight
//! and none can start. The module `gate` has the protocol.
//!
//! # Layers
//!
//! Each folder imports only what stands below it, and a thread takes locks in the same order (`base::rank` lists them):
//!
//! | folder | what |
//! | --- | --- |
//! | `attach` | what changes what a device reaches: devices, attachments, parking, access by software |
//! | `context` | objects and their ids; how tables and virtual IOMMUs are made |
//! | `guest_memory` | a port as rust-vmm's guest memory |
//! | `port` | DMA: translating, caches, recovery, page requests |
//! | `viommu` | what a guest has of an IOMMU |
//! | `view` | a picture for people |
//! | `bus` | machines, endpoints, groups, parts of devices |
//! | `hwpt` | tables to attach to: paging, nested, SVA; dirty tracking |
//! | `ioas` | map, unmap, protect, presence, rules; pins |
//! | `mirror` | who follows an address space, and who walks it |
//! | `shared` | what all of one machine share |
//! | `fault` | page requests, queues, deadlines |
//! | `memory` | what backs mappings |
//! | `gate` | the protocol behind the completion guarantee |
//! | `pasid` | PASIDs, and tables of virtual ones |
//! | `kind` | kinds of IOMMUs, and guests' formats, as data |
//! | `base` | addresses, ids, ranges, locks, callbacks |

#![warn(missing_debug_implementations)]

mod attach;
mod base;
mod bus;
mod context;
mod fault;
mod gate;
#[cfg(feature = "vm-memory")]
pub mod guest_memory;
mod hwpt;
mod ioas;
mod kind;
pub mod memory;
mod mirror;
mod pasid;
mod port;
mod shared;
mod view;
mod viommu;

pub use attach::{AccessAttachError, AttachError, BindError, CopyError, Device, IoasAccess, Reach};
pub use base::ids::ObjectId;
pub use base::observe::{Fault, FaultReason, Leftover, Observer, Silent};
pub use base::ranges::Ranges;
pub use base::types::{GroupId, Iova, IovaRange, ParseRidError, Pasid, Rid, WouldDeadlock};
pub use bus::{Endpoint, EndpointError, EndpointOptions, Machine, MediateError, PartPasids};
pub use context::{Context, DestroyError, External, Held, HwQueueError, HwQueueOptions, HwptError, ViommuError};
pub use fault::{
    FaultQueue, FaultQueueOptions, GroupTooLarge, OnMiss, PageGroup, PageRequest, PageResponse, QueueCounts, Recovery,
    RequestedAccess, TakenGroup, UnknownCookie,
};
pub use hwpt::{
    BadGuestStage, DirtyError, GuestStage, Hwpt, HwptOptions, NestedHwpt, NestedOptions, SvaError, SvaHwpt,
};
pub use ioas::{
    AccessError, AreaView, ConnectError, CutError, Ioas, MapError, PinnedRange, Placement, PresenceError, ProtectError,
    RuleError, UnmapError,
};
pub use iopt::Access;
pub use kind::{
    BadPasidTable, GuestFormat, GuestPasidFormat, GuestPasidTable, GuestTable, IommuKind, TableFormat, UnalignedRoot,
    UnknownIommu, WithoutPasid,
};
pub use mirror::{Mirror, MirrorCapabilities, MirrorError, MirrorRun};
pub use pasid::{PartPasidTable, PasidError, PasidHold, VirtualPasids};
pub use port::{BusAddress, DmaError, DmaPort, DmaSlice, PageRequestError, PageRequestInterface, Slices};
pub use view::{AttachmentView, EndpointView};
pub use viommu::{Event, EventQueue, HwQueue, Viommu, VirtualDevice};
