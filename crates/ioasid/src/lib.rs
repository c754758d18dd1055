//! A software IOMMU in user space: address spaces, devices that are attached to them, and DMA that is translated.
//!
//! One maps memory, attaches a device, and does DMA:
//!
//! ```
//! use std::sync::Arc;
//!
//! use ioasid::memory::Segment;
//! use ioasid::{Access, GroupId, Iova, IovaRange, Machine, Placement, Silent};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A machine, a device on its bus, and the port by which the device's model does DMA.
//! let machine = Machine::new(Arc::new(Silent));
//! let endpoint = machine.add_endpoint("0000:00:01.0".parse()?, GroupId(0))?;
//! endpoint.set_bus_master(true)?;
//! let mut port = endpoint.port();
//!
//! // A context with an address space, in which memory is mapped.
//! let context = machine.context();
//! let ioas = context.ioas_alloc().ok_or("no ids")?;
//! let (memory, _file) = Segment::memfd(8192)?;
//! ioas.map(Placement::Fixed(Iova(0x1000)), 8192, Access::all(), || Ok(vec![memory]))?;
//!
//! // The device is bound to the context and attached to the address space: it reaches what is mapped.
//! let device = context.bind(&endpoint)?;
//! device.attach(None, &ioas)?;
//! port.write(Iova(0x1ffe), &[1, 2, 3, 4])?;
//!
//! // When an unmap returns, no DMA through the mapping is in flight, and none can start.
//! ioas.unmap(IovaRange::ALL)?;
//! assert!(port.write(Iova(0x1ffe), &[1, 2, 3, 4]).is_err());
//! # Ok(())
//! # }
//! ```
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
//! - [`Machine`]: one machine's worth: its IOMMUs, its endpoints, its physical address space, its page-table memory.
//! - [`Iommu`]: what endpoints are behind. Its kind ([`IommuKind`]) says which page tables it walks and what it
//!   reserves.
//! - [`Context`]: what one open of `/dev/iommu` holds, and the security object: ids mean something only inside it.
//! - [`Ioas`]: IOVA ranges mapped to [`memory::Pages`].
//! - [`Hwpt`]: a page table that an IOMMU walks, which mirrors an address space.
//! - [`Device`]: an endpoint bound to a context; it is attached to an address space and detached again.
//! - [`DmaPort`]: what a device model holds to reach memory.
//!
//! # What else it does
//!
//! Each headline has a program that shows it; `cargo run -p ioasid --example NAME` runs it.
//!
//! - [Nested tables][nested]: a guest's own page table over what the VMM maps ([`NestedHwpt`]), and a guest's own table
//!   of PASIDs ([`GuestPasidTable`]).
//! - [PASIDs and parking][pasids]: a device with several address spaces ([`Context::pasid_alloc`]), and an end to DMA
//!   that does not wait for holders ([`Context::park`]).
//! - [Processes' address spaces][sva]: a device uses a process's own addresses ([`SvaHwpt`]).
//! - [Misses][misses]: a device that can wait does, for the reader of a [`FaultQueue`] or for the engine ([`OnMiss`]).
//! - [Dirty tracking][dirty]: which pages devices wrote ([`Hwpt::read_dirty`]), or one device
//!   ([`Endpoint::read_write_log`]).
//! - [Parts of devices][parts]: an endpoint whose transactions are its parent's ([`Machine::add_part`]), by PASIDs that
//!   only its table can name ([`PartPasidTable`]; a model's own is [`VirtualPasids`]).
//! - [Mirrors][mirrors]: whatever else is to have the same mappings ([`Mirror`], [`Ioas::add_mirror`]).
//! - [Tables of another process][shared] ([`NestedOptions::shared`]): a device here walks them. When that process takes
//!   a translation away, it waits by a gate in shared memory until no port uses it ([`GateOwner`], [`GateMember`]).
//! - [Pins][pins]: software reaches what is mapped without DMA ([`IoasAccess`], [`PinnedRange`]).
//!
//! [nested]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/nested.rs
//! [pasids]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/pasids.rs
//! [sva]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/sva.rs
//! [misses]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/misses.rs
//! [dirty]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/dirty.rs
//! [parts]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/parts.rs
//! [mirrors]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/mirrors.rs
//! [shared]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/shared.rs
//! [pins]: https://github.com/ioasid/ioasid/blob/HEAD/crates/ioasid/examples/pins.rs
//!
//! # Features
//!
//! - `vm-memory` (off by default): `guest_memory::PortMemory`, a port as the `GuestMemory` of rust-vmm's crate
//!   vm-memory, which puts an IOMMU under existing device code by a change of type.
//!
//! # The completion guarantee
//!
//! When [`Ioas::unmap`], [`Ioas::protect`], [`Ioas::make_fault`], [`Device::detach`], [`NestedHwpt::invalidate`], a
//! replacement, the destruction or parking of an object, the freeing of a PASID, or the clearing of bus mastering
//! returns, no DMA through the old translation is in flight and none can start. The module `gate` has the protocol; a
//! [`Mirror`] of a caller's own keeps the guarantee by its contract.
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
//! | `bus` | machines, endpoints, groups, parts of devices, what one writes |
//! | `hwpt` | tables to attach to: paging, nested, SVA; dirty tracking |
//! | `ioas` | map, unmap, protect, presence, rules; pins |
//! | `mirror` | what follows an address space, and which ports walk it |
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

pub use attach::{AccessAttachError, AttachError, BindError, CopyError, Device, IoasAccess};
pub use base::ids::ObjectId;
pub use base::observe::{Fault, FaultReason, Leftover, Observer, Silent, Work};
pub use base::ranges::Ranges;
pub use base::types::{GroupId, Iova, IovaRange, ParseRidError, Pasid, Rid, WouldDeadlock};
pub use bus::{Endpoint, EndpointError, EndpointOptions, Iommu, Machine, MediateError, PartPasids};
pub use context::{
    Context, DestroyError, External, Held, HwQueueError, HwQueueOptions, HwptError, NestParent, NotBound, Reach,
    Target, ViommuError,
};
pub use fault::{
    FaultQueue, FaultQueueOptions, GroupTooLarge, OnMiss, PageGroup, PageRequest, PageResponse, QueueCounts, Recovery,
    RequestedAccess, TakenGroup, UnknownCookie,
};
pub use gate::shared::{GateMember, GateOwner, JoinError, Unacknowledged};
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
