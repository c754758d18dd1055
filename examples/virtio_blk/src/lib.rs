//! A virtio-blk device with and without an IOMMU: what a rust-vmm developer changes, and what it costs.
//!
//! The device ([`device`]) is written against [`vm_memory::GuestMemory`] and the crate virtio-queue, as devices of a
//! VMM on rust-vmm are. Here it runs twice: over a `GuestMemoryMmap`, where it reaches all of the guest's memory, and
//! over a [`PortMemory`](ioasid::guest_memory::PortMemory), where it reaches what the guest has mapped for it. The
//! change is one of type, where the device is called:
//!
//! ```text
//!   block.process(&guest)        guest: GuestMemoryMmap      addresses are guest-physical
//!   block.process(&port)         port: PortMemory            addresses are IOVAs
//! ```
//!
//! Read [`machine`] for how a VMM makes the IOMMU, the port and the mapping. [`driver`] is the guest's side.
//!
//! `cargo run --release -p ioasid-example-virtio-blk` measures both, in turn in one process, and then shows what
//! becomes of a request whose buffer the driver forgot to map.
//!
//! # What is measured
//!
//! The time that the device takes for requests of 4 KiB, half writes and half reads, in a queue of 256 descriptors: it
//! walks the queue, reads headers, moves data between guest memory and a disk that is memory too, and writes status and
//! used ring. The driver's part and the verification of every request are not in it. There is no I/O to wait for, and
//! every page of guest memory needs a translation of its own, so translation weighs as much as it ever will; most of
//! all in the second table, where the disk fits in the processor's caches as well.
//!
//! Compare ratios of the workspace's release profile only. What vm-memory's own guest memory costs depends much on how
//! the compiler happens to inline it: with link-time optimisation the side without translation can take half as long
//! again, and a port then looks better than it is.
//!
//! # What a driver's bug looks like
//!
//! The last lines are of a driver that forgot to map a buffer, and gave the device its guest-physical address. Without
//! an IOMMU that would even work, and with another wrong address the device would overwrite whatever is there. Behind a
//! port the write is refused: the request ends with an I/O error, the VMM's [`Observer`](ioasid::Observer) is told
//! which device wanted to do what where, memory stays as it was, and the requests before and after are done.

pub mod device;
pub mod driver;
pub mod machine;
pub mod measure;
