//! The order of the locks, which is the order of the folders.
//!
//! A thread takes locks downwards only: each after those that stand above it here. A lock marked *leaf* guards a few
//! instructions, and a thread that holds one takes no other. Where debug assertions are on, each lock knows its place,
//! and a thread that takes one out of order panics; a test compares this list with the order of the folders
//! (`tests/layers.rs`).
//!
//! No lock is held while memory is brought in, while a caller's code runs (see [`super::callback`]), or
//! while a thread waits for ports, but `attach::Attach`, which keeps other threads from attaching in the same context,
//! and `hwpt::Fill`. A port inside its gate takes those marked so, and no thread that holds one of these waits for a
//! port.

#![cfg_attr(any(loom, shuttle, not(debug_assertions)), allow(dead_code, reason = "ranks are checked in debug builds"))]

/// The place of a lock among all.
pub(crate) trait Rank {
    /// The lower, the further outside.
    const PLACE: u16;
    /// Whether no lock is taken under it.
    const LEAF: bool;
    /// The folder that it belongs to, and its name.
    const NAME: &'static str;
}

macro_rules! ranks {
    ($($(#[$doc:meta])* $folder:ident :: $name:ident $($leaf:ident)?,)*) => {
        #[allow(clippy::upper_case_acronyms, reason = "only counted")]
        #[repr(u16)]
        enum Place { $($name),* }

        $($(#[$doc])*
        pub(crate) struct $name;

        impl Rank for $name {
            const PLACE: u16 = Place::$name as u16;
            const LEAF: bool = false $(|| stringify!($leaf).len() == 4)?;
            const NAME: &'static str = concat!(stringify!($folder), "::", stringify!($name));
        })*
    };
}

ranks! {
    /// A context's attachments change. A thread that holds it may wait for ports.
    attach::Attach,
    /// Which address space an access of software is attached to.
    attach::AccessIoas,
    /// The devices that guests know, of one context.
    context::VirtualDevices,
    /// A device's page requests that are not answered.
    port::Interface leaf,
    /// What was made on a virtual IOMMU.
    viommu::Viommu,
    /// Events on their way to a guest.
    viommu::Events leaf,
    /// The endpoints of a machine.
    bus::Endpoints,
    /// The IOMMUs of a machine.
    bus::Iommus leaf,
    /// The IOMMU groups of a machine.
    bus::Groups leaf,
    /// Which context a group belongs to.
    bus::Group leaf,
    /// The parts of an endpoint. Ports take it.
    bus::Parts leaf,
    /// How many parts an endpoint has.
    bus::Shares leaf,
    /// PASIDs that a part's context has allocated.
    bus::Named,
    /// What an endpoint is attached to. Ports take it, when they meet a PASID for the first time.
    bus::Attachments,
    /// Which address space a device's own mirror follows.
    bus::Follows leaf,
    /// What an endpoint has written. Ports take it.
    bus::WriteLog leaf,
    /// A page table is filled or emptied (shared), or looked at while it must not change (exclusive). A thread that
    /// holds it may wait for ports.
    hwpt::Fill,
    /// What an address space maps, its mirrors and its rules.
    ioas::State,
    /// Whether an access of software is being told of an unmap.
    ioas::Accessor leaf,
    /// The requesters that are attached to a page table.
    mirror::Users leaf,
    /// Groups of page requests in a queue.
    fault::Queue leaf,
    /// Queues that have a deadline.
    fault::Deadlines leaf,
    /// The callback that is told of an arrival.
    fault::Notify leaf,
    /// What is pinned of some pages.
    memory::Pinned,
    /// The account that answers for some pages.
    memory::Ledger leaf,
    /// The free blocks of the physical space.
    memory::Blocks leaf,
    /// What was imported of a process's memory. The news of what becomes of it is read under this.
    memory::Imports,
    /// Where the parts of an import are now.
    memory::Imported leaf,
    /// Copies from and to a process's memory.
    memory::Copies leaf,
    /// The file with a process's mappings has one offset.
    memory::Reading leaf,
    /// Files that are open here because a process maps them.
    memory::Files leaf,
    /// The ports of an endpoint.
    gate::Ports,
    /// Which passages of a gate that is shared with another process are taken.
    gate::Passages leaf,
    /// An order to forget is written for another process.
    gate::Orders leaf,
    /// What a port is to forget. Ports take it.
    gate::Posted leaf,
    /// The table of a part's PASIDs.
    pasid::Virtual,
    /// Which PASIDs are taken.
    pasid::Space leaf,
    /// The ids of a context.
    base::Ids leaf,
}
